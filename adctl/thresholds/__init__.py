"""From scores to decisions: thresholds, p-values, probabilities and drift. Numbers only: no images, no detectors.

    thresholds.py   from good scores alone: percentile, mean + k sigma, median + k MAD
    tails.py        from the tail of good scores: generalised Pareto over a high threshold
    conformal.py    with a promise at finite n; p-values
    labelled.py     with scores of defects too: best F1, a precision, a recall, least cost
    choosing.py     a rule and the evidence to the calibration that travels in the model file
    judging.py      a calibration and one image's score to verdict, p-value and probability
    drift.py        whether a scored folder still looks like the calibration images
    enough.py       how many good images are enough

An image is rejected when its raw score is above the threshold.
"""
