"""The calibration workflow: collect held-out scores, choose a threshold, refit, plot learning curves.

The arithmetic of thresholds is in `adctl.thresholds`.
"""
