"""The base class: embedding once per distinct item, losses, what is and what is not a parameter."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.embedding_model import distinct_items
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.jagged import Jagged
from tests.errors import raises_naming
from tests.paths import ROOT

MODAL = ["txt_emb_pca8", "img_emb_pca8"]
TRAINED = {"feature_specs": [{"name": MODAL, "freeze_emb": False}]}


@settings(max_examples=60, deadline=None)
@given(target=st.lists(st.integers(0, 19), min_size=1, max_size=8), history=st.lists(st.integers(0, 19), max_size=30))
def test_distinct_items_are_those_of_unique(target, history):
    values = torch.tensor(history, dtype=torch.int32)
    offsets = torch.tensor([0] * len(target) + [len(history)])
    batch = Batch({}, torch.tensor(target, dtype=torch.int32), Jagged(values, offsets))
    expected, inverse = torch.unique(torch.tensor(target + history), return_inverse=True)
    for num_items in (20, 100_000):  # by flags, by sorting
        distinct, place, history_place = distinct_items(batch, num_items)
        assert torch.equal(distinct, expected)
        assert torch.equal(torch.cat([place, history_place]), inverse)


@pytest.mark.parametrize(("expid", "given"), [("DIN_tiny", {}), ("DIN_MM_tiny", {}), ("DIN_MM_tiny", TRAINED)])
def test_embed_equals_embedding_padded_ids(build, make_batch, float64, expid, given):
    model, dataset = build(expid, **given)
    model = model.double().eval()
    batch = make_batch(dataset.splits["valid"], [3, 1, 4, 1], [2, 0, 5, 1])
    e = model.embed(batch)
    padded, mask = batch.history.to_padded(7)
    ids = torch.cat([padded.long(), batch.target.long().unsqueeze(1)], dim=1).flatten()
    columns = {name: ids if name == "item_id" else dataset.items[name][ids] for name in model.item_fields}
    dense = model.embedding_layer(columns, flatten_emb=True).view(4, 8, -1)
    torch.testing.assert_close(e.target, dense[:, -1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(e.history.values, dense[:, :-1][mask.bool()], rtol=1e-12, atol=1e-12)
    context = model.embedding_layer({name: batch.context[name] for name in model.context_fields}, flatten_emb=True)
    assert torch.equal(e.context, context)
    assert e.history.distinct.shape[0] == torch.unique(torch.cat([batch.history.values, batch.target])).numel()
    assert (e.context.shape[1], e.target.shape[1]) == (model.context_dim, model.item_dim)


def test_items_are_filled_up_in_bfloat16(build, make_batch, monkeypatch, float64):
    model, dataset = build("DIN_MM_tiny")
    batch = make_batch(dataset.splits["train"], range(40))
    model = model.double().eval()
    items = distinct_items(batch, model.items.num_items)[0].numel()
    assert items % 64
    assert model.embed(batch).history.distinct.shape[0] == items
    with torch.autocast("cpu", torch.bfloat16):
        assert model.embed(batch).history.distinct.shape[0] == items + -items % 64
        monkeypatch.setattr(type(model), "fills_items", False)
        assert model.embed(batch).history.distinct.shape[0] == items
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)  # in float64, to compare
    found = []
    for fills in (True, False):
        monkeypatch.setattr(type(model), "fills_items", fills)
        model.zero_grad()
        logit = model(batch)["logit"]
        logit.sum().backward()
        found.append([logit, *(p.grad for p in model.parameters())])
    for filled, expected in zip(*found, strict=True):
        torch.testing.assert_close(filled, expected, rtol=1e-9, atol=1e-12)


def test_frozen_tables_are_no_parameters(build):
    model, dataset = build("DIN_MM_tiny")
    parameters = dict(model.named_parameters())
    sizes = {dataset.items[name].shape for name in MODAL}
    assert not any(p.shape in sizes for p in parameters.values())
    assert not any(v.shape in sizes for v in model.state_dict().values())
    assert not any(key.startswith("items") for key in model.state_dict())


def test_a_table_that_trains(build, make_batch):
    model, dataset = build("DIN_MM_tiny", embedding_regularizer=0.5, **TRAINED)
    for name in MODAL:
        key = f"item_vectors.{name}.weight"
        assert key in model.state_dict()
        assert torch.equal(model.get_parameter(key), dataset.items[name])
    before = model.item_vectors[MODAL[0]].weight.detach().clone()
    stored = dataset.items[MODAL[0]].clone()
    model.train()
    model.train_step(make_batch(dataset.splits["train"], range(64)))
    moved = (model.item_vectors[MODAL[0]].weight != before).any(dim=1)
    assert moved.sum() > 900  # the regularizer reaches every row, as it does in FuxiCTR's embeddings
    assert torch.equal(dataset.items[MODAL[0]], stored)


def labels():
    return torch.tensor([[0.0], [1.0], [1.0], [0.0]])


def outputs(model, *logits):
    logit = torch.tensor(logits, dtype=torch.float64).view(-1, 1).requires_grad_()
    return logit, {"logit": logit, "y_pred": model.output_activation(logit)}


def test_the_loss_on_logits_is_that_of_the_sigmoid(build):
    model, _ = build("DIN_tiny")
    _, returned = outputs(model, -3.0, 2.0, 0.1, 5.0)
    loss = model.add_loss(returned, labels().double())
    torch.testing.assert_close(loss, F.binary_cross_entropy(returned["y_pred"], labels().double()))
    by_hand = sum(torch.log1p(torch.tensor(x).exp()) for x in (-3.0, -2.0, -0.1, 5.0)) / 4
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_the_loss_does_not_saturate(build):
    model, _ = build("DIN_tiny")
    published, _ = build("DIN_tiny", loss_from="probability")
    for which, gradient in ((model, [0.25, -0.25, 0.0, 0.0]), (published, [0.0, 0.0, 0.0, 0.0])):
        logit, returned = outputs(which, 100.0, -100.0, 100.0, -100.0)
        returned["y_pred"] = torch.sigmoid(logit.float())
        target = labels() if which is published else labels().double()
        (found,) = torch.autograd.grad(which.add_loss(returned, target), logit)
        torch.testing.assert_close(found.flatten(), torch.tensor(gradient, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_published_loss_is_fuxictrs(build, make_batch):
    from fuxictr.pytorch.torch_utils import get_loss

    model, dataset = build("DIN_tiny", loss_from="probability")
    model.eval()
    batch = make_batch(dataset.splits["valid"], range(9))
    returned = model(batch)
    target = model.get_labels(batch).float()
    expected = get_loss("binary_crossentropy")(returned["y_pred"], target, reduction="mean")
    assert model.add_loss(returned, target) == expected
    assert torch.equal(returned["y_pred"], torch.sigmoid(returned["logit"]))


def test_fuxictrs_whole_loss_is_ours(build, make_batch):
    model, dataset = build("DIN_tiny", embedding_regularizer=0.1, net_regularizer="l1(0.01)")
    model.eval()
    batch = make_batch(dataset.splits["valid"], range(9))
    returned, target = model(batch), model.get_labels(batch).float()
    whole = model.compute_loss(returned, target)
    torch.testing.assert_close(whole, model.add_loss(returned, target) + model.penalty.value())


def test_regression(build, make_batch):
    model, dataset = build("DIN_tiny")
    settings = {"task": "regression", "loss": "mse_loss", "model_root": str(model.model_dir), "embedding_dim": 16}
    regression = type(model)(dataset.feature_map, **settings)
    batch = make_batch(dataset.splits["valid"], range(9))
    regression.eval()
    returned = regression(batch)
    assert torch.equal(returned["y_pred"], returned["logit"])
    expected = ((returned["logit"] - batch.label.view(-1, 1)) ** 2).mean()
    torch.testing.assert_close(regression.add_loss(returned, batch.label.view(-1, 1)), expected)


@pytest.mark.parametrize(
    ("task", "loss"), [("binary_classification", "mse_loss"), ("regression", "binary_crossentropy")]
)
def test_a_loss_that_would_be_ignored_is_refused(build, task, loss):
    with raises_naming(ConfigError, "task", task, "loss", loss):
        build("DIN_tiny", task=task, loss=loss)


def test_an_absent_gpu_is_not_the_cpu(build):
    model, dataset = build("DIN_tiny")
    with raises_naming(ConfigError, "gpu", "99"):
        type(model)(dataset.feature_map, gpu=99)


@pytest.mark.parametrize("encoder", ["layers.SENet(5)", "layers.SENet(4)"])
def test_an_encoder_without_pooling(build, encoder):
    with raises_naming(ConfigError, "item_tags", "SENet"):
        build("DIN_tiny", feature_specs=[{"name": "item_tags", "feature_encoder": encoder}])


@pytest.mark.parametrize("encoder", ["layers.SENet(5)", "nn.Unflatten(1, (2, -1))"])
def test_an_encoder_of_an_id_keeps_one_embedding_per_row(build, encoder):
    with raises_naming(ConfigError, "item_id", encoder.partition("(")[0]):
        build("DIN_tiny", feature_specs=[{"name": "item_id", "feature_encoder": encoder}])
    build("DIN_tiny", feature_specs=[{"name": "item_id", "feature_encoder": "nn.Tanh()"}])


def test_an_encoder_with_wrong_arguments(build):
    with raises_naming(ConfigError, "MaskedAveragePooling"):
        build("DIN_tiny", feature_specs=[{"name": "item_tags", "feature_encoder": "layers.MaskedAveragePooling(3)"}])


def test_no_item_feature(build):
    with raises_naming(ConfigError, "source: item"):
        build("DIN_tiny", use_features=["likes_level"])


COMPUTED = [
    {"name": "length", "type": "length"},
    {"name": "bins", "type": "length", "vocab_size": 4},
    {"name": "similarity", "type": "similarity", "of": "txt_emb_pca8", "statistics": ["mean", "histogram_3"]},
]


@pytest.fixture
def computed(make_batch, tmp_path):
    """Return what builds a model with all computed features, and a batch with histories of given lengths."""

    def make(expid, lengths=(0, 1, 2, 3, 7, 20), **settings):
        settings = {"model_root": str(tmp_path), "verbose": 0, **settings}
        known = Experiment.load(expid, ROOT).config.to_dict()
        used = known["use_features"] or ["likes_level", "views_level", "item_id", "item_tags", "item_emb_d16"]
        experiment = Experiment.load(
            expid, ROOT, **settings, feature_cols=[*known["feature_cols"], *COMPUTED],
            use_features=[*used, *(column["name"] for column in COMPUTED)],
        )  # fmt: skip
        dataset = experiment.load_dataset({"train": True, "valid": True})
        torch.manual_seed(1)
        model = experiment.build_model(dataset)
        table = dataset.splits["train"]
        rows = (table.history_offsets.diff() >= 20).nonzero().flatten()[: len(lengths)]
        return model, make_batch(table, rows, lengths)

    return make


def test_computed_features_in_closed_form(computed):
    model, batch = computed("DIN_MM_tiny")
    context = model.with_computed(batch).context
    torch.testing.assert_close(context["length"], torch.tensor([1.0, 2, 3, 4, 8, 21]).log())
    assert context["bins"].tolist() == [1, 2, 2, 3, 3, 3]
    table = model.items["txt_emb_pca8"]
    for row, history in enumerate(batch.history.values.split(batch.history.lengths.tolist())):
        cosines = torch.cosine_similarity(table[batch.target[row]], table[history.long()])
        expected = cosines.mean() if len(history) else torch.tensor(0.0)
        torch.testing.assert_close(context["similarity"][row, 0], expected)
        assert context["similarity"][row, 1:].expm1().sum().round() == len(history)
    assert {"length", "bins", "similarity"} <= set(model.context_fields)
    assert model.embed_context(batch).shape == (6, model.context_dim)


@pytest.mark.parametrize("expid", [f"{path.stem}_tiny" for path in sorted((ROOT / "model_zoo").glob("*.py"))])
def test_every_model_takes_computed_features_and_dropout(computed, expid):
    specs = [{"name": ["length", "bins", "similarity", "item_id", "likes_level"], "dropout": 0.5}]
    model, batch = computed(expid, max_len=20, feature_specs=specs)
    model.train()
    model.train_step(batch)
    model.eval()
    scores = model(batch)["logit"]
    assert scores.isfinite().all()
    # The length that counts is that of the whole history, whatever a model cuts off.
    longer = model.with_computed(batch)
    assert torch.equal(longer.context["length"], batch.history.lengths.float().log1p())
    assert torch.equal(model(longer)["logit"], scores)


def test_dropout_makes_values_padding_for_the_whole_batch(build, make_batch):
    names = ["item_id", "item_tags", "txt_emb_pca8", "likes_level"]
    model, dataset = build("DIN_MM_tiny", feature_specs=[{"name": names, "dropout": 0.4}])
    batch = make_batch(dataset.splits["train"], range(500))
    seen = {}

    def remember(_, inputs):
        seen.update(inputs[0])

    model.embedding_layer.register_forward_pre_hook(remember)
    model.train()
    e = model.embed(batch)
    for name in names:
        values = seen[name].reshape(len(seen[name]), -1)
        assert (values == 0).all(dim=1).float().mean() == pytest.approx(0.4, abs=0.1)
    assert (seen["img_emb_pca8"] != 0).any(dim=1).all()
    assert e.history.distinct.shape[0] == seen["item_id"].shape[0]  # target and histories share what is dropped
    model.eval()
    model.embed(batch)
    distinct, _, _ = distinct_items(batch, model.items.num_items)
    assert torch.equal(seen["item_id"], distinct)
    assert torch.equal(seen["likes_level"], batch.context["likes_level"])


@pytest.mark.parametrize("expid", ["DIN_tiny", "DIN_MM_factors_tiny", "LightFM_tiny"])
def test_dropped_and_unseen_items_share_a_trained_embedding(build, make_batch, expid):
    factors = {"factor_dim": 3} if expid == "DIN_MM_factors_tiny" else {}
    specs = [{"name": "item_id", "dropout": 0.3, "unknown": "trained"}]
    model, dataset = build(expid.replace("_factors", ""), feature_specs=specs, **factors)
    batch = make_batch(dataset.splits["train"], range(300))
    model.train()
    for _ in range(2):
        model.train_step(batch)
    shared = model.unknown_item.embedding.detach()
    assert (shared != 0).any()
    first = sum(model.field_dims[n] for n in model.item_fields[: model.item_fields.index("item_id")])
    columns = slice(first, first + model.field_dims["item_id"])
    ids = torch.arange(model.items.num_items)
    dropped = (model.embed_items(ids[model.unknown_item.seen])[:, columns] == shared).all(dim=1)
    assert dropped.float().mean() == pytest.approx(0.3, abs=0.1)
    model.unknown_item.seen[:] = False
    model.feature_dropout["item_id"] = 0.999
    model.train_step(batch)
    assert model.unknown_item.seen[1:].float().mean() < 0.05  # a dropped id has not been trained
    model.feature_dropout.clear()
    model.train_step(batch)
    model.eval()
    seen = torch.zeros(len(ids), dtype=torch.bool)
    seen[batch.target.long()] = True
    seen[batch.history.values.long()] = True
    unseen = ~seen | (ids == 0)  # what serving gives an item that the export does not hold
    embedded, table = model.embed_items(ids), model.embedding_layer.embedding_layer.embedding_layers["item_id"].weight
    assert 10 < unseen.sum() < len(ids) - 10
    assert torch.equal((embedded[:, columns] == model.unknown_item.embedding).all(dim=1), unseen)
    assert torch.equal(embedded[~unseen][:, columns], table[~unseen])
    # The other fields are those of the item.
    model.unknown_item = None
    others = torch.ones(embedded.shape[1], dtype=torch.bool)
    others[columns] = False
    assert torch.equal(embedded[:, others], model.embed_items(ids)[:, others])


def test_a_missing_modality_is_zero_after_its_projection(build, make_batch):
    model, dataset = build("DIN_MM_tiny", feature_specs=[{"name": MODAL, "dropout": 0.999, "freeze_emb": False}])
    model.train()
    e = model.embed(make_batch(dataset.splits["train"], range(9)))
    first = sum(model.field_dims[name] for name in model.item_fields[: model.item_fields.index(MODAL[0])])
    columns = e.history.distinct[:, first : first + 2 * model.embedding_dim]
    assert (columns == 0).all(dim=1).float().mean() > 0.9


def test_label_smoothing_in_closed_form(build):
    model, _ = build("DIN_tiny", label_smoothing=0.2)
    logit, returned = outputs(model, -3.0, 2.0, 0.1, 5.0)
    plain = F.binary_cross_entropy_with_logits(logit, labels().double())
    smooth = F.binary_cross_entropy_with_logits(logit, torch.tensor([[0.1], [0.9], [0.9], [0.1]], dtype=torch.float64))
    torch.testing.assert_close(model.train().add_loss(returned, labels().double()), smooth)
    torch.testing.assert_close(model.eval().add_loss(returned, labels().double()), plain)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"plateau_patience": 2, "lr_schedule": "cosine"}, "plateau_patience is 2"),
        ({"ema": 0.9, "swa_start": 5}, "swa_start"),
        ({"plateau_patience": 2, "reduce_lr_on_plateau": False}, "plateau_patience is 2"),
        ({"label_smoothing": 0.1, "task": "regression", "loss": "mse_loss"}, "label_smoothing is 0.1"),
        ({"optimizer": "adagrad", "weight_decay": 0.1}, "weight_decay: Adagrad"),
    ],
)
def test_a_setting_without_a_meaning_is_refused(build, settings, value):
    with pytest.raises(ConfigError, match=value):
        build("DIN_tiny", **settings)


def test_the_groups_of_parameters(build):
    model, _ = build("DIN_MM_tiny", embedding_learning_rate=1e-2, embedding_weight_decay=0.1, learning_rate=1e-3)
    rest, tables = model.optimizer.param_groups
    assert (rest["lr"], rest["weight_decay"], tables["lr"], tables["weight_decay"]) == (1e-3, 0, 1e-2, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)].split(".")[-2] for p in tables["params"]}
    assert found == {"likes_level", "views_level", "item_id", "item_tags"}


def test_fused_attention_has_no_effect_on_a_cpu(build):
    model, _ = build("DIN_MM_tiny", fused_attention=True)
    assert not model.attention.uses_kernels
