"""Building blocks that detectors share: backbones, coreset, nearest neighbours, losses, feature caches."""
