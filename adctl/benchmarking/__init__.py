"""Measuring model files: the machine's limits, rounds in turn, processes of their own, comparisons with before."""
