"""Embeddings and codes of items from titles and images, in Parquet files keyed by ``item_id``."""
