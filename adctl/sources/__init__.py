"""Sources of parts: folders that fill, video files, RTSP streams, cameras of the machine and GenICam cameras.

A source runs in a thread of its own and yields parts, each with one or several images. Cameras take a part when a
trigger fires: an interval, motion, or an HTTP request.
"""
