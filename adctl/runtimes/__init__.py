"""Inference runtimes behind one interface: pixels in, scores and anomaly maps out."""
