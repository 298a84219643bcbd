"""The loop decides as FuxiCTR's does, and stops at the first number that cannot be trusted."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fuxictr_mm.config import ModelSettings
from fuxictr_mm.data.loaders import InMemoryLoader
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.training import loop
from tests.errors import raises_naming
from tests.tensors import assert_equal_tensors, read_tensors


class Scripted(BaseModel):
    """Counts its steps in its only weight; its metrics follow a script."""

    def __init__(self, folder, script=(), losses=None, **settings):
        settings = {"monitor": "AUC", "reduce_lr_on_plateau": True, **settings}
        super().__init__(FeatureMap("d", str(folder)), verbose=0, model_root=str(folder), metrics=["AUC"], **settings)
        self.weight = nn.Parameter(torch.zeros(()))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.script, self.losses, self.saved = iter(script), losses, []
        self.evaluated = []

    def train_step(self, batch):
        assert self.training
        with torch.no_grad():
            self.weight += 1
        step = int(self.weight)
        return torch.tensor(self.losses[step - 1] if self.losses else 0.5)

    def evaluate(self, data, metrics=None):
        self.eval()
        self.evaluated.append(int(self.weight))
        return next(self.script)

    def save_weights(self, checkpoint):
        self.saved.append(int(self.weight))

    def load_weights(self, checkpoint):
        self.weight.data.fill_(self.saved[-1])


@pytest.fixture(autouse=True)
def scripted_evaluation(monkeypatch):
    real = loop.evaluate

    def evaluate(model, loader, metrics):
        return model.evaluate(loader, metrics) if isinstance(model, Scripted) else real(model, loader, metrics)

    monkeypatch.setattr(loop, "evaluate", evaluate)


BATCHES = [torch.zeros(2)] * 4
NEAR = [0.5, 0.5 + 5e-7, 0.5 + 1e-6, 0.5 - 1e-6, 0.5 + 2e-6, 0.6, 0.4, 0.7]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.tuples(st.sampled_from(NEAR), st.sampled_from(NEAR)), min_size=40, max_size=40),
    monitor=st.sampled_from(["AUC", {"AUC": 1, "logloss": -0.5}, {"logloss": 1}]),
    mode=st.sampled_from(["max", "min"]),
    patience=st.integers(1, 4),
    eval_steps=st.sampled_from([None, 1, 2, 3, 5]),
    best_only=st.booleans(),
    plateau=st.booleans(),
)
def test_decides_as_fuxictr(tmp_path_factory, values, monitor, mode, patience, eval_steps, best_only, plateau):
    folder = tmp_path_factory.mktemp("run")
    script = [{"AUC": auc, "logloss": logloss} for auc, logloss in values]
    chosen = {
        "monitor": monitor,
        "monitor_mode": mode,
        "early_stop_patience": patience,
        "eval_steps": eval_steps,
        "save_best_only": best_only,
        "reduce_lr_on_plateau": plateau,
    }
    theirs, ours = Scripted(folder, script, **chosen), Scripted(folder, script, **chosen)
    theirs.fit(BATCHES, epochs=8, validation_data=BATCHES)
    history = loop.fit(ours, BATCHES, 8, BATCHES)
    for name in ("evaluated", "saved", "_best_metric", "_stopping_steps", "_stop_training", "_total_steps"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.weight == theirs.weight
    assert ours.optimizer.param_groups[0]["lr"] == theirs.optimizer.param_groups[0]["lr"]
    assert [entry["step"] for entry in history] == ours.evaluated


def aucs(*values):
    return [{"AUC": value} for value in values]


def test_by_hand(tmp_path):
    model = Scripted(tmp_path, aucs(0.6, 0.7, 0.65, 0.69, 0.8), early_stop_patience=2)
    history = loop.fit(model, BATCHES, 10, BATCHES)
    assert model.evaluated == [4, 8, 12, 16]
    assert model.weight == 8
    assert model.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert [entry["AUC"] for entry in history] == [0.6, 0.7, 0.65, 0.69]


@pytest.mark.parametrize(("first", "kept"), [(0.9, 0), (0.5, 8)])
def test_weights_trained_before_are_kept_unless_better_ones_are_found(first, kept, tmp_path):
    model = Scripted(tmp_path, aucs(first, 0.6, 0.7, 0.65, 0.69), early_stop_patience=2)
    history = loop.fit(model, BATCHES, 10, BATCHES, evaluate_first=True)
    assert model.evaluated[:3] == [0, 4, 8]
    assert model.weight == kept
    assert history[0] == {"epoch": 0, "step": 0, "AUC": first}
    assert history[1]["epoch"] == 1


@pytest.mark.parametrize("eval_steps", [None, 1, 3, 5, 9])
def test_the_loss_is_the_mean_since_the_previous_evaluation(tmp_path, eval_steps):
    """Also where an epoch of four steps ends in between."""
    losses = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0]
    script = aucs(*[0.5 + i / 100 for i in range(len(losses))])
    history = loop.fit(Scripted(tmp_path, script, losses, eval_steps=eval_steps), BATCHES, 3, BATCHES)
    every = eval_steps or len(BATCHES)
    assert [entry["step"] for entry in history] == list(range(every, len(losses) + 1, every))
    assert [entry["loss"] for entry in history] == [
        sum(losses[entry["step"] - every : entry["step"]]) / every for entry in history
    ]


def test_a_second_fit_starts_anew(tmp_path):
    model = Scripted(tmp_path, aucs(0.9, 0.1, 0.2))
    loop.fit(model, BATCHES, 1, BATCHES)
    loop.fit(model, BATCHES[:2], 2, BATCHES)
    assert model.evaluated == [4, 6, 8]
    assert model.weight == 8


def test_without_validation_the_last_weights_stay(tmp_path):
    model = Scripted(tmp_path)
    assert loop.fit(model, BATCHES, 3) == []
    assert model.saved == [12]


@pytest.mark.parametrize("validation", [None, BATCHES])
def test_an_older_checkpoint_is_never_loaded(build, make_batch, validation):
    model, dataset = build("DIN_tiny", eval_steps=10**9)
    model.save_weights(model.checkpoint)
    old = model.dnn.mlp[0].weight.detach().clone()
    train = InMemoryLoader(dataset.splits["valid"], 256)
    model.fit(train, epochs=1, validation_data=validation)
    assert not torch.equal(model.dnn.mlp[0].weight, old)
    stored = read_tensors(model.checkpoint)
    assert torch.equal(stored["dnn.mlp.0.weight"], model.dnn.mlp[0].weight)


def test_the_best_weights_come_back(build, monkeypatch):
    model, dataset = build("DIN_tiny", learning_rate=0.01)
    loader = InMemoryLoader(dataset.splits["valid"], 256)
    seen = []

    def evaluate(model, loader, metrics):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"AUC": [0.6, 0.9, 0.7][len(seen) - 1]}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    model.fit(loader, epochs=3, validation_data=loader)
    assert_equal_tensors(seen[1], model.state_dict())
    assert not torch.equal(seen[1]["dnn.mlp.0.weight"], seen[2]["dnn.mlp.0.weight"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("eval_steps", [None, 3, 10**9])
@pytest.mark.parametrize("validation", [None, BATCHES])
def test_a_loss_that_is_not_finite(tmp_path, bad, eval_steps, validation):
    # The last batch of an epoch, between two looks at the loss.
    model = Scripted(tmp_path, aucs(*[0.5 + i / 100 for i in range(9)]), [0.1] * 7 + [bad], eval_steps=eval_steps)
    with raises_naming(UserError, f"loss is {bad}", "epoch 2, batch 4", "learning_rate"):
        loop.fit(model, BATCHES, 2, validation)
    assert 8 not in model.saved


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_never_the_best(tmp_path, bad):
    model = Scripted(tmp_path, aucs(0.6, bad))
    with raises_naming(UserError, bad):
        loop.fit(model, BATCHES, 3, BATCHES)
    assert model.saved == [4]


def test_a_monitored_metric_that_is_missing_is_named(tmp_path):
    model = Scripted(tmp_path, [{"a_AUC": 0.7}, {"a_AUC": 0.8}], monitor={"a_AUC": 1, "b_AUC": 1})
    with raises_naming(UserError, "monitor", "b_AUC"):
        loop.fit(model, BATCHES, 2, BATCHES)
    assert model.saved == []


def test_no_epochs(tmp_path):
    with pytest.raises(ConfigError, match="epochs is 0"):
        loop.fit(Scripted(tmp_path), BATCHES, 0)


def plain(build, **settings):
    """A DIN in float64 without batch norm and dropout, trained by plain gradient descent."""
    descent = {"optimizer": "SGD", "learning_rate": 0.5, "net_regularizer": 1e-3}
    model, dataset = build("DIN_tiny", batch_norm=False, net_dropout=0.0, **descent, **settings)
    return model.double(), dataset.splits["valid"]


@pytest.mark.parametrize(("batches", "steps"), [(4, 2), (5, 2), (3, 8)])
def test_accumulation_equals_a_larger_batch(build, make_batch, float64, batches, steps):
    small, table = plain(build, accumulation_steps=steps)
    large, _ = plain(build)
    rows = list(range(16 * batches))
    cut = [make_batch(table, rows[16 * i : 16 * (i + 1)]) for i in range(batches)]
    joined = [make_batch(table, rows[16 * i : 16 * min(i + steps, batches)]) for i in range(0, batches, steps)]
    before = small.dnn.mlp[0].weight.detach().clone()
    loop.fit(small, cut, 2)
    loop.fit(large, joined, 2)
    assert not torch.equal(small.dnn.mlp[0].weight, before)
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(parameter, large.get_parameter(name), rtol=1e-12, atol=1e-12, msg=name)


def test_evaluation_and_scoring_agree_with_the_rows(build):
    model, dataset = build("DIN_tiny")
    table = dataset.splits["valid"]
    whole, parts = InMemoryLoader(table, len(table)), InMemoryLoader(table, 77)
    assert model.predict(parts) == pytest.approx(model.predict(whole), abs=1e-5)
    assert model.predict(parts).shape == (len(table),)
    assert not model.training
    result = model.evaluate(parts, ["AUC", "logloss"])
    assert result == pytest.approx(model.evaluate(whole, ["AUC", "logloss"]), abs=1e-5)


def test_a_single_sample_for_batch_norm_ends_in_one_line(tmp_path):
    model = Scripted(tmp_path)
    model.train_step = lambda batch: nn.BatchNorm1d(3)(torch.zeros(1, 3)).sum()
    with raises_naming(DataError, "epoch 1, batch 1", "batch_size"):
        loop.fit(model, BATCHES)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"warmup_steps": 10}, ["warmup_steps"]),
        ({"swa_start": 5, "accumulation_steps": 2}, ["swa_start"]),
        ({"plateau_patience": 2}, ["plateau_patience"]),
        ({"eval_steps": 11}, ["eval_steps"]),
        ({"sync_batch_norm": False}, ["sync_batch_norm"]),
        ({"eval_steps": 10, "warmup_steps": 9, "swa_start": 9, "plateau_patience": 2, "early_stop_patience": 3}, []),
    ],
)
def test_settings_that_a_run_does_not_reach_are_named(settings, named):
    model = SimpleNamespace(model_settings=ModelSettings(**settings), _planned_steps=10, modules=lambda: [nn.ReLU()])
    assert [line.split()[0] for line in loop.without_effect(model)] == named
    assert loop.without_effect(SimpleNamespace(_planned_steps=10)) == []


@pytest.mark.parametrize(
    ("script", "patience", "hinted"), [((0.7, 0.6), 1, True), ((0.7, 0.6), 2, False), ((0.6, 0.7, 0.8, 0.7), 1, False)]
)
def test_a_rate_that_is_lowered_early_names_the_patience(tmp_path, caplog, script, patience, hinted):
    model = Scripted(tmp_path, aucs(*script), early_stop_patience=3)
    model.plateau_patience = patience
    with caplog.at_level(logging.INFO):
        loop.fit(model, BATCHES, len(script), BATCHES)
    assert ("plateau_patience" in caplog.text) is hinted
