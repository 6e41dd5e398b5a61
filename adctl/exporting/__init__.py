"""Export of models to other runtimes, with verification against PyTorch."""
