"""Supervised classifiers of images: data, network, heads, decision and model file."""
