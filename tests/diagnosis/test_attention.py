"""Hooks on attention modules, against the modules themselves; statistics of weights, against loops."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuxictr.pytorch import layers as fuxictr_layers

from fuxictr_mm.data.loaders import gather
from fuxictr_mm.diagnosis import attention
from fuxictr_mm.diagnosis.attention import RecordedAttention, describe, uniform, weight_statistics
from fuxictr_mm.diagnosis.attention_hooks import find_attention
from fuxictr_mm.diagnosis.scorer import Cost
from fuxictr_mm.layers import DINAttention, Jagged, MultiHeadTargetAttention
from fuxictr_mm.layers.transformer import Buckets, JaggedTransformerLayer


class Holder(torch.nn.Module):
    """A model with one attention."""

    def __init__(self, attention):
        super().__init__()
        self.inside = torch.nn.ModuleList([attention])


def batch(lengths=(3, 0, 1, 5), width=8):
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    stored = torch.randn(7, width, generator=generator)
    index = torch.randint(7, (int(offsets[-1]),), generator=generator)
    return torch.randn(len(lengths), width, generator=generator), Jagged(stored, offsets, index)


def hooks_of(module):
    (hooks,) = find_attention(Holder(module.eval()))
    assert hooks.name == "inside.0"
    return hooks


def record(hooks, *arguments, **named):
    recorded = RecordedAttention(hooks)
    with recorded.recording():
        output = hooks.module(*arguments, **named)
    return recorded, output


OURS = {
    "heads": lambda: MultiHeadTargetAttention(8, 12, 3),
    "one head": lambda: MultiHeadTargetAttention(8, 12, 1),
    "sparse": lambda: MultiHeadTargetAttention(8, 12, 3, sparse=True),
    "plain": lambda: MultiHeadTargetAttention(8, num_heads=2, use_qkvo=False),
    "din": lambda: DINAttention(8, [4]),
    "din softmax": lambda: DINAttention(8, [4], use_softmax=True, hidden_activations="Dice"),
}


def test_calls_with_one_history_are_queries_of_its_rows():
    torch.manual_seed(0)
    module = OURS["heads"]().eval()
    hooks, (target, history) = hooks_of(module), batch()
    alone = [record(hooks, query, history)[0].statistics for query in (target, -target)]
    recorded = RecordedAttention(hooks)
    with recorded.recording():
        for query in (target, -target):
            module(query, history)
        module(*batch((4, 2)))
    rows = describe(recorded)["rows"]
    assert rows == 4  # those with two keys or more
    expected = torch.stack([one.entropy_ratio for one in alone]).mean(dim=0)
    torch.testing.assert_close(recorded.statistics.entropy_ratio[:4], expected, equal_nan=True)


@pytest.mark.parametrize("kind", OURS)
def test_weights_are_those_of_the_module(kind):
    torch.manual_seed(0)
    module = OURS[kind]()
    target, history = batch()
    plain = module.eval()(target, history)
    recorded, output = record(hooks_of(module), target, history)
    assert torch.equal(output, plain)
    if isinstance(module, MultiHeadTargetAttention):
        weights = module(target, history, return_weights=True)[1]
    else:
        rows = torch.cat([target[history.rows], history.values, target[history.rows] - history.values,
                          target[history.rows] * history.values], dim=1)  # fmt: skip
        weights = history.with_values(module.attention_layer(rows))
        weights = weights.softmax() if module.use_softmax else weights
    padded, keys = weights.to_padded(side="right")
    expected = weight_statistics(padded.transpose(1, 2).unsqueeze(2), keys, keys.new_ones(4, 1))
    for ours, theirs in zip(recorded.statistics, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-6)
    entry = describe(recorded)
    assert [b["name"] for b in entry["by_length"]] == ["3-5"]
    assert len(entry["per_head"]) == getattr(module, "num_heads", 1)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


@pytest.mark.parametrize("kind", OURS)
def test_heads_are_zeroed_and_their_norms_measured(kind):
    """The output is the sum of what the heads add, so each can be told apart by silencing the others."""
    torch.manual_seed(0)
    module = OURS[kind]()
    target, history = batch()
    hooks = hooks_of(module)
    whole = module(target, history)
    heads = list(range(hooks.num_heads))
    alone = []
    for head in heads:
        with hooks.zeroed([h for h in heads if h != head]):
            alone.append(module(target, history))
    torch.testing.assert_close(sum(alone), whole)
    with hooks.zeroed(heads):
        assert not module(target, history).any()
    expected = torch.stack([output.norm(dim=1).double().mean() for output in alone])
    torch.testing.assert_close(torch.from_numpy(record(hooks, target, history)[0].output_norms), expected)
    torch.testing.assert_close(module(target, history), whole)


@pytest.mark.parametrize("kind", OURS)
def test_uniform_weights_make_a_mean(kind):
    torch.manual_seed(0)
    module = OURS[kind]()
    target, history = batch()
    hooks = hooks_of(module)
    with hooks.on_weights(uniform):
        found = module(target, history)
    recorded = []
    with hooks.on_weights(lambda weights, keys, queries: recorded.append((weights, keys))):
        module(target, history)
    ((weights, keys),) = recorded
    mean = uniform(weights, keys, None).squeeze(2).transpose(1, 2)[keys]
    expected = module._pool(history, mean) if isinstance(module, MultiHeadTargetAttention) else (
        history.with_values(mean * history.values).sum()
    )  # fmt: skip
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, module(target, history))


def test_an_encoder_is_read_bucket_by_bucket():
    torch.manual_seed(0)
    layer = JaggedTransformerLayer(8, 2, 16, 0.0).eval()
    _, tokens = batch((3, 1, 6, 2, 9))
    buckets = Buckets.of(tokens.offsets, limits=[2, 4])
    hooks = hooks_of(layer)
    recorded, output = record(hooks, tokens.values, buckets)
    torch.testing.assert_close(output, layer(tokens.values, buckets))
    assert sorted(recorded.statistics.lengths.tolist()) == [1, 2, 3, 6, 9]
    for row, length in enumerate(recorded.statistics.lengths.tolist()):
        if length == 1:
            continue
        members = tokens.values[tokens.rows == tokens.lengths.tolist().index(length)]
        attended = torch.nn.MultiheadAttention.forward(
            layer.self_attn, *[members[None]] * 3, need_weights=True, average_attn_weights=False
        )[1][0]
        entropy = -(attended * attended.log()).sum(-1).mean(-1) / torch.tensor(length).log()
        torch.testing.assert_close(recorded.statistics.entropy_ratio[row], entropy.double(), rtol=1e-5, atol=1e-6)
    with hooks.zeroed([0, 1]):
        silent = layer(tokens.values, buckets)
    normed = layer.norm1(tokens.values + layer.self_attn.out_proj.bias)
    expected = layer.norm2(normed + layer.linear2(layer.linear1(normed).relu()))
    torch.testing.assert_close(silent, expected)
    with hooks.on_weights(uniform):
        layer(tokens.values, buckets)


@pytest.mark.parametrize("kind", ["heads", "one head", "din", "din softmax"])
def test_layers_of_fuxictr_are_read_as_ours(kind):
    """The same weights, the same history padded: the same statistics, and the same function with even weights."""
    torch.manual_seed(0)
    ours = OURS[kind]().eval()
    if isinstance(ours, DINAttention):
        softmax = ours.use_softmax
        theirs = fuxictr_layers.DIN_Attention(8, [4], "Dice" if softmax else "ReLU", use_softmax=softmax)
    else:
        theirs = fuxictr_layers.MultiHeadTargetAttention(8, 12, ours.num_heads)
    theirs.load_state_dict(ours.state_dict())
    target, history = batch((3, 2, 1, 5))
    padded, mask = history.to_padded(7)
    both = hooks_of(ours), hooks_of(theirs)
    calls = (target, history), (target, padded, mask.float())
    (first, _), (second, _) = (record(hooks, *call) for hooks, call in zip(both, calls, strict=True))
    for a, b in zip(first.statistics, second.statistics, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(first.output_norms), torch.from_numpy(second.output_norms))
    changed = []
    for hooks, call in zip(both, calls, strict=True):
        with hooks.on_weights(uniform):
            changed.append(hooks.module(*call))
    torch.testing.assert_close(*changed)


@pytest.mark.parametrize(
    ("expid", "names"),
    [
        ("DIN_CrossAttention_tiny", ["attention_layers", "encoder.0.attention", "encoder.1.attention"]),
        ("BST_tiny", ["encoder.0"]),
        ("LateFusion_tiny", ["attention.ids", "attention.txt_emb_pca8", "attention.img_emb_pca8"]),
        ("MIND_tiny", []),
    ],
)
def test_models_of_the_zoo(build, expid, names):
    model, dataset = build(expid)
    assert [hooks.name for hooks in find_attention(model)] == names
    table = dataset.splits["valid"]
    recorded = [RecordedAttention(hooks) for hooks in find_attention(model.eval())]
    for each in recorded:
        with each.recording():
            model(gather(table, torch.arange(20)))
        assert each.statistics.entropy_ratio.nanmean() <= 1 + 1e-6


def test_entropy_and_divergence_by_loops():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 3, 2, 6, generator=generator, dtype=torch.float64)
    lengths = [6, 2, 1, 0, 4]
    keys = torch.arange(6) < torch.tensor(lengths)[:, None]
    queries = torch.tensor([[True, True], [True, False], [True, True], [True, True], [False, True]])
    weights[4, 1] = 0.0  # a head that says nothing in one row
    found = weight_statistics(weights, keys, queries)
    assert found.lengths.tolist() == lengths

    def entropy(p):
        return -sum(x * math.log(x) for x in p if x > 0)

    for row, length in enumerate(lengths):
        shares = {}
        for head in range(3):
            for query in range(2):
                size = weights[row, head, query, :length].abs()
                if queries[row, query] and length >= 2 and size.sum() > 0:
                    shares[head, query] = (size / size.sum()).tolist()
            mine = [p for (h, _), p in shares.items() if h == head]
            if not mine:
                assert math.isnan(found.entropy_ratio[row, head])
                continue
            expected = np.mean([entropy(p) / math.log(length) for p in mine])
            assert float(found.entropy_ratio[row, head]) == pytest.approx(expected)
            assert float(found.largest[row, head]) == pytest.approx(np.mean([max(p) for p in mine]))
        for pair, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
            both = [q for q in range(2) if (i, q) in shares and (j, q) in shares]
            found_bits = float(found.divergence[row, pair])
            if not both:
                assert math.isnan(found_bits)
                continue
            bits = [
                (entropy([(a + b) / 2 for a, b in zip(shares[i, q], shares[j, q], strict=True)])
                 - (entropy(shares[i, q]) + entropy(shares[j, q])) / 2) / math.log(2)
                for q in both
            ]  # fmt: skip
            assert found_bits == pytest.approx(np.mean(bits), abs=1e-12)
    assert found.all_zero[4].tolist() == [0, 1, 0]
    assert math.isnan(found.all_zero[3, 0])


def test_a_large_batch_is_computed_in_chunks(monkeypatch):
    weights, keys = torch.rand(7, 2, 3, 3), torch.rand(7, 3) < 0.7
    whole = weight_statistics(weights, keys, keys)
    monkeypatch.setattr(attention, "CHUNK_ENTRIES", 40)
    for ours, theirs in zip(weight_statistics(weights, keys, keys), whole, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_uniform_weights_keep_their_sum():
    weights, keys = torch.rand(4, 2, 1, 5), torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [0] * 5, [1, 0, 0, 0, 0]]).bool()
    flat = uniform(weights, keys, None)
    torch.testing.assert_close(flat.sum(-1), (weights * keys[:, None, None]).sum(-1))
    assert all(len(flat[row, head, 0, keys[row]].unique()) <= 1 for row in range(4) for head in range(2))
    assert not flat[~keys[:, None, None].expand_as(flat)].any()


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_each_set_of_heads_is_scored_once(heads):
    """Of two heads, one without the other is the other alone; the AUC drop is the number of the pass here."""
    recorded, _ = record(hooks_of(MultiHeadTargetAttention(8, 12, heads)), *batch())
    changes = iter(range(100))
    scorer = SimpleNamespace(score=lambda: next(changes), cost=lambda change: Cost(-1.0 - change, 0.0))
    found = attention.measure(scorer, [recorded])
    assert next(changes) + 1 == 1 + attention.number_of_passes([recorded.hooks])
    first, *others = found["heads"][0]["heads"]
    assert (heads == 2) == (first["alone_auc_lost"] == (others or [first])[0]["removed_auc_lost"])
    harmful = {f.subject for f in attention.findings(found) if f.code == "harmful"}
    name = recorded.hooks.name
    assert harmful == {name, *(f"{name} head {head}" for head in range(heads) if heads > 1)}
