"""Saved reductions: the principal components of embeddings, what they keep, and their file."""
