"""Calibration: collect scores of held-out images, choose thresholds, refit detectors, plot learning curves.

The computation of thresholds is in `adctl.thresholds`.
"""
