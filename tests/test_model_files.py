"""Files of models written for FuxiCTR train as they are, or one line says what they cannot take."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.training import loop, scoring
from tests.errors import raises_naming
from tests.fuxictr_models import ALL, CHALLENGE, HISTORY, LINEAR, MODEL, SEQUENCE
from tests.paths import ROOT
from tests.tensors import read_tensors


def test_a_view_that_the_model_cannot_take_is_refused(load_model_file):
    with raises_naming(ConfigError, "batch_view is jagged", "Plain", "challenge", "flat"):
        load_model_file(batch_view="jagged")


def train_and_score(load_model_file, model, **settings):
    run = load_model_file(model, **settings).fit()
    scores = run.predict()
    assert 0 <= scores.min() < scores.max() <= 1
    return run


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (CHALLENGE, {}, ["batch_view: flat", "ValueError", "batch_view: challenge"]),
        (MODEL, {"batch_view": "challenge"}, ["batch_view: challenge", "batch_view: flat"]),
    ],
)
def test_a_view_that_the_file_cannot_take_is_one_line(load_model_file, model, settings, words):
    experiment = load_model_file(model, use_features=ALL, **settings)
    with raises_naming(ConfigError, "Plain_tiny", "Plain.forward", *words):
        experiment.fit()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise RuntimeError('shapes do not fit')", "RuntimeError: shapes do not fit"),
        ("inputs['fs1']", "KeyError: 'fs1'"),
        ("self.dnn", "AttributeError"),
    ],
)
def test_advice_about_the_format_is_given_only_where_it_is_the_cause(load_model_file, line, reason):
    model = MODEL.replace("def forward(self, inputs):\n", f"def forward(self, inputs):\n        {line}\n")
    with raises_naming(ConfigError, reason, "Plain.py, line") as caught:
        load_model_file(model).fit()
    assert "batch_view" not in str(caught.value)


@pytest.mark.parametrize("encoder", ["layers.SENet(5)", "layers.SENet(4)"])
def test_an_encoder_without_pooling_is_named(load_model_file, encoder):
    with raises_naming(ConfigError, "item_tags", encoder):
        load_model_file(feature_specs=[{"name": "item_tags", "feature_encoder": encoder}]).fit()


def test_a_sequence_without_an_encoder_is_named(load_model_file):
    with raises_naming(ConfigError, "item_tags", "feature_encoder: null"):
        load_model_file(feature_specs=[{"name": "item_tags", "feature_encoder": None}]).fit()


def test_a_file_may_take_a_sequence_as_its_encoder_gives_it(load_model_file):
    sequence = {"name": "item_seq", "type": "sequence", "share_embedding": "item_id", "feature_encoder": "nn.Tanh()"}
    fields = {"din_target_field": "item_id", "din_sequence_field": "item_seq"}
    assert load_model_file(SEQUENCE, **{**HISTORY, "feature_specs": [sequence]}, **fields).fit().valid


@pytest.mark.parametrize("reads", [None, "likes_level"])
def test_a_context_column_missing_in_the_item_dict_names_the_setting(load_model_file, reads):
    """The published configurations of such files do not say that their loader adds the column."""
    model = CHALLENGE.replace(
        '        feature_map.features["code"]',
        '        self.width += embedding_dim\n        feature_map.features["code"]',
    )
    if reads:
        model = CHALLENGE.replace(
            "        items = self.embedding", f"        item_dict['{reads}']\n        items = self.embedding"
        )
    with raises_naming(ConfigError, "likes_level", "in_item_dict: True"):
        load_model_file(model, batch_view="challenge", use_features=ALL).fit()


@pytest.mark.parametrize("value", ["float('nan')", "1.5"])
def test_predictions_that_are_no_probabilities_are_one_line(load_model_file, value):
    """As DIN_att6 gives for an empty history: torch's binary cross entropy raises in the loss, not in forward."""
    model = MODEL.replace(".sigmoid()}", f".sigmoid() + {value}}}")
    with raises_naming(DataError, "Plain.forward"):
        load_model_file(model).fit()


