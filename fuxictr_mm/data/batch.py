"""A batch of interactions, and its conversion to the batch formats of other libraries.

Shape letters: B rows, N history items of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ, ITEM_SOURCE
from fuxictr_mm.fuxictr_imports import FeatureMap
from fuxictr_mm.jagged import Jagged


@dataclass(frozen=True)
class Batch:
    """Rows that are trained on or scored in one step.

    Parameters
    ----------
    context : dict of str to Tensor or Jagged
        The context columns: ``(B,)`` ids or numbers, ``(B, D)`` embeddings, or a sequence per row. Further histories
        are ``Jagged`` of item ids, and sequences along a history have an entry for each of its items.
    target : Tensor
        ``(B,)`` ids of the target items.
    history : Jagged
        ``(N,)`` item ids, oldest first; an empty history is an empty row.
    label : Tensor, optional
        ``(B,)`` float, 1 for a click; ``(B, T)`` of T labels, NaN for one that is missing.
    group : Tensor, optional
        ``(B,)`` group of each row.
    weight : Tensor, optional
        ``(B,)`` float, the weight of each row in the loss.
    """

    context: dict[str, Tensor | Jagged]
    target: Tensor
    history: Jagged
    label: Tensor | None = None
    group: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.target.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move every tensor to a device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return Batch(
            {name: column.to(device, non_blocking=non_blocking) for name, column in self.context.items()},
            self.target.to(device, non_blocking=non_blocking),
            self.history.to(device, non_blocking=non_blocking),
            move(self.label),
            move(self.group),
            move(self.weight),
        )


ChallengeBatch = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def make_formatter(name: str, feature_map: FeatureMap, items: ItemTable, max_len: int) -> Callable[[Batch], Any] | None:
    """Return the function that converts a Batch to the named batch format; None for ``jagged``, the Batch itself."""
    formats: dict[str, Callable[..., Any]] = {"challenge": challenge_format, "flat": flat_format}
    if name not in formats:
        return None
    return partial(formats[name], feature_map=feature_map, items=items, max_len=max_len)


def num_rows(batch: Any) -> int:
    """Return the number of rows of a batch in any batch format."""
    if isinstance(batch, tuple):
        return batch[-1].shape[0]
    if isinstance(batch, dict):
        return next(iter(batch.values())).shape[0]
    return len(batch)


def row_weights(batch: Any, column: str | None) -> Tensor | None:
    """Return the weights of the rows ``(B,)`` of a batch in any batch format, in which they are a column; or None."""
    if isinstance(batch, Batch):
        return batch.weight
    columns = batch[0] if isinstance(batch, tuple) else batch
    return None if column is None else columns.get(column)


def challenge_format(batch: Batch, feature_map: FeatureMap, items: ItemTable, max_len: int) -> ChallengeBatch:
    """Return the tuple of the challenge's baseline.

    Returns
    -------
    batch_dict : dict of str to Tensor
        ``(B,)`` context columns, label and group.
    item_dict : dict of str to Tensor
        ``(B * (L + 1), ...)`` item features of each row's left-padded history and its target.
    mask : Tensor
        ``(B, L)`` float, 1 for a real item, 0 for padding.
    """
    padded, mask = batch.history.to_padded(max_len)
    ids = torch.cat([padded, batch.target.to(padded.dtype).unsqueeze(1)], dim=1).flatten().long()
    # Context columns with in_item_dict are in both dicts.
    names = [n for n in feature_map.features if n == ITEM_ID or n in items.names]
    return _row_columns(batch, feature_map), items.rows(ids, names), mask.float()


def flat_format(batch: Batch, feature_map: FeatureMap, items: ItemTable, max_len: int) -> dict[str, Tensor]:
    """Return FuxiCTR's dict of columns: context, label, group and the target's features.

    ``item_seq`` ``(B, L)``, left padded, is included if the feature map has it as a sequence.
    """
    columns = _row_columns(batch, feature_map)
    # A model may have added features of its own, which are in no item file.
    stored = [n for n, spec in feature_map.features.items() if spec.get("source") == ITEM_SOURCE and n in items.names]
    names = [n for n in feature_map.features if n not in columns and (n == ITEM_ID or n in stored)]
    columns.update(items.rows(batch.target.long(), names))
    if ITEM_SEQ not in columns and feature_map.features.get(ITEM_SEQ, {}).get("type") == "sequence":
        columns[ITEM_SEQ] = items.trained_ids(batch.history.to_padded(max_len)[0].long())
    return columns


def pad_columns(context: Mapping[str, Tensor | Jagged], feature_map: FeatureMap) -> dict[str, Tensor]:
    """Return context columns with every sequence padded to its ``max_len``, as FuxiCTR pads it.

    Further histories, and sequences along a history, are left out.
    """
    columns = {}
    for name, column in context.items():
        if isinstance(column, Jagged):
            spec = feature_map.features.get(name, {"type": "meta"})
            if spec["type"] == "meta":
                continue
            side = "left" if spec.get("padding") == "pre" else "right"
            column = column.to_padded(spec["max_len"], side=side)[0]
        columns[name] = column
    return columns


def _row_columns(batch: Batch, feature_map: FeatureMap) -> dict[str, Tensor]:
    columns = pad_columns(batch.context, feature_map)
    if batch.group is not None:
        columns.setdefault(feature_map.group_id, batch.group)
    if batch.weight is not None:
        columns[feature_map.sample_weight] = batch.weight
    if batch.label is not None:
        columns.update(zip(feature_map.labels, batch.label.view(len(batch), -1).unbind(dim=1), strict=True))
    return columns
