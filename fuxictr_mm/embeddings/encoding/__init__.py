"""Titles and images to vectors: models, their inputs, and what is kept of an unfinished run."""
