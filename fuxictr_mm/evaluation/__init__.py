"""Comparison of experiments, significance, and influence of training rows."""
