"""Values against annotations, and the strings that FuxiCTR would evaluate."""

import pickle
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fuxictr_mm import checking
from fuxictr_mm.checking import SettingsError, check_call, describe_type, matches, unknown_key
from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.errors import ConfigError
from tests.errors import raises_naming


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (3, int, True),
        (True, int, False),
        (3.0, int, False),
        (3, float, True),
        (True, float, False),
        ("1e-3", float, False),
        (1, bool, False),
        (None, float | None, True),
        ("x", float | str | None, True),
        ([1, 2], Sequence[int], True),
        ((1, 2), Sequence[int], True),
        ([1, 2], tuple[int, ...], True),
        ([1, "2"], Sequence[int], False),
        ("12", Sequence[str], False),
        ({"AUC": 1}, dict[str, float], True),
        ({"AUC": "1"}, dict[str, float], False),
        ("v1", Literal["v1", "v2"], True),
        (None, Literal["v1"] | None, True),
        ([1, "a"], typing.List, True),  # noqa: UP006
        ("a", typing.List, False),  # noqa: UP006
        ([64, 0], HiddenUnits, False),
        (1, Dropout, False),
        (float("nan"), Dropout, False),
        (object(), Any, True),
        (ConfigError("x"), ConfigError, True),  # any class
        (3, ConfigError, False),
    ],
)
def test_matches(value, annotation, fits):
    assert matches(value, annotation) is fits


def test_describe():
    assert describe_type(Sequence[int]) == "a list of integers"
    assert describe_type(Any) == "anything"
    assert describe_type(dict[str, int | float]) == "a mapping of names to numbers"
    assert describe_type(Literal["a", "b"]) == "one of 'a', 'b'"
    assert describe_type(Annotated[float, Field(gt=0, le=1)] | None) == "a number > 0 and <= 1 or null"


ENCODERS = (r"layers\.\w+", r"nn\.\w+")
INITIALIZERS = (r"nn\.init\.\w+_", r"partial")


@pytest.mark.parametrize(
    "text",
    [
        "layers.MaskedAveragePooling()",
        "layers.SENet(5, excitation_activation='Sigmoid')",
        "nn.Linear(8, 4, bias=False)",
        " nn.Identity()".strip(),
    ],
)
def test_calls_of_layers_pass(text):
    check_call(text, "feature_encoder", ENCODERS)


@pytest.mark.parametrize("text", ["partial(nn.init.normal_, std=1e-4)", "nn.init.zeros_"])
def test_initializers_pass(text):
    check_call(text, "initializer", INITIALIZERS)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {file}')",
        "nn.Linear(__import__('os').system('touch {file}'), 2)",
        "nn.Linear(2, bias=__import__('os').system('touch {file}'))",
        "nn.Linear(*[open('{file}', 'w')])",
        "nn.Linear(**dict(bias=open('{file}', 'w')))",
        "nn.modules.linear.Linear(2, 2)",
        "nn.Linear(2, 2).to(open('{file}', 'w'))",
        "[open('{file}', 'w') for _ in (1,)]",
        "(lambda: open('{file}', 'w'))()",
        "nn.Linear(2, 2), open('{file}', 'w')",
        "nn.Linear(2, 2) if open('{file}', 'w') else 1",
        "nn.functional.relu(1)",
        "nn.Parameter(1)",
        "nn.init.zeros_(1)",
        "nn.Linear({{[]: 1}})",
        "nn.Linear(x := 2)",
        "nn.Linear(f'{{open(1)}}')",
        "nn.Linear",
        "layers.MaskedAveragePoolng()",
        "import os",
        "a\x00b",
        "",
        "3",
    ],
)
def test_everything_else_is_refused_and_nothing_runs(text, tmp_path):
    file = tmp_path / "ran"
    with raises_naming(ConfigError, "feature 'x': feature_encoder"):
        check_call(text.format(file=file), "feature 'x': feature_encoder", ENCODERS)
    assert not file.exists()


def test_the_nearest_layer_is_suggested():
    with raises_naming(ConfigError, "layers.MaskedAveragePoolng", "'MaskedAveragePooling'"):
        check_call("layers.MaskedAveragePoolng()", "x", ENCODERS)
    with raises_naming(ConfigError, "'nn.Identity'", "nn.Identity()"):
        check_call("nn.Identity", "x", ENCODERS)


def test_a_key_that_was_renamed_is_told():
    assert "fill_na" in unknown_key("na_value", ["fill_na", "name"])
    assert "fill_na" not in unknown_key("na_value", ["name"])


def test_wrong_settings_of_another_process_are_known_here():
    """A process pool pickles errors, as ``benchmarks.zoo`` and searches have them."""
    error = SettingsError("DIN_x", {"epochs": "epochs is 0", "net_dropout": "net_dropout is 2"})
    found = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(found), str(found), found.problems) == (SettingsError, str(error), error.problems)


def test_an_annotation_without_a_hash_is_checked():
    annotation = Annotated[int, []]
    assert matches(1, annotation)
    assert not matches("x", annotation)


def test_equal_annotations_share_what_checks_them(monkeypatch):
    assert matches(1, Annotated[int, "of this test"])
    monkeypatch.setattr(checking, "TypeAdapter", None)
    assert not matches("x", Annotated[int, "of this test"])
