"""The field's metrics, for images and for pixels. Arrays only: no files, no detectors.

    image.py         metrics of image scores, as a whole and by defect type
    pixel.py         metrics of map values: what they are and how they follow from a tally
    exact.py         gathers maps by keeping every pixel: for sets that fit in memory
    streaming.py     gathers maps in histograms: for any number of maps, with a stated error
    curves.py        ROC and precision-recall curves
    intervals.py     bootstrap confidence intervals; sampling.py keeps maps for it
    comparison.py    two detectors on the same images: DeLong's test, paired bootstrap
    statistics.py    how scores are distributed: summary, effect size, normality
    ranking.py, tally.py, regions.py, meter.py, labels.py: what the above are made of

Scores rank as they are, in float64, never clamped or normalised. A metric that does not exist (only one class is
present, or there is no threshold) is None, and `missing` says why.
"""
