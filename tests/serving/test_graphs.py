"""The fold of a model, a part per user and a part per candidate, is its logits of rows."""

import copy
import errno
import os

import numpy as np
import onnxruntime
import pytest
import torch
from fuxictr.pytorch.layers import MLP_Block

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import search_user
from fuxictr_mm.serving.graph_files import write_graphs
from fuxictr_mm.serving.graphs import Traced, dim_named, graphs_of
from fuxictr_mm.serving.item_rows import given_fields, item_rows, stored_codes
from fuxictr_mm.serving.rewrites import fix_slopes, fuse_batch_norm, fuse_projections
from fuxictr_mm.serving.user_graphs import AttentionGraph, CandidateGraph, UserGraph, attention_layers, has_fold
from tests.paths import ROOT

FOLDED = (
    "BST", "DHEN", "DIEN", "DIN", "DIN_CrossAttention", "DIN_MM", "DMF", "DMGIN", "ESMM", "EST", "ETA", "HSTU",
    "HyFormer", "INFNet", "LONGER", "LateFusion", "MIND", "MUSE", "OneTrans", "QIN", "RankMixer", "SDIM", "SEMINAR",
    "SIM", "SimCEN", "TWIN", "TokenMixerLarge",
)  # fmt: skip
CASES = [
    *((f"{name}_tiny", {}) for name in FOLDED),
    ("BST_tiny", {"num_outputs": 1, "num_heads": 1}),
    ("BST_tiny", {"num_outputs": 30}),  # more than there are
    ("DMF_tiny", {"num_heads": 2, "num_tiers": 4}),
    ("EST_tiny", {"num_layers": 3, "num_heads": 1, "top_k": 2}),
    ("ETA_tiny", {"hash_bits": 2, "short_len": 0, "num_heads": 4}),  # most distances are equal
    ("HSTU_tiny", {"num_heads": 4, "num_layers": 3, "max_len": 6}),
    ("HyFormer_tiny", {"num_queries": 2, "num_tokens": 6, "num_heads": 2, "num_layers": 3}),
    ("INFNet_v2_tiny", {"num_layers": 3}),
    ("LONGER_tiny", {"num_layers": 1, "num_cls": 2, "group_size": 1}),
    ("LONGER_tiny", {"num_layers": 3, "num_heads": 2, "group_size": 4, "num_recent": 2, "max_len": 10}),
    ("MUSE_tiny", {"form": "code", "num_heads": 2, "num_tiers": 4}),
    ("OneTrans_tiny", {"num_layers": 1}),
    ("OneTrans_tiny", {"num_layers": 3, "num_heads": 4, "last_len": 2}),
    ("OneTrans_tiny", {"num_layers": 3, "max_len": 5, "last_len": 9}),
    ("SEMINAR_tiny", {"code_weights": [1.0, 0.5], "num_heads": 2}),
    ("SIM_tiny", {"top_k": 30, "short_len": 30}),  # more than there are
    ("SIM_hard_tiny", {}),
    ("SIM_hard_tiny", {"top_k": 1, "num_heads": 2}),
    ("TWIN_tiny", {"cross_features": [], "num_heads": 1, "top_k": 3}),
    ("DIN_MM_tiny", {"interest": "din", "din_use_softmax": True}),
    ("DIN_MM_tiny", {"interest": "mean", "cross": "v2", "bilinear": "field_all"}),
    ("DIN_MM_tiny", {"sparse_attention": True, "num_heads": 1}),
    ("DIN_MM_tiny", {"num_heads": 1, "attention_dim": 8}),  # smaller than the items
    ("DIN_MM_tiny", {"senet": False, "interest": "mean"}),
    ("DIN_MM_tiny", {"factor_dim": 5}),
    ("DIN_MM_tiny", {"factor_dim": 5, "factor_history": True}),
    ("DIN_MM_tiny", {"factor_dim": 5, "factor_history": True, "interest": "mean", "cross": "v2"}),
]


