"""Dataset layouts: from folders, archives, manifests, WebDataset shards and remote storage to lists of samples."""