def test_labels_and_groups_of_the_challenges_format_need_no_method(load_model_file):
    own = CHALLENGE.index("    def get_labels"), CHALLENGE.index("    def train_step")
    model = CHALLENGE[: own[0]] + CHALLENGE[own[1] :]
    settings = {"batch_view": "challenge", "use_features": ALL, "metrics": ["AUC", "gAUC"], "group_id": "user_id"}
    expected = load_model_file(CHALLENGE, **settings).fit().valid
    assert expected.keys() >= {"AUC", "gAUC"}
    assert load_model_file(model, **settings).fit().valid == expected


def test_a_context_column_in_both_dicts_of_the_challenges_format(load_model_file):
    """As the loader of DIN_att6 gives likes and views levels: of the row, and of every item."""
    model = CHALLENGE.replace(
        '        feature_map.features["code"]',
        '        self.width += embedding_dim\n        feature_map.features["code"]',
    )
    specs = [{"name": "likes_level", "in_item_dict": True}]
    train_and_score(load_model_file, model, batch_view="challenge", use_features=ALL, feature_specs=specs)
    experiment = load_model_file(model, batch_view="challenge", use_features=ALL, feature_specs=specs)
    dataset = experiment.load_dataset({"valid": True})
    loader = experiment.make_loader(dataset.splits["valid"], experiment.build_model(dataset))
    batch_dict, item_dict, mask = next(iter(loader))
    levels, ids = item_dict["likes_level"], item_dict["item_id"]
    assert levels.shape == ids.shape == (mask.shape[0] * (mask.shape[1] + 1),)
    file = pq.read_table(ROOT / "data/tiny_mm/item_feature.parquet", columns=["item_id", "likes_level"]).to_pydict()
    stored = {0: 0, **dict(zip(file["item_id"], file["likes_level"], strict=True))}
    assert levels.tolist() == [stored[i] for i in ids.tolist()]
    assert batch_dict["likes_level"].shape == mask.shape[:1]


@pytest.mark.parametrize("own", [True, False])
def test_the_catalogue_of_the_published_quant_is_in_the_entry_of_the_dataset(load_model_file, tmp_path, own, caplog):
    """A file that takes ``global_item_info`` gets the path; for our models, the log says that it has no effect."""
    path = tmp_path / "dataset_config.yaml"
    entry = "global_item_info: ./data/tiny_mm/item_info.parquet\n    item_info:"
    path.write_text(path.read_text().replace("item_info:", entry, 1))
    if own:
        with caplog.at_level("INFO"):
            Experiment.load("Plain_tiny", tmp_path, model="DIN_MM", attention_dim=8)
        assert "global_item_info" in caplog.text
        return
    model = MODEL.replace("gpu=-1,", "gpu=-1, global_item_info=None,").replace(
        "        self.mlp", "        self.catalogue = global_item_info\n        self.mlp"
    )
    experiment = load_model_file(model)
    assert Path(experiment.build_model(experiment.load_dataset({})).catalogue).is_file()


@pytest.mark.parametrize(
    ("model", "settings", "floor"),
    [
        (MODEL, {}, 0.52),
        (CHALLENGE, {"batch_view": "challenge"}, 0.62),
        (CHALLENGE, {"batch_view": "challenge", "accumulation_steps": 2}, 0.55),
    ],
    ids=["flat", "challenge", "accumulating"],
)
def test_files_written_for_other_code_learn(load_model_file, model, settings, floor):
    """The feature that the model for the challenge adds is no column of the item files."""
    both = {"use_features": [*ALL, "txt_emb_pca8", "img_emb_pca8"], "group_id": "user_id", "metrics": ["AUC", "gAUC"]}
    both |= {"epochs": 4, "batch_size": 256, "embedding_dim": 8, "learning_rate": 3e-3}
    result = train_and_score(load_model_file, model, **both, **settings)
    assert result.valid["AUC"] > floor
    assert 0 < result.valid["gAUC"] < 1


def test_a_file_with_a_sequence_runs(load_model_file):
    run = train_and_score(
        load_model_file, SEQUENCE, din_target_field="item_id", din_sequence_field="item_seq", **HISTORY
    )
    state = read_tensors(run.weights)
    assert torch.equal(
        state["embedding_layer.embedding_layers.item_seq.weight"],
        state["embedding_layer.embedding_layers.item_id.weight"],
    )


