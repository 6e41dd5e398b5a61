"""Training, evaluation and reports of classifiers."""
