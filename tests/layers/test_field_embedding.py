import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fuxictr_mm import sparse_products
from fuxictr_mm.fuxictr_imports import FeatureEmbedding
from fuxictr_mm.layers.field_embedding import FieldEmbedding


@pytest.fixture(autouse=True)
def no_batch_is_small(monkeypatch):
    monkeypatch.setattr(sparse_products, "SMALL", 0)


class _Map:
    data_dir = ""

    def __init__(self, pooling, vocab_size):
        self.features = {
            "genre": {"type": "categorical", "source": "item", "vocab_size": 4, "padding_idx": 0},
            "tags": {
                "type": "sequence",
                "source": "item",
                "vocab_size": vocab_size,
                "padding_idx": 0,
                "feature_encoder": f"layers.{pooling}()",
            },
        }


class _Largest(TorchDispatchMode):
    """Remembers the largest result of an operation, in numbers."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def _embeddings(pooling, vocab_size, dtype=torch.float64):
    """FuxiCTR's and ours with the same weights; tag 3 has the embedding of zeros, which is not counted."""
    theirs = FeatureEmbedding(_Map(pooling, vocab_size), 16).to(dtype)
    with torch.no_grad():
        theirs.embedding_layer.embedding_layers["tags"].weight[3] = 0
    ours = FieldEmbedding(_Map(pooling, vocab_size), 16).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _step(embedding, ids):
    """The largest result, the fields, and the gradient of the table of tags after a forward and backward pass."""
    with _Largest() as largest:
        fields = embedding(ids, flatten_emb=True)
        (fields * torch.arange(1.0, fields.numel() + 1).view_as(fields)).sum().backward()
    return largest.numbers, fields, embedding.embedding_layer.embedding_layers["tags"].weight.grad


@pytest.mark.parametrize("pooling", ["MaskedAveragePooling", "MaskedSumPooling"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooled_ids_are_those_of_fuxictr_without_their_embeddings(pooling, dtype):
    torch.manual_seed(0)
    ids = {"genre": torch.randint(4, (50,)), "tags": torch.randint(9, (50, 5))}
    ids["tags"][7] = 0  # padding alone
    theirs, ours = (_step(e, ids) for e in _embeddings(pooling, 9, dtype))
    bounds = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-10}
    torch.testing.assert_close(ours[1], theirs[1], **bounds)
    torch.testing.assert_close(ours[2], theirs[2], **bounds)
    assert not ours[2][0].any()  # the row of padding
    assert theirs[0] == 50 * 5 * 16 > ours[0]


@pytest.mark.parametrize(("rows", "small"), [(3, 0), (50, 50 * 2 * 16 + 1)])
def test_long_tables_and_small_batches_are_read_as_in_fuxictr(monkeypatch, rows, small):
    monkeypatch.setattr(sparse_products, "SMALL", small)
    ids = {"genre": torch.randint(4, (rows,)), "tags": torch.randint(9, (rows, 2))}
    theirs, ours = (_step(e, ids) for e in _embeddings("MaskedAveragePooling", 9))
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])
    assert ours[0] == theirs[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_single_ids_are_fuxictrs_to_the_last_bit(monkeypatch, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    ids = {"genre": torch.randint(4, (5000,)), "tags": torch.randint(9, (5000, 2))}
    theirs, ours = _embeddings("MaskedAveragePooling", 9, torch.float32)
    used = []
    rows_of = sparse_products.rows_of
    monkeypatch.setattr(sparse_products, "rows_of", lambda *args: used.append(args) or rows_of(*args))
    factors = torch.randn(5000, 2, 16)
    try:
        for embedding in (theirs, ours):
            (embedding(ids) * factors).sum().backward()
    finally:
        torch.set_num_threads(before)
    expected, found = (e.embedding_layer.embedding_layers["genre"].weight.grad for e in (theirs, ours))
    assert used
    assert torch.equal(found, expected)
    assert not found[0].any()  # the row of padding
    with torch.no_grad():  # not faster there
        assert torch.equal(ours(ids)[:, 0], theirs(ids)[:, 0])
    assert len(used) == 1


def test_arguments_of_fuxictr():
    ids = {"genre": torch.randint(4, (50,)), "tags": torch.randint(9, (50, 5))}
    theirs, ours = _embeddings("MaskedSumPooling", 9)
    for arguments in (([], [], True), (["item"], [], False)):
        torch.testing.assert_close(ours(ids, *arguments), theirs(ids, *arguments))
