"""The arithmetic from scores to decisions: thresholds, p-values, probabilities and drift. Arrays only, no images.

    unsupervised.py  thresholds from good scores alone: percentile, mean + k sigma, median + k MAD
    pareto_tail.py   generalised Pareto model of the highest good scores, and thresholds from it
    smooth_tail.py   smooth estimate of the tail for few scores: the default threshold, and its uncertainty
    conformal.py     thresholds with a guaranteed false-alarm rate; conformal p-values
    new_groups.py    thresholds for a new group, such as the next lot, from scores of several groups
    contaminated.py  thresholds from the unlabelled parts of a line, some of which are defective
    commissioning.py the calibration that such parts give
    supervised.py    thresholds from good and defective scores: best F1, given precision or recall, least cost
    methods.py       the table of methods; compute a calibration from a threshold rule and held-out scores
    decision.py      verdict, p-value and anomaly probability of one score
    drift.py         test whether new scores differ from the calibration scores
    sample_size.py   number of good images needed, from a learning curve

An image is rejected when its raw score is above the threshold.
"""
