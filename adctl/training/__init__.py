"""Training: single runs, cross-validation, grids, resuming, resource estimates and test metrics."""
