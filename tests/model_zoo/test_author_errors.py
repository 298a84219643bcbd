"""Mistakes of a model's author end in one line that names the file and the line."""

from pathlib import Path

import pytest
import torch

from fuxictr_mm import Experiment
from fuxictr_mm.errors import UserError
from tests.errors import raises_naming
from tests.paths import ROOT

GOOD = """
import torch
from fuxictr_mm.jagged import mean_pooling
from fuxictr_mm.model import DNNModel


class Mine(DNNModel):
    def __init__(self, feature_map, *, dnn_hidden_units: list[int] = (8,), **params):
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        self.dnn = self.make_dnn(self.context_dim + 2 * self.item_dim)
        self.build()

    def logits(self, batch):
        e = self.embed(batch)
        return self.dnn(torch.cat([e.context, e.target, mean_pooling(e.history)], dim=-1))
"""


@pytest.fixture
def train(tmp_path: Path):
    """Return a function that trains a model file on a copy of the demo's configuration."""

    def run(source: str) -> object:
        (tmp_path / "zoo").mkdir()
        (tmp_path / "zoo" / "Mine.py").write_text(source, encoding="utf-8")
        experiment = Experiment.load(
            "DIN_tiny",
            config=ROOT,
            data_root=ROOT / "data",
            model_zoo=tmp_path / "zoo",
            model="Mine",
            epochs=1,
            model_root=str(tmp_path / "checkpoints"),
            dnn_hidden_units=[8],
        )
        return experiment.fit(progress=False)

    return run


def without_settings_of_din(source: str) -> str:
    """Let the model take what DIN_tiny sets beside the settings of every model."""
    return source.replace("**params):", "attention_hidden_units=None, attention_hidden_activations=None, "
                          "attention_dropout=None, din_use_softmax=None, **params):")  # fmt: skip


def test_a_model_of_ten_lines_trains(train):
    assert train(without_settings_of_din(GOOD)).metrics["valid"]["AUC"] > 0.5


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("        self.build()\n", "", ["Mine.py, line 8", "build()"]),
        ("    def logits(self", "    def logit(self", ["Mine.py, line 7", "logits"]),
        ("return self.dnn(", "return 2 * torch.ones(3, 2) + 0 * self.dnn(torch.cat([e.context, e.target, "
         "mean_pooling(e.history)], dim=-1)).sum() if True else (", ["Mine.py, line 13", "(3, 2)"]),
        ("        self.build()\n", "        self.build()\n        raise KeyError('x')\n", ["Mine.py, line 12"]),
        ("e.context, e.target", "e.contexts, e.target", ["Mine.logits", "contexts", "Mine.py, line 15"]),
        ("e.context, e.target", "e.context.T, e.target", ["Mine.logits", "Sizes", "Mine.py, line 15"]),
        ("e.context, e.target", "batch.context['likes'], e.target", ["Mine.logits", "'likes'", "likes_level"]),
        ("return self.dnn(", "return torch.zeros(1).log() * 0 + self.dnn(", ["epoch 1, batch 1", "model"]),
    ],
)  # fmt: skip
def test_a_mistake_names_the_file(train, old, new, named):
    source = without_settings_of_din(GOOD).replace(old, new)
    with raises_naming(UserError, *named):
        train(source)
    assert torch.is_grad_enabled()


def test_a_layer_that_is_never_used_is_named(train, caplog):
    with caplog.at_level("WARNING"):
        train(
            without_settings_of_din(GOOD).replace(
                "self.build()", "self.extra = torch.nn.Linear(2, 2)\n        self.build()"
            )
        )
    assert "extra.weight, extra.bias" in caplog.text


def test_an_exception_of_a_later_batch_is_left_alone(train):
    """It may be about anything: the file has scored a batch."""
    later = "if getattr(self, 'seen', 0):\n            raise KeyError('later')\n        self.seen = 1\n        "
    source = without_settings_of_din(GOOD).replace("e = self.embed(batch)", later + "e = self.embed(batch)")
    with pytest.raises(KeyError, match="later"):
        train(source)
