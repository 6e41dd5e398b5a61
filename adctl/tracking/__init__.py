"""Run tracking: which models there are, what was made from each, and which is best.

The folders are the truth. Each command that makes something from a model leaves a small file in the folder of its run;
the database is an index of these folders, and `adctl runs index` rebuilds it.
"""
