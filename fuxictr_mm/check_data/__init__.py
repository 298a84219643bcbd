"""Data-quality issues in a dataset of the challenge's layout: checks, a report, a cleaned copy (``check-data``)."""
