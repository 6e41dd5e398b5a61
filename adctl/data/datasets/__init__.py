"""Dataset layouts and containers: from folders, archives, manifests, shards and remote storage to sample lists."""
