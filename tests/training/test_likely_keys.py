"""Which setting differs, told from shapes: weights of one setting, loaded into the model of another."""

import pytest

from fuxictr_mm.training.likely_keys import likely_causes

#: Every setting that decides a shape, by experiment id, and what it is set to.
CHANGES = {
    "DIN_tiny": {
        "dnn_hidden_units": [60, 32],
        "attention_hidden_units": [16, 8],
        "attention_hidden_activations": "Dice",
        "attention_dropout": 0.1,
        "net_dropout": 0.0,
        "batch_norm": False,
        "embedding_dim": 8,
    },
    "QIN_tiny": {"num_layers": 3, "num_row": 3, "batch_norm": False, "embedding_dim": 8},
    "Transformer_DCN_tiny": {
        "transformer_layers": 1,
        "dim_feedforward": 24,
        "first_k_cols": 3,
        "concat_max_pool": False,
        "dcn_cross_layers": 2,
        "dcn_hidden_units": [64, 32, 16],
        "mlp_hidden_units": [32],
        "net_dropout": 0.0,
        "batch_norm": True,
        "embedding_dim": 8,
    },
    "Transformer_DCN_Quant_tiny": {
        "codebook_num": 2,
        "num_clusters": 7,
        "top_k": 5,
        "first_k_cols": 3,
        "embedding_dim": 8,
    },
    "DIN_MM_tiny": {
        "embedding_dim": 8,
        "interest": "din",
        "attention_dim": 40,
        "senet": False,
        "senet_reduction": 1,
        "cross": "v2",
        "bilinear": "field_each",
        "dnn_hidden_units": [64],
        "net_dropout": 0.0,
        "batch_norm": False,
    },
    "DIN_CrossAttention_tiny": {
        "num_layers": 1,
        "feedforward_dim": 48,
        "attention_hidden_units": [16],
        "attention_hidden_activations": "Dice",
        "dnn_hidden_units": [64, 32, 16],
        "net_dropout": 0.0,
        "batch_norm": False,
        "embedding_dim": 8,
    },
    "BST_tiny": {
        "num_layers": 2,
        "feedforward_dim": 48,
        "position_dim": 8,
        "max_len": 30,
        "num_outputs": 5,
        "dnn_hidden_units": [64, 16],
        "dnn_activations": "Dice",
        "net_dropout": 0.0,
        "batch_norm": True,
        "embedding_dim": 8,
    },
    "DIEN_tiny": {"dnn_hidden_units": [32], "net_dropout": 0.0, "batch_norm": False, "embedding_dim": 8},
    "MIND_tiny": {
        "num_capsules": 5,
        "dnn_hidden_units": [32],
        "net_dropout": 0.0,
        "batch_norm": False,
        "embedding_dim": 8,
    },
    "SDIM_tiny": {
        "num_hashes": 24,
        "attention_dim": 64,
        "dnn_hidden_units": [32],
        "net_dropout": 0.0,
        "batch_norm": False,
        "embedding_dim": 8,
    },
    "SimCEN_tiny": {"num_layers": 3, "hidden_dim": 24, "batch_norm": False, "embedding_dim": 8},
    "LateFusion_tiny": {
        "attention_hidden_units": [16],
        "attention_hidden_activations": "Dice",
        "dnn_hidden_units": [32],
        "net_dropout": 0.0,
        "batch_norm": False,
        "embedding_dim": 8,
    },
}


@pytest.fixture(scope="module")
def models():
    """Keep the models of experiments, which are only read."""
    return {}


@pytest.fixture
def causes(build, models):
    """Return what is named where weights of other settings are loaded into the model of an experiment."""

    def tell(expid, **settings):
        if expid not in models:
            models[expid] = build(expid)[0]
        model = models[expid]
        own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if "use_features" in settings or "feature_specs" in settings:
            changed = build(expid, **settings)[0]
            found = {name: tuple(tensor.shape) for name, tensor in changed.state_dict().items()}
        else:
            found = model.blueprint.shapes(settings)
        assert own != found
        return likely_causes(own, found, model.blueprint)

    return tell


