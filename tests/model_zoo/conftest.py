"""A model beside a padded re-computation of its formulas from the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.layers import Jagged


@dataclass
class Padded:
    """A batch with its histories padded to L: c (B, C), t (B, D), s (B, L, D), mask (B, L), ids (B, L).

    Besides the ids of the targets (B,) and the labels (B, 1).

    Every item is embedded where it stands. The padding is item 3, not zero.
    """

    c: Tensor
    t: Tensor
    s: Tensor
    mask: Tensor
    ids: Tensor
    target: Tensor
    label: Tensor

    @classmethod
    def of(cls, model, batch, side="left", padding=2):
        lengths = batch.history.lengths.tolist()
        length = max(lengths) + padding
        ids, mask = torch.full((len(lengths), length), 3), torch.zeros(len(lengths), length, dtype=torch.bool)
        for row, values in enumerate(batch.history.values.split(lengths)):
            place = slice(length - len(values), None) if side == "left" else slice(len(values))
            ids[row, place], mask[row, place] = values.long(), True
        items = model.embed_items(ids.flatten()).view(*ids.shape, -1)
        context, target = model.embed_context(batch), batch.target.long()
        return cls(context, model.embed_items(target), items, mask, ids, target, batch.label.view(-1, 1))

    def rows(self):
        """Yield c (C,), t (D,), s (n, D) without padding and ids (n,) of each row."""
        for row, mask in enumerate(self.mask):
            yield self.c[row], self.t[row], self.s[row][mask], self.ids[row][mask]


@pytest.fixture
def pad() -> Callable[..., Padded]:
    """Give ``Padded.of``."""
    return Padded.of


@pytest.fixture
def pair(build, make_batch, float64) -> Callable:
    """Build a model in float64 with weights of ordinary size and no dropout, and a batch of the given lengths."""

    def make(expid: str, lengths: Sequence[int] = (3, 0, 1, 20, 0, 7, 2, 1), **settings):
        model, dataset = build(expid, **settings)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.double().parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        table = dataset.splits["train"]
        rows = (table.history_offsets.diff() >= 20).nonzero().flatten()[: len(lengths)]
        return model, make_batch(table, rows, lengths)

    return make


@pytest.fixture
def equals_dense(pair) -> Callable:
    """Compare logits and every gradient with ``dense(model, padded)``, ``(B,)`` or that and a term of the loss.

    With ``labels``, two of them, the logits are ``(B, 2)``.
    """

    def check(expid: str, dense: Callable, **settings):
        model, batch = pair(expid, **settings)
        tasks = model.num_tasks
        for side, padding in (("left", 0), ("left", 3), ("right", 5)):
            model.train()
            torch.manual_seed(7)
            returned = model(batch)
            label = batch.label.view(-1, 1)
            label = label if tasks == 1 else torch.cat([label, label.roll(1, 0)], dim=1)
            loss = model.add_loss(returned, label)
            found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            torch.manual_seed(7)
            logits = dense(model, Padded.of(model, batch, side, padding))
            logits, more = logits if isinstance(logits, tuple) else (logits, 0.0)
            torch.testing.assert_close(returned["logit"], logits.view(-1, tasks), rtol=1e-9, atol=1e-9)
            expected_loss = F.binary_cross_entropy_with_logits(logits.view(-1, tasks), label) * tasks + more
            torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=1e-9)
            expected = torch.autograd.grad(expected_loss, list(model.parameters()), allow_unused=True)
            for (name, parameter), ours, theirs in zip(model.named_parameters(), found, expected, strict=True):
                ours, theirs = (torch.zeros_like(parameter) if g is None else g for g in (ours, theirs))
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        model.eval()
        for lengths in ([0], [20]):
            one = pair(expid, lengths, **settings)[1]
            logits = dense(model, Padded.of(model, one))
            logits = logits[0] if isinstance(logits, tuple) else logits
            torch.testing.assert_close(model(one)["logit"], logits.view(-1, tasks), rtol=1e-9, atol=1e-9)

    return check


@pytest.fixture
def order_counts(pair) -> Callable[..., bool]:
    """Tell whether turning every history round changes a logit."""

    def check(expid: str, **settings) -> bool:
        model, batch = pair(expid, **settings)
        model.eval()
        parts = batch.history.values.split(batch.history.lengths.tolist())
        turned = Jagged(torch.cat([part.flip(0) for part in parts]), batch.history.offsets)
        assert not torch.equal(turned.values, batch.history.values)
        logits = [model(replace(batch, history=history))["logit"] for history in (batch.history, turned)]
        return not torch.allclose(*logits, rtol=1e-10, atol=1e-10)

    return check


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Softmax attention of one query per row, head by head; zero where nothing is real."""
    parts = []
    for q, k, v in zip(query.chunk(heads, -1), keys.chunk(heads, -1), values.chunk(heads, -1), strict=True):
        scores = torch.einsum("bd,bld->bl", q, k) / q.shape[-1] ** 0.5
        weights = torch.softmax(scores.masked_fill(~mask, -1e30), dim=-1) * mask
        parts.append(torch.einsum("bl,bld->bd", weights, v))
    return torch.cat(parts, dim=-1)


@pytest.fixture
def newest_mask() -> Callable[[Tensor, int], Tensor]:
    """Give the mask of the last ``count`` real positions, wherever the padding stands."""
    return lambda mask, count: mask & (mask.flip(1).cumsum(1).flip(1) <= count)


@pytest.fixture
def best_mask() -> Callable[[Tensor, Tensor, int], Tensor]:
    """Give the mask of the real positions with the largest scores ``(B, L)``."""

    def find(scores: Tensor, mask: Tensor, top_k: int) -> Tensor:
        found = scores.masked_fill(~mask, -torch.inf).topk(min(top_k, scores.shape[1]), dim=1).indices
        return torch.zeros_like(mask).scatter(1, found, True) & mask

    return find


@pytest.fixture
def target_attention() -> Callable:
    """The dense form of MultiHeadTargetAttention."""

    def run(layer, target, items, mask):
        return layer.W_o(attend(layer.W_q(target), layer.W_k(items), layer.W_v(items), mask, layer.num_heads))

    return run


@pytest.fixture
def din() -> Callable:
    """The dense form of DINAttention."""

    def run(layer, target, items, mask):
        target = target.unsqueeze(1).expand_as(items)
        weights = layer.attention_layer(torch.cat([target, items, target - items, target * items], dim=-1)).squeeze(-1)
        if layer.use_softmax:
            weights = torch.softmax(weights.masked_fill(~mask, -1e30), dim=-1)
        return ((weights * mask).unsqueeze(-1) * items).sum(dim=1)

    return run
