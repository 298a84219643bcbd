"""Keys of every model: names of optimizers, regularizers, and rules on several keys."""

import pytest
import torch

from fuxictr_mm.config import ModelSettings
from fuxictr_mm.config.model import OPTIMIZERS, optimizer_name, parse_regularizer
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.training.optimizers import optimizer_class
from tests.errors import check_names, raises_naming


def test_every_optimizer_of_torch_that_suits_is_known():
    ours = {name.lower() for name in OPTIMIZERS}
    theirs = {
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    # The base class, one that needs a closure, one for sparse gradients only.
    assert {name.lower() for name in theirs} - ours == {"optimizer", "lbfgs", "sparseadam"}
    for name in set(OPTIMIZERS) & theirs:
        assert optimizer_class(name.upper()) is getattr(torch.optim, name)


@pytest.mark.parametrize("name", ["Optimizer", "LBFGS", "SparseAdam", "adan", "lr_scheduler", ""])
def test_others_are_refused_with_a_list(name):
    with raises_naming(ConfigError, "optimizer", f"'{name}'", "Adam"):
        optimizer_name(name)


def test_the_nearest_is_suggested():
    with raises_naming(ConfigError, "'adm'; did you mean 'adam'?"):
        optimizer_name("adm")


def test_an_integer_is_l2():
    assert parse_regularizer(1, "x") == [(2, 1.0)]
    assert parse_regularizer(0, "x") == parse_regularizer(None, "x") == parse_regularizer("l2(0)", "x") == []


@pytest.mark.parametrize(
    "value", ["1e-3", "l3(1)", "l1", "l1(", "l1(a)", "l1(1,2)", "l1_l2(1)", "l2(-1)", -1.0, "l2(nan)"]
)
def test_everything_else_is_refused(value):
    with raises_naming(ConfigError, "net_regularizer is"):
        parse_regularizer(value, "net_regularizer")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "adm"}, ["optimizer", "'adm'", "'adam'"]),
        ({"embedding_regularizer": "l3(1)"}, ["embedding_regularizer is 'l3(1)'"]),
        ({"net_regularizer": -1.0}, ["net_regularizer is -1.0"]),
        ({"optimizer": "adagrad", "weight_decay": 0.1}, ["weight_decay", "Adagrad"]),
        ({"optimizer": "adagrad", "embedding_weight_decay": 0.1}, ["embedding_weight_decay", "Adagrad"]),
        ({"ema": 0.9, "swa_start": 5}, ["ema", "swa_start"]),
        ({"plateau_patience": 3, "reduce_lr_on_plateau": False}, ["plateau_patience is 3"]),
        ({"plateau_patience": 3, "lr_schedule": "cosine"}, ["plateau_patience is 3"]),
        ({"task": "regression", "label_smoothing": 0.1}, ["label_smoothing is 0.1", "regression"]),
        *[({"learning_rate": rate}, ["learning_rate is"]) for rate in (0.0, -1.0, float("nan"), float("inf"))],
    ],
)
def test_rules_on_several_keys(settings, words):
    with raises_naming(ConfigError, *words):
        ModelSettings.of(settings, "X")


def test_a_wrong_value_is_no_other_problem():
    """What a rule reads of other keys may be wrong itself: it is named once, and the rule is left out."""
    wrong = {"optimizer": "adm", "weight_decay": 0.1, "ema": 2, "swa_start": 5, "lr_schedule": "step"}
    with pytest.raises(ConfigError) as caught:
        ModelSettings.of({**wrong, "plateau_patience": 2, "task": "click", "label_smoothing": 0.1}, "X")
    problems = str(caught.value)
    check_names(problems, "'adm'", "ema is 2", "lr_schedule is 'step'", "task is 'click'")
    for key in ("weight_decay", "swa_start", "plateau_patience", "label_smoothing"):
        assert key not in problems
