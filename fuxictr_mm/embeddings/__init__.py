"""From titles and images to the vectors and codes that models read, in Parquet files keyed by ``item_id``."""
