"""Images from disk to arrays: decoding, folder layouts, splits, loading, download and the demo set.

Knows files and folders, nothing of detectors or scores.
"""
