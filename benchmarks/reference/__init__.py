"""The padded twin of each model, by the model's name."""

from benchmarks.reference.DIN import PaddedDIN
from benchmarks.reference.DIN_MM import PaddedDINMM
from benchmarks.reference.padded import PaddedModel, RowDataset, padded_loader

REFERENCES: dict[str, type[PaddedModel]] = {"DIN": PaddedDIN, "DIN_MM": PaddedDINMM}

__all__ = ["REFERENCES", "PaddedModel", "RowDataset", "padded_loader"]
