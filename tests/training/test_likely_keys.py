"""Which setting differs, told from shapes: every case is built twice by a model of FuxiCTR's layers."""

import pytest
from fuxictr.pytorch.layers import MLP_Block
from torch import nn

from fuxictr_mm.training.likely_keys import likely_causes

KEYS = [
    "embedding_dim", "num_layers", "num_heads", "num_row", "dim_feedforward", "transformer_layers",
    "transformer_dropout", "dnn_hidden_units", "mlp_hidden_units", "net_dropout", "senet_reduction",
]  # fmt: skip


class Model(nn.Module):
    def __init__(
        self,
        features=("item_id", "likes_level"),
        embedding_dim=4,
        vocab_size=10,
        vector=16,
        dnn=(8, 4),
        mlp=(6,),
        layers=2,
        feedforward=5,
        num_row=2,
        net_dropout=0.1,
        batch_norm=False,
        senet=False,
    ):
        super().__init__()
        self.embedding_layer = nn.Module()
        self.embedding_layer.embedding_layers = nn.ModuleDict(
            {n: nn.Embedding(vocab_size if n == "item_id" else 11, embedding_dim) for n in features}
        )
        self.embedding_layer.feature_encoders = nn.ModuleDict({"vector": nn.Linear(vector, embedding_dim, bias=False)})
        width = embedding_dim * (len(features) + 1)
        layer = nn.TransformerEncoderLayer(width, 1, feedforward, batch_first=True)
        self.transformer_encoder = nn.ModuleList([layer for _ in range(layers)])
        self.dnn = MLP_Block(width, list(dnn), dropout_rates=net_dropout, batch_norm=batch_norm)
        self.mlp = MLP_Block(dnn[-1], list(mlp), output_dim=1)
        self.quadratic = nn.Linear(width, width * num_row)
        self.square = nn.Linear(width, width)
        if senet:
            self.senet = nn.Linear(2, 2)


def shapes(**settings):
    return {name: tuple(tensor.shape) for name, tensor in Model(**settings).state_dict().items()}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({}, None),
        ({"embedding_dim": 8}, "embedding_dim (8 here, 4 in the file)"),
        ({"vocab_size": 20}, "vocab_size of feature 'item_id' (20 here, 10 in the file)"),
        ({"vector": 32}, "width of the vectors 'vector' (32 here, 16 in the file)"),
        ({"features": ("item_id",)}, "use_features (only in the file: likes_level)"),
        ({"features": ("item_id", "likes_level", "tags")}, "use_features (only here: tags)"),
        ({"dnn": (9, 4)}, "dnn_hidden_units (9 here, 8 in the file)"),
        ({"dnn": (4,)}, "dnn_hidden_units (2 tensors in 'dnn' here, 4 in the file)"),
        ({"mlp": (7,)}, "mlp_hidden_units (7 here, 6 in the file)"),
        ({"layers": 3}, "transformer_layers (36 tensors in 'transformer_encoder' here, 24 in the file)"),
        ({"feedforward": 9}, "dim_feedforward (9 here, 5 in the file)"),
        ({"num_row": 3}, "num_row"),
        ({"net_dropout": 0}, "net_dropout (the layers of 'dnn' are numbered differently)"),
        ({"batch_norm": True}, "batch_norm (in 'dnn' only here)"),
        ({"senet": True}, "senet_reduction ('senet' is only here)"),
    ],
)
def test_the_cause_is_named_and_no_other(change, cause):
    causes = likely_causes(shapes(**change), shapes(), KEYS)
    assert len(causes) == (0 if cause is None else 1)
    assert cause is None or cause in causes[0]


def test_a_square_layer_alone_tells_nothing():
    own, found = ({"cross.0.weight": (n, n), "cross.0.bias": (n,)} for n in (4, 6))
    assert likely_causes(own, found, KEYS) == []


def test_strange_names_do_no_harm():
    assert likely_causes({"": ()}, {"7": (), "embedding_layers.x.weight": (3,)}, []) == [
        "use_features (only in the file: x)"
    ]
