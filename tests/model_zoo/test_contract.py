"""What holds for every model in the zoo."""

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fuxictr_mm.checking import matches, model_schema
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.registry import load_model_class
from tests.errors import raises_naming
from tests.tensors import assert_equal_tensors

ZOO = Path(__file__).resolve().parents[2] / "model_zoo"
NAMES = sorted(path.stem for path in ZOO.glob("*.py"))
#: ``test_DIN_MM.py`` compares the logits of these with padded formulas, row by row.
COMPARED = [
    *({"interest": value} for value in ("din", "mean")),
    {"senet": False},
    *({"cross": value} for value in ("v1", "v2", "mix")),
    *({"bilinear": value} for value in ("field_all", "field_each", "field_interaction")),
]
SWITCHES = [
    *COMPARED,
    {"sparse_attention": True},
    {"senet_activation": "ReLU"},
    {"interest": "din", "senet": False, "cross": "mix", "bilinear": "field_all", "batch_norm": False},
    {"attention_dim": 8, "num_heads": 2, "sparse_attention": True, "cross": "v2", "bilinear": "field_each"},
]
CASES = [(f"{name}_tiny", {}) for name in NAMES] + [("DIN_MM_tiny", switch) for switch in SWITCHES]
IDS = [f"{expid}-{settings}" for expid, settings in CASES]
every_model = pytest.mark.parametrize(("expid", "settings"), CASES, ids=IDS)
logits_of_every_model = pytest.mark.parametrize(
    ("expid", "settings"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] in COMPARED)) for case in CASES],
    ids=IDS,
)


@pytest.fixture
def model_and_table(request, build):
    def make(expid, settings, **more):
        model, dataset = build(expid, **settings, **more)
        return model, dataset.splits["train"]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_file_class_and_paper_agree(name):
    model_class = load_model_class(name, ZOO)
    assert model_class.__name__ == name
    tree = ast.parse((ZOO / f"{name}.py").read_text(encoding="utf-8"))
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)].count(name) == 1
    doc = inspect.getdoc(model_class)
    first = doc.splitlines()[0]
    assert re.search(r"https?://\S+", doc)
    assert re.match(r".+\. \w[\w-]+( and \w+| et al\.)?, .*\b(19|20)\d\d\b", first), first
    described = set(re.findall(r"^(\w+) : ", doc, re.MULTILINE))
    own = {p for p in inspect.signature(model_class).parameters if p != "params"}
    assert described == own


@logits_of_every_model
def test_finite_logits(model_and_table, make_batch, expid, settings):
    model, table = model_and_table(expid, settings)
    model.eval()
    for rows in (1, 7):
        batch = make_batch(table, range(rows))
        empty = replace(batch, history=Jagged(batch.history.values[:0], torch.zeros(rows + 1, dtype=torch.int64)))
        for given in (batch, empty):
            returned = model(given)
            assert returned["logit"].shape == returned["y_pred"].shape == (rows, 1)
            assert returned["logit"].isfinite().all()
            assert ((returned["y_pred"] >= 0) & (returned["y_pred"] <= 1)).all()


