"""Detectors: one file an algorithm, one small contract for all."""
