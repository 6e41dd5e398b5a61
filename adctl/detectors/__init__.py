"""Detectors: one file for each algorithm, with shared parts in `components`."""
