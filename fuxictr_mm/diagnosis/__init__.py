"""Diagnosis of a trained model: attention, heads, fields, embeddings, calibration, slices of the examples."""
