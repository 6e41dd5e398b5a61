"""Models for other runtimes, verified."""
