"""Synthetic datasets in the challenge's layout."""
