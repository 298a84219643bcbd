"""Launchers of training on clusters; torchrun needs none."""