ATTENTION = {
    "DHEN", "DIN", "DIN_CrossAttention", "DIN_MM", "ESMM", "HyFormer", "LateFusion", "QIN", "RankMixer", "SimCEN",
    "TokenMixerLarge",
}  # fmt: skip


def context_of(dataset):
    """Return the context of one row."""
    return {name: column[:1] for name, column in dataset.splits["valid"].context.items()}


def perturbed(model):
    """Perturb all parameters, in float64, and return the generator."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.double().parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    model.eval()
    return generator


def users(generator, context, candidates, lengths):
    """Yield histories of some lengths, each with a batch that has it in the row of every candidate."""
    count = len(candidates)
    for length in lengths:
        history = torch.randint(1, 1001, (length,), generator=generator)
        repeated = Jagged(history.repeat(count), torch.arange(count + 1) * length)
        yield history, Batch({name: column.expand(count) for name, column in context.items()}, candidates, repeated)


@pytest.mark.parametrize("name", FOLDED)
def test_shares_of_the_attention(build, name):
    model, dataset = build(f"{name}_tiny")
    model.eval()
    assert bool(attention_layers(model)) == (name in ATTENTION)
    if name not in ATTENTION:
        return
    context = context_of(dataset)
    for length in (0, 1, 5):
        history = torch.arange(1, 1 + length)
        one = Batch(context, torch.tensor([20]), Jagged(history, torch.tensor([0, length])))
        with torch.no_grad():
            state = model.user_state(model.embed_context(one), model.embed_items(history), history)
            shares = AttentionGraph(copy.deepcopy(model))(model.embed_items(torch.arange(20, 23)), state)
        assert shares.shape == (3, length)
        assert (shares >= 0).all()
        assert (shares.sum(dim=1) <= 1 + 1e-5).all()
        if length == 1 and name != "QIN":  # whose weights may all be 0
            torch.testing.assert_close(shares, torch.ones(3, 1))


@pytest.mark.parametrize(("expid", "settings"), CASES, ids=[f"{e}-{s}" for e, s in CASES])
def test_candidates_are_rows(build, float64, expid, settings):
    model, dataset = build(expid, **settings)
    assert has_fold(model)
    context = context_of(dataset)
    candidates = torch.arange(20, 29)
    for history, rows in users(perturbed(model), context, candidates, (0, 1, 2, 20)):
        length = len(history)
        one = Batch(context, candidates[:1], Jagged(history, torch.tensor([0, length])))
        with torch.no_grad():
            state = model.user_state(model.embed_context(one), model.embed_items(history), history)
            columns = model.candidate_columns(candidates)
            found = model.score_candidates(model.embed_items(candidates), *columns, *state)
            expected = model(rows)["logit"]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            fused = fuse_projections(copy.deepcopy(model))
            state = fused.user_state(fused.embed_context(one), fused.embed_items(history), history)
            found = fused.score_candidates(fused.embed_items(candidates), *columns, *state)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_items_of_equal_content(build, float64):
    """Of these, candidates and rows find the same neighbours, the newest."""
    model, dataset = build("EST_tiny", top_k=2)
    contents = model.items[model.content]
    contents[1:] = contents[1].clone()
    context, candidates = context_of(dataset), torch.arange(20, 23)
    for history, rows in users(perturbed(model), context, candidates, (5,)):
        one = Batch(context, candidates[:1], Jagged(history, torch.tensor([0, 5])))
        with torch.no_grad():
            state = model.user_state(model.embed_context(one), model.embed_items(history), history)
            found = model.score_candidates(model.embed_items(candidates), *state)
            torch.testing.assert_close(found, model(rows)["logit"], rtol=1e-9, atol=1e-9)


#: Of an embedding and of ids, with every statistic.
SIMILARITIES = [
    {"name": "near", "type": "similarity", "of": "txt_emb_pca8", "statistics": ["mean", "max", "newest_2"]},
    {"name": "bins", "type": "similarity", "of": "txt_emb_pca8", "statistics": ["histogram_5", "newest_1"]},
    {"name": "same", "type": "similarity", "of": "item_tags", "statistics": ["mean", "max", "newest_2", "histogram_3"]},
]
SIMILAR = [*((f"{name}_tiny", {}) for name in (*FOLDED, "LightFM")), ("DIN_MM_tiny", {"cross": "v2", "factor_dim": 5})]
FAST = ("DIN_MM_tiny", "MIND_tiny", "QIN_tiny", "SIM_hard_tiny")


@pytest.mark.parametrize(
    ("expid", "settings"),
    [pytest.param(*case, marks=() if case[0] in FAST and not case[1] else pytest.mark.slow) for case in SIMILAR],
    ids=[f"{e}-{s}" for e, s in SIMILAR],
)
def test_similarities_of_candidates_are_those_of_rows(build, float64, expid, settings):
    config = Experiment.load(expid, ROOT).config
    used = [*names, "near", "bins", "same"] if (names := config.to_dict()["use_features"]) else None
    columns = [*SIMILARITIES[:1], *config.dataset.feature_cols, *SIMILARITIES[1:]]
    model, dataset = build(expid, feature_cols=columns, use_features=used, **settings)
    generator = perturbed(model)
    assert has_fold(model)
    context = context_of(dataset)
    tables = model.embedding_layer.embedding_layer.embedding_layers
    given = [tables[name](context[name].long()).detach() for name in given_fields(model)]
    folded = copy.deepcopy(model)
    user, scores = UserGraph(folded), CandidateGraph(folded)
    candidates, codes = torch.arange(20, 29), stored_codes(model)
    for history, rows in users(generator, context, candidates, (0, 1, 2, 30)):
        with torch.no_grad():
            state = user(item_rows(model, history), [codes[history]], given)
            found = scores(item_rows(model, candidates), state, [codes[candidates]])
            torch.testing.assert_close(found, model(rows)["y_pred"], rtol=1e-5, atol=1e-5)


def test_a_state_that_reads_similarities_is_no_part_of_a_user(build, monkeypatch):
    columns = [*Experiment.load("DIN_tiny", ROOT).config.dataset.feature_cols, SIMILARITIES[0]]
    model, _ = build("DIN_tiny", feature_cols=columns)
    model.eval()
    assert graphs_of(model).keys() == {"rows", "user", "candidates", "attention"}
    for others in (lambda context: (2 * context,), lambda context: (context, context.sum(dim=1)), lambda context: ()):
        monkeypatch.setattr(type(model), "user_state", lambda self, context, history, ids, o=others: o(context))
        assert graphs_of(model).keys() == {"rows"}

    def asserted(self, *given):
        raise AssertionError  # as torch's attention does

    monkeypatch.setattr(type(model), "user_state", asserted)
    assert graphs_of(model).keys() == {"rows"}

    def interrupted(self, *given):
        raise MemoryError

    monkeypatch.setattr(type(model), "user_state", interrupted)
    with pytest.raises(MemoryError):  # nothing that the shapes explain
        graphs_of(model)


def test_the_random_numbers_of_the_caller_stay(build, monkeypatch):
    columns = [*Experiment.load("DIN_tiny", ROOT).config.dataset.feature_cols, SIMILARITIES[0]]
    model, _ = build("DIN_tiny", feature_cols=columns)
    model.eval()
    before = torch.random.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds the GPUs"))
    graphs_of(model)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("state", "score", "is_folded"),
    [
        (lambda context: (context,), lambda context, count: context.expand(count, -1), True),
        (lambda context: (context,), lambda context, count: context.repeat(count, 1), False),
        (lambda context: (context,), lambda context, count: context.view(1, -1).expand(count, -1), False),
        (lambda context: (context,), lambda context, count: context[:1].expand(count, -1), False),
        (lambda context: (context.relu(),), lambda context, count: context.expand(count, -1), False),
        (lambda context: (context, context.nan_to_num()), lambda _, shared, count: shared.expand(count, -1), False),
    ],
    ids=["expand", "repeat", "view", "first", "relu", "shared"],
)
def test_a_fold_that_takes_the_context_for_that_of_all_candidates_is_left_out(
    build, monkeypatch, state, score, is_folded
):
    columns = [*Experiment.load("DIN_tiny", ROOT).config.dataset.feature_cols, *SIMILARITIES]
    model, _ = build("DIN_tiny", feature_cols=columns)
    model.eval()
    one = torch.linspace(-1, 1, model.context_dim)

    def logits(self, batch):
        return self.embed(batch).context @ one

    def user_state(self, context, history, ids):
        return state(context)

    def score_candidates(self, candidates, *given):
        return score(*given, candidates.shape[0]) @ one

    for name, method in (("logits", logits), ("user_state", user_state), ("score_candidates", score_candidates)):
        monkeypatch.setattr(type(model), name, method)
    assert ("user" in graphs_of(model)) == is_folded


def test_a_second_layer_whose_input_depends_on_the_candidate_is_no_part_of_a_user(build):
    model, _ = build("BST_tiny", num_layers=2)
    assert not has_fold(model)


def test_batch_norm_becomes_a_part_of_the_weights(build, float64):
    model, _ = build("DIN_MM_tiny")
    model.double().eval()
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    for norm in norms:
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.5, 2, generator=generator)
    fused = fuse_batch_norm(copy.deepcopy(model))
    assert norms
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in fused.modules())
    fields = torch.randn(5, model.dnn.mlp[0].in_features, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(fused.dnn(fields), model.dnn(fields), rtol=1e-9, atol=1e-9)


def test_slopes_become_constants(build):
    model, _ = build("QIN_tiny")
    for layer in model.qnn.activation:
        torch.nn.init.uniform_(layer.weight)
    fixed = fix_slopes(copy.deepcopy(model).eval())
    assert not any(isinstance(module, torch.nn.PReLU) for module in fixed.modules())
    rows = torch.randn(9, model.qnn.fc.in_features)
    torch.testing.assert_close(fixed.qnn(rows), model.eval().qnn(rows))


def test_projections_become_their_sum(build):
    model, _ = build("QIN_tiny", num_row=4)
    for layer in model.qnn.layer:
        torch.nn.init.normal_(layer.linear[0].bias)
    rows = torch.randn(9, model.qnn.fc.in_features)
    expected = model.eval().qnn(rows)
    found = graphs_of(model)["rows"].module.model.qnn
    torch.testing.assert_close(found(rows), expected)
    size = rows.shape[1]
    assert [layer.linear[0].weight.shape for layer in found.layer] == [(size, size)] * len(model.qnn.layer)
    assert model.qnn.layer[0].linear[0].weight.shape == (4 * size, size)


class Towers(torch.nn.Module):
    """Batch norm over fields, behind a linear layer that is also read for itself, and without statistics."""

    def __init__(self):
        super().__init__()
        self.fields = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.shared = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.dnn = MLP_Block(4, [3], batch_norm=True)
        self.dnn.mlp[1] = torch.nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x):
        rows = self.fields(x).mean(dim=1)
        return self.dnn(self.shared(rows) + self.shared[0](rows))


def test_batch_norm_of_other_layers_stays():
    torch.manual_seed(0)
    model = Towers().eval()
    for norm in (model.fields[1], model.shared[1]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 2)
    x = torch.randn(5, 4, 4)
    torch.testing.assert_close(fuse_batch_norm(copy.deepcopy(model))(x), model(x))


def test_a_small_epsilon_stays_in_the_graph(tmp_path):
    """The pooling of FuxiCTR divides a sequence without entries by it."""

    class Pooling(torch.nn.Module):
        def forward(self, values):
            return values.sum(1) / ((values != 0).sum(1).float() + 1e-12)

    rows = dim_named("rows")
    traced = Traced(Pooling(), (torch.rand(3, 4),), ["values"], ({0: rows},), ["mean"])
    write_graphs({"rows": traced}, tmp_path, "onnx", "Pooling")
    session = onnxruntime.InferenceSession(tmp_path / "rows.onnx")
    (found,) = session.run(None, {"values": np.array([[0, 0, 0, 0], [1, 3, 0, 0]], dtype=np.float32)})
    np.testing.assert_allclose(found, [0, 2])


def test_a_full_disk_is_no_fault_of_the_model(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.export, "export", full)
    traced = Traced(torch.nn.Identity(), (torch.rand(3, 4),), ["values"], (), ["same"])
    with pytest.raises(OSError, match="No space left") as caught:
        write_graphs({"rows": traced}, tmp_path, "onnx", "Identity")
    assert caught.value.errno == errno.ENOSPC


def test_a_graph_is_written_by_python(tmp_path, monkeypatch):
    """On a full disk, a write is an error; one of torch's writer of files ends the process."""
    save = torch.export.save
    kept = []

    def save_to(program, target):
        kept.append(target)
        save(program, target)

    monkeypatch.setattr(torch.export, "save", save_to)
    traced = Traced(torch.nn.Linear(4, 4), (torch.rand(3, 4),), ["values"], (), ["same"])
    written = write_graphs({"rows": traced}, tmp_path, "pt2", "Linear")
    assert not isinstance(kept[0], (str, os.PathLike))
    assert torch.export.load(tmp_path / written.files["rows"]).module()(torch.ones(3, 4)).shape == (3, 4)


