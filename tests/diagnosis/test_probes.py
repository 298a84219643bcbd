"""What the hooks on attention modules read and change, against the modules themselves."""

import pytest
import torch
from fuxictr.pytorch import layers as fuxictr_layers

from fuxictr_mm.data.loaders import gather
from fuxictr_mm.diagnosis.attention import Watched, describe_entropy, even, find_probes, look_at
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


def probe_of(module):
    (probe,) = find_probes(Holder(module.eval()))
    assert probe.name == "inside.0"
    return probe


def watch(probe, *arguments, **named):
    watched = Watched(probe)
    with watched.watching():
        output = probe.module(*arguments, **named)
    return watched, output


OURS = {
    "heads": lambda: MultiHeadTargetAttention(8, 12, 3),
    "one head": lambda: MultiHeadTargetAttention(8, 12, 1),
    "sparse": lambda: MultiHeadTargetAttention(8, 12, 3, sparse=True),
    "plain": lambda: MultiHeadTargetAttention(8, num_heads=2, use_qkvo=False),
    "din": lambda: DINAttention(8, [4]),
    "din softmax": lambda: DINAttention(8, [4], use_softmax=True, hidden_activations="Dice"),
}


@pytest.mark.parametrize("kind", OURS)
def test_weights_are_those_of_the_module(kind):
    torch.manual_seed(0)
    module = OURS[kind]()
    target, history = batch()
    plain = module.eval()(target, history)
    watched, output = watch(probe_of(module), target, history)
    assert torch.equal(output, plain)
    if isinstance(module, MultiHeadTargetAttention):
        weights = module(target, history, return_weights=True)[1]
    else:
        rows = torch.cat([target[history.rows], history.values, target[history.rows] - history.values,
                          target[history.rows] * history.values], dim=1)  # fmt: skip
        weights = history.with_values(module.attention_layer(rows))
        weights = weights.softmax() if module.use_softmax else weights
    padded, keys = weights.to_padded(side="right")
    expected = look_at(padded.transpose(1, 2).unsqueeze(2), keys, keys.new_ones(4, 1))
    for ours, theirs in zip(watched.statistics, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-6)
    entry = describe_entropy(watched)
    assert [b["name"] for b in entry["by_length"]] == ["3-5"]
    assert len(entry["per_head"]) == getattr(module, "num_heads", 1)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


@pytest.mark.parametrize("kind", OURS)
def test_heads_are_silenced_and_their_lengths_measured(kind):
    """The output is the sum of what the heads add, so each can be told apart by silencing the others."""
    torch.manual_seed(0)
    module = OURS[kind]()
    target, history = batch()
    probe = probe_of(module)
    whole = module(target, history)
    heads = list(range(probe.num_heads))
    alone = []
    for head in heads:
        with probe.silenced([h for h in heads if h != head]):
            alone.append(module(target, history))
    torch.testing.assert_close(sum(alone), whole)
    with probe.silenced(heads):
        assert not module(target, history).any()
    expected = torch.stack([output.norm(dim=1).double().mean() for output in alone])
    torch.testing.assert_close(torch.from_numpy(watch(probe, target, history)[0].output_norms), expected)
    torch.testing.assert_close(module(target, history), whole)


@pytest.mark.parametrize("kind", OURS)
def test_even_weights_make_a_mean(kind):
    torch.manual_seed(0)
    module = OURS[kind]()
    target, history = batch()
    probe = probe_of(module)
    with probe.weighing(lambda weights, keys, queries: even(weights, keys)):
        found = module(target, history)
    watched = []
    with probe.weighing(lambda weights, keys, queries: watched.append((weights, keys))):
        module(target, history)
    ((weights, keys),) = watched
    mean = even(weights, keys).squeeze(2).transpose(1, 2)[keys]
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
    probe = probe_of(layer)
    watched, output = watch(probe, tokens.values, buckets)
    torch.testing.assert_close(output, layer(tokens.values, buckets))
    assert sorted(watched.statistics.lengths.tolist()) == [1, 2, 3, 6, 9]
    for row, length in enumerate(watched.statistics.lengths.tolist()):
        if length == 1:
            continue
        members = tokens.values[tokens.rows == tokens.lengths.tolist().index(length)]
        attended = torch.nn.MultiheadAttention.forward(
            layer.self_attn, *[members[None]] * 3, need_weights=True, average_attn_weights=False
        )[1][0]
        entropy = -(attended * attended.log()).sum(-1).mean(-1) / torch.tensor(length).log()
        torch.testing.assert_close(watched.statistics.entropy_ratio[row], entropy.double(), rtol=1e-5, atol=1e-6)
    with probe.silenced([0, 1]):
        silent = layer(tokens.values, buckets)
    normed = layer.norm1(tokens.values + layer.self_attn.out_proj.bias)
    expected = layer.norm2(normed + layer.linear2(layer.linear1(normed).relu()))
    torch.testing.assert_close(silent, expected)
    with probe.weighing(lambda weights, keys, queries: even(weights, keys)):
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
    probes = probe_of(ours), probe_of(theirs)
    calls = (target, history), (target, padded, mask.float())
    (first, _), (second, _) = (watch(probe, *call) for probe, call in zip(probes, calls, strict=True))
    for a, b in zip(first.statistics, second.statistics, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(first.output_norms), torch.from_numpy(second.output_norms))
    changed = []
    for probe, call in zip(probes, calls, strict=True):
        with probe.weighing(lambda weights, keys, queries: even(weights, keys)):
            changed.append(probe.module(*call))
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
    assert [probe.name for probe in find_probes(model)] == names
    table = dataset.splits["valid"]
    watched = [Watched(probe) for probe in find_probes(model.eval())]
    for each in watched:
        with each.watching():
            model(gather(table, torch.arange(20)))
        assert each.statistics.entropy_ratio.nanmean() <= 1 + 1e-6
