"""Scoring: predict images, write scored sets and heatmaps, watch a folder."""
