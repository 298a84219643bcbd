"""Models with touched tables beside the same models with dense ones."""

import pytest
import torch

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.tables import kinds, touched_parameters
from fuxictr_mm.training.clipping import clip_gradients
from tests.errors import raises_naming
from tests.paths import ROOT

MODAL = ["txt_emb_pca8", "img_emb_pca8"]
TABLE = "embedding_layer.embedding_layer.embedding_layers.item_id.weight"


def specs(kind):
    return {"feature_specs": [{"name": "item_id", "table": kind}, {"name": MODAL, "freeze_emb": False, "table": kind}]}


@pytest.fixture
def both(build, make_batch, float64):
    """Build DIN_MM_tiny with touched and with dense tables, in float64; returns the models and batches."""

    def make(**settings):
        models = []
        for kind in ("touched", "dense"):
            model, dataset = build("DIN_MM_tiny", net_dropout=0.0, **specs(kind), **settings)
            models.append(model.double().train())
            if model.average is not None:
                model.average.begin()
        table = dataset.splits["train"]
        return *models, [make_batch(table, range(first, first + 40)) for first in (0, 40, 80, 120)]

    return make


def backward(model, batch):
    model.add_loss(model(batch), model.get_labels(batch)).backward()


def test_names_and_initial_weights_are_the_same(both):
    touched, dense, _ = both()
    states = touched.state_dict(), dense.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    names = {id(p): name for name, p in touched.named_parameters()}
    found = [names[id(p)] for p in touched_parameters(touched)]
    assert found == [TABLE, *(f"item_vectors.{name}.weight" for name in MODAL)]
    assert touched_parameters(dense) == []


def test_gradients_and_clipping_are_those_of_dense_tables(both):
    touched, dense, batches = both()
    for batch in batches[:2]:  # accumulated
        backward(touched, batch)
        backward(dense, batch)
    clip_gradients(touched.parameters(), 0.01)
    clip_gradients(dense.parameters(), 0.01)
    sparse = 0
    for (name, one), (_, other) in zip(touched.named_parameters(), dense.named_parameters(), strict=True):
        sparse += one.grad.is_sparse
        torch.testing.assert_close(one.grad.to_dense(), other.grad, rtol=1e-10, atol=1e-12, msg=name)
    assert sparse == 3


def looked_up(batches):
    ids = torch.cat([torch.cat([batch.target.long(), batch.history.values.long()]) for batch in batches])
    return torch.zeros(1001, dtype=torch.bool).index_fill_(0, ids.unique(), True)


@pytest.mark.parametrize("regularizer", [0.3, "l1_l2(0.2, 0.1)"])
def test_the_regularizer_of_rows_that_every_update_reaches_is_that_of_dense_tables(both, regularizer):
    touched, dense, batches = both(embedding_regularizer=regularizer)
    backward(dense, batches[0])
    without = {name: p.grad.clone() for name, p in dense.named_parameters()}
    dense.penalty.add_gradients()
    for name in (TABLE, f"item_vectors.{MODAL[0]}.weight"):
        table = touched.get_parameter(name)
        found = touched.penalty.of_rows(table, table.detach(), torch.ones(len(table), 1).double(), 1e-3)
        expected = dense.get_parameter(name).grad - without[name]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_regularizer_of_a_row_is_that_of_all_updates_since_its_last(both):
    touched, _, batches = both(embedding_regularizer=0.3, optimizer="sgd", learning_rate=0.01, max_gradient_norm=1e9)
    table = touched.get_parameter(TABLE)
    last = torch.zeros(len(table), 1).double()
    for update, batch in enumerate(batches, start=1):
        before = table.detach().clone()
        backward(touched, batch)
        reached = looked_up([batch])
        gradient = table.grad.to_dense()
        touched.optimizer.zero_grad()
        touched.train_step(batch)
        # As many steps of gradient descent on the regularizer as the table has been updated since.
        shrunk = (1 - 0.01 * 0.3) ** (update - last) * before
        expected = shrunk - 0.01 * gradient
        torch.testing.assert_close(table.detach()[reached], expected[reached], rtol=1e-9, atol=1e-12)
        assert torch.equal(table.detach()[~reached], before[~reached])
        last[reached] = update
    assert last.unique().numel() > 2


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_leave_other_rows_as_they_are(both, accumulation):
    """Bitwise, with everything that changes weights; the first update of reached rows is that of dense Adam."""
    settings = {"embedding_regularizer": 0.1, "embedding_weight_decay": 0.2, "ema": 0.9, "max_gradient_norm": 1e3}
    touched, dense, batches = both(**settings, accumulation_steps=accumulation)
    before = touched.get_parameter(TABLE).detach().clone()
    for model in (touched, dense):
        model._steps_per_epoch = len(batches)
        for index, batch in enumerate(batches[:accumulation]):
            model._batch_index = index
            model.train_step(batch)
    reached = looked_up(batches[:accumulation])
    one, other = (model.get_parameter(TABLE).detach() for model in (touched, dense))
    assert torch.equal(one[~reached], before[~reached])
    torch.testing.assert_close(one[reached], other[reached], rtol=1e-9, atol=1e-12)
    assert (one[reached] != before[reached]).any(dim=1).all()
    with touched.average.applied():
        assert torch.equal(touched.get_parameter(TABLE)[~reached], before[~reached])


