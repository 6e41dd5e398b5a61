"""Runtimes: different engines behind one call, pixels to scores and maps."""
