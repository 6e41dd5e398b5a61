"""Engine: runs the phases that fit a detector, on any device; checkpoints, logs and model files as tensors."""
