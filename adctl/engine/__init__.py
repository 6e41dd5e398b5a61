"""The engine: devices, batches, the phases that fit a detector, and the model file."""
