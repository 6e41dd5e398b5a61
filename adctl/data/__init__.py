"""Images from disk to batches: decoding, preprocessing, tiling, splits, caching, dataset layouts and checks."""