def test_a_linear_term_weighs_stored_vectors(load_model_file):
    """FuxiCTR's own stops at the first batch: it stacks numbers and whole vectors."""
    run = train_and_score(load_model_file, LINEAR, use_features=ALL)
    state = read_tensors(run.weights)
    assert state["linear.embedding_layer.embedding_layer.feature_encoders.item_emb_d16.weight"].shape == (1, 16)


def test_the_weights_of_stored_vectors_train_at_the_models_rate_and_add_their_product(load_model_file):
    experiment = load_model_file(LINEAR, use_features=ALL, learning_rate=0.125)
    dataset = experiment.load_dataset({"train": True})
    model = experiment.build_model(dataset)
    weights = model.linear.embedding_layer.embedding_layer.feature_encoders["item_emb_d16"].weight
    group = next(g for g in model.optimizer.param_groups if any(p is weights for p in g["params"]))
    assert group["lr"] == 0.125
    batch = next(iter(experiment.make_loader(dataset.splits["train"], model)))
    inputs = model.get_inputs(batch)
    before = model.linear(inputs)
    moved = batch["item_emb_d16"] @ weights.T
    with torch.no_grad():
        weights.mul_(3)
    torch.testing.assert_close(model.linear(inputs), before + 2 * moved)


def test_older_names_of_arguments_and_losses_are_taken(load_model_file):
    plain = train_and_score(load_model_file, MODEL)
    older = (
        MODEL.replace("flatten_emb=True", "dynamic_emb_dim=True")
        + """
    def add_loss(self, inputs):
        return self.loss_fn(self.forward(inputs)["y_pred"], self.get_labels(inputs), reduction="mean")
"""
    )
    assert train_and_score(load_model_file, older).valid == plain.valid
    assert train_and_score(load_model_file, older, embedding_regularizer=1.0).valid != plain.valid


def test_what_a_file_redefines_in_vain_is_said(load_model_file, caplog):
    experiment = load_model_file(MODEL + "\n    def evaluate_metrics(self, *args):\n        return {}\n")
    experiment.build_model(experiment.load_dataset({}))
    assert "Plain overrides evaluate_metrics" in caplog.text


def test_a_model_that_decides_about_its_checkpoints_itself_does(load_model_file, caplog):
    """As files for the challenge do, to lower the learning rate by a factor of their own."""
    deciding = """
    def checkpoint_and_earlystop(self, logs, min_delta=1e-6):
        self.seen = [*getattr(self, "seen", []), logs["AUC"]]
        if len(self.seen) == 2:
            self._best_metric = logs["AUC"]
            self.save_weights(self.checkpoint)
        else:
            self._stopping_steps += 1
            self.lr_decay(factor=0.5)
        self._stop_training = len(self.seen) == 3
"""
    experiment = load_model_file(MODEL + deciding, epochs=9)
    dataset = experiment.load_dataset({"train": True, "valid": True})
    torch.manual_seed(0)
    model = experiment.build_model(dataset)
    train = experiment.make_loader(dataset.splits["train"], model, shuffle=True, training=True)
    valid = experiment.make_loader(dataset.splits["valid"], model)
    history = loop.fit(model, train, 9, valid)
    assert [entry["AUC"] for entry in history] == model.seen
    assert len(model.seen) == 3
    assert scoring.evaluate(model, valid, ["AUC"])["AUC"] == pytest.approx(model.seen[1])
    assert model.optimizer.param_groups[0]["lr"] == pytest.approx(experiment.config.learning_rate / 4)
    assert "redefines" not in caplog.text


def test_a_function_around_forward_is_called_for_every_batch(load_model_file):
    """As several processes have one, which averages the gradients."""
    experiment = load_model_file()
    dataset = experiment.load_dataset({"valid": True})
    model, calls = experiment.build_model(dataset), []
    alone = model.forward
    model.forward = lambda batch: calls.append(1) or alone(batch)
    loader = experiment.make_loader(dataset.splits["valid"], model, batch_size=500)
    scoring.score(model, loader)
    assert len(calls) == len(loader) > 1
