"""HTTP server: scoring, history of verdicts, reviews, and the models it serves.

A request passes `guard` (host, size of the body, headers), `security` (key and role), a route, and for an image
`scoring` (decode, `batcher`, threshold) and `history` (the row is durable before the answer is sent).
"""
