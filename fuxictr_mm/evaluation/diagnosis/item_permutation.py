"""Items that swap features with each other, below whatever view a model takes.

Shape letters: I items (padding included), M asked ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ


def draw(items: ItemTable, seed: int) -> Tensor:
    """Return which item each item takes its features from, ``(I,)``: a permutation of the known ones, padding fixed."""
    known = items.known.nonzero().squeeze(1)[1:].cpu()
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    permutation = torch.arange(items.num_items)
    permutation[known] = known[order]
    return permutation.to(items.known.device)


@contextmanager
def swapped(model: Any, names: Sequence[str], permutation: Tensor) -> Iterator[Callable[[Any], Any] | None]:
    """Let items show the named features of other items, wherever they stand: as target and in every history.

    Parameters
    ----------
    model : BaseModel
        Its feature map's items are meant.
    names : sequence of str
        Item fields; those given together move together.
    permutation : Tensor
        ``(I,)`` of ``draw``.

    Yields
    ------
    callable or None
        What is to be done to each batch as well, where a view holds ids of items beside the item fields.
    """
    items = model.feature_map.items
    moved = set(names)

    def rows(ids: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        others = permutation.index_select(0, ids.long()).to(ids.dtype)
        found = ItemTable.rows(items, ids, [n for n in wanted if n not in moved])
        found.update(ItemTable.rows(items, others, [n for n in wanted if n in moved]))
        return {name: found[name] for name in wanted}

    def of_batch(batch: Any) -> Any:
        if not isinstance(batch, dict) or ITEM_SEQ not in batch:
            return batch
        return {**batch, ITEM_SEQ: permutation[batch[ITEM_SEQ]]}

    # Vectors that train along are the model's own, and are asked for by id.
    trained = getattr(model, "item_vectors", {})
    handles = [
        trained[name].register_forward_pre_hook(lambda _, arguments: (permutation[arguments[0]],))
        for name in names
        if name in trained
    ]
    items.rows = rows
    try:
        yield of_batch if ITEM_ID in moved else None
    finally:
        del items.rows
        for handle in handles:
            handle.remove()