@pytest.mark.parametrize(("expid", "key"), [(expid, key) for expid, keys in CHANGES.items() for key in keys])
def test_the_setting_is_named_and_no_other(causes, expid, key):
    told = causes(expid, **{key: CHANGES[expid][key]})
    assert [cause.split(" (")[0] for cause in told] == [key]


def test_all_of_several_are_named(causes):
    told = causes("QIN_tiny", **CHANGES["QIN_tiny"])
    assert {cause.split(" (")[0] for cause in told} == set(CHANGES["QIN_tiny"])


@pytest.mark.parametrize(
    ("expid", "keys"),
    [
        ("DIN_tiny", ("batch_norm", "net_dropout", "attention_hidden_units")),
        ("Transformer_DCN_tiny", ("first_k_cols", "concat_max_pool", "mlp_hidden_units")),
        ("BST_tiny", ("position_dim", "num_outputs")),
    ],
)
def test_some_of_several_or_none_are_named_but_no_other(causes, expid, keys):
    told = causes(expid, **{key: CHANGES[expid][key] for key in keys})
    assert {cause.split(" (")[0] for cause in told} == set(keys)


def test_the_tensor_that_tells_it_is_shown(causes):
    assert causes("QIN_tiny", num_row=3) == [
        "num_row (2 here, 3 in the file; qnn.layer.0.linear.0.weight is 256 x 128 here, 384 x 128 in the file)"
    ]
    assert causes("Transformer_DCN_tiny", concat_max_pool=False) == [
        "concat_max_pool (True here, False in the file; transformer_encoder.out_linear.weight is only here)"
    ]


def test_features_and_their_sizes(causes):
    fewer = causes("DIN_tiny", use_features=["likes_level", "item_id", "item_tags", "item_emb_d16"])
    assert fewer == ["use_features (only here: views_level)"]
    specs = [{"name": "likes_level", "vocab_size": 12}]
    assert causes("DIN_tiny", feature_specs=specs, dnn_hidden_units=[60, 32]) == [
        "vocab_size of feature 'likes_level' (11 here, 12 in the file)",
        "dnn_hidden_units ([64, 32] here, [60, 32] in the file; "
        "dnn.mlp.0.weight is 64 x 128 here, 60 x 128 in the file)",
    ]


def test_without_the_settings_of_a_model_features_are_compared():
    own, found = ({"a.embedding_layers.item_id.weight": (9, n), "b.feature_encoders.v.weight": (4, n)} for n in (4, 8))
    assert likely_causes(own, found) == [
        "width of the vectors 'v' (4 here, 8 in the file)",
        "embedding_dim (4 here, 8 in the file)",
    ]
    found["a.embedding_layers.other.weight"] = own["a.embedding_layers.other.weight"] = (3, 2)
    assert "embedding_dim of feature 'item_id' (4 here, 8 in the file)" in likely_causes(own, found)


def test_what_no_setting_explains_is_not_explained(build):
    model, _ = build("DIN_tiny")
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert likely_causes(own, {**own, "other.weight": (3, 4)}, model.blueprint) == []
    assert likely_causes(own, {**own, "dnn.mlp.0.weight": (64, 77)}, model.blueprint) == []


def test_strange_names_do_no_harm():
    assert likely_causes({"": ()}, {"7": (), "embedding_layers.x.weight": (3,)}) == [
        "use_features (only in the file: x)"
    ]
    assert likely_causes({"": ()}, {"7": ()}) == []


def test_strange_numbers_do_no_harm(build):
    model, _ = build("QIN_tiny")
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    strange = {"qnn.99999999.weight": (3, 4), f"qnn.{'9' * 5000}.x": (), "qnn.².weight": (0, 10**12)}
    assert likely_causes(own, {**own, **strange}, model.blueprint) == []
