"""``fuxictr-mm autopilot``: from a dataset to a submission within a time budget.

Models are compared with a few trials each, the best of them are tuned, the best configuration is trained with several
seeds, and the trials and seeds that are best together are averaged. Every choice is made on the validation rows.
"""
