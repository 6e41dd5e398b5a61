"""Evaluation of scored sets: image and pixel metrics, and comparison of models on the same images."""
