"""What harms in a dataset of the challenge's layout: checks, a report, a cleaned copy (``fuxictr-mm check-data``)."""
