"""The losses of the search unit against a dense re-computation from the formulas."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from fuxictr_mm.embeddings.search_unit import ItemFields, SearchUnit, next_item_loss
from fuxictr_mm.embeddings.sequences import NextItems, Sequences
from fuxictr_mm.layers import contrast_of_fields

ITEMS, DIM = 30, 6


@pytest.fixture(params=[1, 2], ids=["one head", "two heads"])
def unit(request):
    torch.manual_seed(0)
    unit = SearchUnit(
        ItemFields({"text": torch.randn(DIM, 5), "image": torch.randn(DIM, 3)}, 20), request.param
    ).double()
    for parameter in unit.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.zeros_(unit.fields.ids.weight[0].detach())
    return unit


@pytest.fixture
def content():
    """Inputs and numbers of ids of 30 items, of which the first has no text, the second no id, the third no image."""
    torch.manual_seed(1)
    inputs = {"text": torch.randn(ITEMS, 5).double(), "image": torch.randn(ITEMS, 3).double()}
    inputs["text"][0], inputs["image"][2] = 0, 0
    ids = torch.randint(1, 21, (ITEMS,))
    ids[1] = 0
    return inputs, ids


def dense_fields(unit, inputs, ids):
    """By item, the vectors of its id, text and image."""
    fields = unit.fields
    table = fields.ids.weight * (torch.arange(21) > 0)[:, None]
    contents = [(p.start + p.linear.weight) @ inputs[n].T for n, p in fields.projections.items()]
    return torch.stack([table[ids], *(content.T for content in contents)], dim=1)


def attention(layer, target, history):
    """Of one target ``(D,)`` to a history ``(L, D)``."""
    heads, dim = [], layer.head_dim
    for head in range(layer.num_heads):
        part = slice(head * dim, (head + 1) * dim)
        scores = (history @ layer.W_k.weight[part].T) @ (layer.W_q.weight[part] @ target) / dim**0.5
        heads.append(torch.softmax(scores, 0) @ (history @ layer.W_v.weight[part].T))
    return layer.W_o.weight @ torch.cat(heads)


def test_next_item_loss_and_its_gradients(unit, content):
    random = np.random.default_rng(0)
    sequences = Sequences(np.sort(random.integers(0, 8, size=60)), random.integers(1, ITEMS + 1, size=60))
    data = NextItems(sequences, np.arange(1, ITEMS + 1), 0.2, max_len=5, negatives=3, seed=0)
    batch = data.batch(data.train, random)
    assert not batch.counts.all()
    inputs, ids = content
    rows = torch.from_numpy(batch.items)
    fields = unit.fields({name: x[rows] for name, x in inputs.items()}, ids[rows])
    loss = next_item_loss(unit(unit.fields.fuse(fields), batch), torch.from_numpy(batch.counts))

    gates = torch.softmax(unit.fields.gate, 0)
    fused = torch.einsum("f,ifd->id", gates, dense_fields(unit, inputs, ids))[rows]
    terms = []
    for row, (candidates, counts) in enumerate(zip(batch.candidates, batch.counts, strict=True)):
        history = fused[torch.from_numpy(batch.history[batch.offsets[row] : batch.offsets[row + 1]])]
        for column, candidate in enumerate(candidates[counts]):
            target, interest = fused[candidate], attention(unit.attention, fused[candidate], history)
            probability = torch.sigmoid(unit.mlp(torch.cat([target, interest, target * interest])))
            terms.append(-torch.log(probability if column == 0 else 1 - probability))
    expected = torch.cat(terms).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    parameters = list(unit.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_alignment_is_of_the_items_that_have_both(unit, content):
    fields = unit.fields(*content)
    expected = dense_fields(unit, *content)
    torch.testing.assert_close(fields, expected, rtol=1e-12, atol=1e-12)
    lacks = {0: [1], 1: [0], 2: [2]}  # items without an id, a text, an image
    losses = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        items = [item for item in range(ITEMS) if item not in lacks[one] + lacks[other]]
        x, y = (expected[items, field] for field in (one, other))
        cosines = torch.cosine_similarity(x[:, None], y[None], dim=2) / 0.05
        losses += [-torch.log_softmax(cosines, axis).diagonal().mean() for axis in (0, 1)]
    assert contrast_of_fields(fields, 0.05).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-9)
    assert contrast_of_fields(fields[:3, [0, 0]] * 0, 0.05) == 0  # no item has both


def test_ids_are_found_by_their_value():
    from fuxictr_mm.data.ids import AS_IS
    from fuxictr_mm.embeddings.search_unit import Pretrained

    fields = ItemFields({"text": torch.eye(2)}, 3)
    pretrained = Pretrained((), fields, pa.array([7, 3, 9]))
    assert pretrained.rows_of(np.array([9, 1, 3, 10**6, 7]), AS_IS).tolist() == [3, 0, 2, 0, 1]