def test_the_memory_of_a_graph_is_counted_by_pairs(tmp_path):
    """An array of all pairs counts as it is, one of candidates alone little, and a parameter not at all."""

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(4096, 8, 1024))

        def forward(self, candidates, state):
            pairs = candidates.unsqueeze(1) * state
            return pairs.repeat(1, 1, 3).sum(dim=(1, 2)) + (candidates @ self.weight[0]).sum(dim=1)

    shapes = ({0: dim_named("candidates")}, {0: dim_named("length")})
    traced = Traced(Attention(), (torch.rand(6, 8), torch.rand(5, 8)), ["candidates", "state_0"], shapes, ["x"])
    assert write_graphs({"candidates": traced}, tmp_path, "pt2", "Attention").numbers_per_pair == {"candidates": 24}


@pytest.mark.parametrize("is_fused", [False, True])  # ONNX has no attention without an array of all pairs
def test_the_longest_history_of_a_user_is_bounded_by_memory(tmp_path, is_fused):
    class SelfAttention(torch.nn.Module):
        def forward(self, history):
            heads = history.unflatten(1, (4, 2)).transpose(0, 1)
            if is_fused:
                return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
            return (heads @ heads.transpose(1, 2)).relu() @ heads

    shapes = ({0: dim_named("length")},)
    traced = Traced(SelfAttention(), (torch.rand(5, 8),), ["history"], shapes, ["state_0"])
    assert write_graphs({"user": traced}, tmp_path, "pt2", "SelfAttention").longest_history == 2896  # 4 L L = 2^25


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_the_search_of_a_graph_finds_the_same(tmp_path, format):
    """Of equal scores the newest, whatever the length; with fewer entries than are asked for, all of them."""

    class Search(torch.nn.Module):
        def forward(self, scores):
            return search_user(scores, 4)

    shapes = ({0: dim_named("rows"), 1: dim_named("length")},)
    traced = Traced(Search(), (torch.rand(3, 5),), ["scores"], shapes, ["best", "found"])
    write_graphs({"rows": traced}, tmp_path, format, "Search")
    if format == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "rows.onnx")
        graph = lambda scores: session.run(None, {"scores": scores.numpy()})  # noqa: E731
    else:
        graph = torch.export.load(tmp_path / "rows.pt2").module()
    for length in (0, 1, 3, 4, 5, 300):
        scores = torch.randint(3, (7, length), generator=torch.Generator().manual_seed(length)).float()
        best, found = map(np.asarray, graph(scores))
        expected_best, expected = search_user(scores, 4)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.sort(best), expected_best.sort().values)