@every_model
def test_what_trains_gets_a_gradient_and_moves(model_and_table, make_batch, expid, settings):
    model, table = model_and_table(expid, settings, embedding_regularizer=None, net_regularizer=None)
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    frozen = {name: buffer.clone() for name, buffer in model.items.named_buffers()}
    assert frozen
    reached = set()
    for start in range(0, 256, 64):
        model.add_loss(model(batch := make_batch(table, range(start, start + 64))), batch.label.view(-1, 1)).backward()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == set(before)
    model.optimizer.zero_grad()
    for start in range(0, 256, 64):
        model.train_step(make_batch(table, range(start, start + 64)))
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    assert all(torch.equal(buffer, frozen[name]) for name, buffer in model.items.named_buffers())
    trained = {id(p) for group in model.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def disturb(model):
    """Give every parameter and statistic a value of ordinary size: the initial embeddings are nearly zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


@logits_of_every_model
def test_rows_do_not_see_each_other(model_and_table, make_batch, float64, expid, settings):
    model, table = model_and_table(expid, settings)
    disturb(model.double()).eval()
    rows = torch.arange(40, 57)
    logits = model(make_batch(table, rows))["logit"]
    assert logits.dtype == torch.float64
    assert logits.unique().numel() > 10
    alone = torch.cat([model(make_batch(table, [row]))["logit"] for row in rows])
    torch.testing.assert_close(alone, logits, rtol=1e-10, atol=1e-10)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    permuted = model(make_batch(table, rows[order]))["logit"]
    torch.testing.assert_close(permuted, logits[order], rtol=1e-10, atol=1e-10)


@logits_of_every_model
def test_the_history_matters(model_and_table, make_batch, float64, expid, settings):
    model, table = model_and_table(expid, settings)
    disturb(model.double()).eval()
    batch = make_batch(table, range(5))
    other = Batch(batch.context, batch.target, batch.history.with_values(batch.history.values.flip(0)))
    assert not torch.equal(model(batch)["logit"], model(other)["logit"])


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_half_precision_trains_what_one_in_float32_does(model_and_table, make_batch, name):
    """Autocast mixes dtypes, and keeps what it has cast without a gradient."""
    more = {"embedding_regularizer": None, "net_regularizer": None, "loss_from": "probability"}
    model, table = model_and_table(f"{name}_tiny", {}, **more)
    batch, reached = make_batch(table, range(16)), {}
    for precision in ("fp32", "bf16"):
        model.precision = precision
        loss = model.train().add_loss(model(batch), batch.label.float().view(-1, 1))
        assert loss.dtype == torch.float32
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        reached[precision] = [g is not None and bool(g.any()) for g in gradients]
    assert reached["bf16"] == reached["fp32"]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "def add_loss" in (ZOO / f"{name}.py").read_text()] + ["DIN_MM"]
)
def test_nothing_of_training_is_left_in_an_evaluation(model_and_table, make_batch, name):
    model, table = model_and_table(f"{name}_tiny", {}, **({"factor_dim": 4} if name == "DIN_MM" else {}))
    batch = make_batch(table, range(16))
    model.train()(batch)  # a batch whose loss is never asked for
    returned, label = model.eval()(batch), batch.label.float().view(-1, 1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(returned["logit"], label)
    assert torch.equal(model.add_loss(returned, label), expected)


# Of the switches the last two, which have a part of each kind between them.
@pytest.mark.parametrize(("expid", "settings"), [*CASES[: len(NAMES)], *CASES[-2:]])
def test_one_seed_one_result(model_and_table, make_batch, expid, settings):
    def train(seed):
        model, table = model_and_table(expid, settings, seed=seed)
        model.train()
        model.train_step(make_batch(table, range(64)))
        return model.state_dict()

    first, again, other = train(3), train(3), train(4)
    assert_equal_tensors(again, first)
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_parameter_is_refused(build, name):
    parameters = list(inspect.signature(load_model_class(name, ZOO)).parameters.values())
    for parameter in parameters:
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY:
            with raises_naming(ConfigError, f"'{parameter.name}z'", f"'{parameter.name}'"):
                build(f"{name}_tiny", **{f"{parameter.name}z": 1})


@pytest.mark.parametrize("name", NAMES)
def test_every_own_parameter_is_typed_and_has_a_default(name):
    for parameter in inspect.signature(load_model_class(name, ZOO)).parameters.values():
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY:
            assert parameter.annotation is not parameter.empty
            assert parameter.default is not parameter.empty


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_range(name):
    """The signature refuses what is below it, so that no constructor needs to check."""
    for key, annotation in model_schema(load_model_class(name)).items():
        if key in ("gpu", "quantizer_seed"):
            continue
        if matches(1, annotation) or matches(0.5, annotation):
            assert not matches(-1, annotation), key
        if matches([1], annotation):
            assert not matches([0], annotation), key
