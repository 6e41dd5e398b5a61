"""Evaluation of scored sets: image and pixel metrics, comparison of models on the images they share."""
