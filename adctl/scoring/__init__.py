"""Scoring: predict images, write score sets and heatmaps, watch a folder."""
