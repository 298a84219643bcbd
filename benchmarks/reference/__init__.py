"""The padded reference of each model, by the model's name."""

from benchmarks.reference.DIN import PaddedDIN
from benchmarks.reference.DIN_MM import PaddedDINMM
from benchmarks.reference.padded import PaddedModel, RowDataset, padded_loader
from benchmarks.reference.QIN import PaddedQIN
from benchmarks.reference.Transformer_DCN import PaddedTransformerDCN

REFERENCES: dict[str, type[PaddedModel]] = {
    "DIN": PaddedDIN,
    "DIN_MM": PaddedDINMM,
    "QIN": PaddedQIN,
    "Transformer_DCN": PaddedTransformerDCN,
}

__all__ = ["REFERENCES", "PaddedModel", "RowDataset", "padded_loader"]
