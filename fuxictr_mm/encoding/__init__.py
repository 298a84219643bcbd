"""Datasets of raw columns, encoded as integers in Parquet files that ``fuxictr_mm.data`` reads."""