def test_weights_of_one_kind_load_into_the_other(both, tmp_path):
    touched, dense, batches = both()
    for source, other in ((touched, dense), (dense, touched)):
        source.train_step(batches[0])
        source.save_weights(tmp_path / "weights.model")
        other.load_weights(tmp_path / "weights.model")
        scores = [model.eval()(batches[1])["logit"] for model in (source, other)]
        assert torch.equal(*scores)
        source.train()


def test_bf16_and_dropout_of_features(build, make_batch):
    changes = specs("touched")
    changes["feature_specs"][0]["dropout"] = 0.4
    model, dataset = build("DIN_MM_tiny", precision="bf16", **changes)
    before = model.get_parameter(TABLE).detach().clone()
    model.train()
    batch = make_batch(dataset.splits["train"], range(64))
    model.train_step(batch)
    moved = (model.get_parameter(TABLE).detach() != before).any(dim=1)
    assert 0 < moved.sum() < looked_up([batch]).sum()  # a missing id is padding
    assert not moved[0]
    assert not model.get_parameter(TABLE)[0].any()


def test_auto_by_the_number_of_rows(build, monkeypatch, caplog):
    assert touched_parameters(build("DIN_MM_tiny")[0]) == []
    monkeypatch.setattr(kinds, "AUTO_ROWS", 500)
    with caplog.at_level("INFO"):
        model, _ = build("DIN_MM_tiny")
    assert [len(p) for p in touched_parameters(model)] == [1001]
    assert all(part in caplog.text for part in ("'item_id'", "1,001", "touched"))
    assert touched_parameters(build("DIN_MM_tiny", **specs("dense"))[0]) == []
    # With what touched rows do not have, tables stay dense.
    assert touched_parameters(build("DIN_MM_tiny", optimizer="rmsprop")[0]) == []
    with monkeypatch.context() as patch:
        cls = type(model)
        patch.setattr(cls, "train_step", lambda self, batch: super(cls, self).train_step(batch), raising=False)
        assert touched_parameters(build("DIN_MM_tiny")[0]) == []
        assert len(touched_parameters(build("DIN_MM_tiny", **specs("touched"))[0])) == 3
    rowwise, _ = build("DIN_MM_tiny", optimizer="rmsprop", table_optimizer="rowwise_adagrad")
    assert rowwise.optimizer.param_groups[-1]["rule"] == "rowwise_adagrad"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({**specs("touched"), "compile": True}, "compile"),
        ({**specs("touched"), "optimizer": "rmsprop"}, "rmsprop"),
        (specs("sharded"), "sharded"),
        ({"feature_specs": [{"name": MODAL, "table": "touched"}]}, "frozen"),
        ({"feature_specs": [{"name": "likes_level", "type": "numeric", "table": "touched"}]}, "numeric"),
        ({"table_optimizer": "lion"}, "lion"),
    ],
)
def test_what_touched_tables_do_not_take_is_refused(build, settings, named):
    with raises_naming(ConfigError, named):
        build("DIN_MM_tiny", **settings)


@pytest.mark.slow
def test_touched_tables_learn_the_planted_signal_as_dense_ones_do(tmp_path):
    """Best validation AUC of three seeds each; the signal alone reaches 0.7 or more."""
    means = {}
    for kind in ("dense", "touched"):
        scores = []
        for seed in (1, 2, 3):
            settings = {"model_root": str(tmp_path / kind), "verbose": 0, "seed": seed, "record": False}
            run = Experiment.load("DIN_MM_tiny", ROOT, **settings, **specs(kind)).fit()
            scores.append(run.valid["AUC"])
        means[kind] = sum(scores) / 3
    assert means["touched"] > 0.65
    assert abs(means["touched"] - means["dense"]) < 0.01, means


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "model_zoo").glob("*.py")))
def test_every_model_trains_with_touched_tables(build, make_batch, float64, name, monkeypatch):
    """Its gradients are those of dense tables, and a step goes through."""
    found = []
    for rows in (1, 10**9):
        monkeypatch.setattr(kinds, "AUTO_ROWS", rows)
        # LightFM has no hidden layer.
        model, dataset = build(f"{name}_tiny", **({} if name == "LightFM" else {"net_dropout": 0.0}))
        model = model.double().train()
        batch = make_batch(dataset.splits["train"], range(20))
        torch.manual_seed(3)
        backward(model, batch)
        sparse = [id(p) for p in touched_parameters(model)]
        assert [id(p) for p in model.parameters() if p.grad is not None and p.grad.is_sparse] == sparse
        assert bool(sparse) == (rows == 1)
        found.append({n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None})
        model.optimizer.zero_grad()
        assert model.train_step(batch).isfinite()
    assert found[0].keys() == found[1].keys()
    for parameter, gradient in found[1].items():
        torch.testing.assert_close(found[0][parameter], gradient, rtol=1e-8, atol=1e-10, msg=parameter)
