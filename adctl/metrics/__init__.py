"""Metrics of images and pixels. Arrays only: no files, no detectors.

    table.py            the table of metrics: name, function, labels and places that show it
    image.py            metrics of image scores: overall and by defect type
    pixel.py            metrics of map values: the result, and the base class of the meters
    exact.py            meter that keeps every pixel, for sets that fit in memory
    streaming.py        meter that keeps histograms, for any number of maps, with bounds of the error
    curves.py           ROC and precision-recall curves
    bootstrap.py        bootstrap confidence intervals
    pixel_bootstrap.py  bootstrap confidence intervals of pixel metrics
    comparison.py       comparison of two detectors on the same images: DeLong's test, paired bootstrap, Holm correction
    statistics.py       distribution of scores: summary, effect size, normality
    ensemble.py         scores of several models combined
    mean_std.py         mean and standard deviation over folds or seeds
    ranking.py, pixel_counts.py, regions.py, accumulator.py, labels.py   parts of the modules above

Scores are ranked as float64, never clamped or normalised. A metric that does not exist (only one class is present, or
there is no threshold) is None, and `missing` gives the reason.
"""
