"""Inputs of trained heads: the principal components of each modality.

Shapes: I items, D_m dim of a modality, P_m components of a modality, P of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuxictr_mm.embeddings.fit_reducer import fit_components, read_moments
from fuxictr_mm.embeddings.item_files import JoinedEmbeddings


@dataclass(frozen=True)
class ContentInput:
    """The input that a modality gives to the heads: its principal components, scaled to a mean square of 1."""

    name: str  #: Of the modality.
    mean: NDArray[np.float32]  #: ``(D_m,)``, of the items that have an embedding.
    components: NDArray[np.float32]  #: ``(P_m, D_m)``, scaled, by falling variance.

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``(n, P_m)`` of embeddings ``(n, D_m)``; zeros, the mean, for an item without an embedding."""
        present = (x != 0).any(axis=1, keepdims=True)
        return ((x - self.mean) * present) @ self.components.T


def fit_inputs(joined: JoinedEmbeddings, most: int) -> list[ContentInput]:
    """Fit a PCA of at most ``most`` components per modality; raises as ``read_moments`` and ``fit_components``."""
    inputs = []
    for name, moments in read_moments(joined).items():
        pca = fit_components(name, moments).keep(most)
        scale = 1 / np.sqrt(pca.variances.mean())
        components = (scale * pca.components).astype(np.float32)
        inputs.append(ContentInput(name, pca.mean.astype(np.float32), components))
    return inputs


def read_inputs(joined: JoinedEmbeddings, parts: Sequence[ContentInput]) -> tuple[NDArray[np.int64], Tensor]:
    """Return all items ``(I,)``, ascending, and their inputs of all modalities ``(I, P)``."""
    item_ids = np.sort(joined.ids)
    inputs = torch.empty(len(item_ids), sum(len(part.components) for part in parts))
    for ids, x in joined.chunks():
        rows = torch.from_numpy(np.searchsorted(item_ids, ids))
        inputs[rows] = torch.from_numpy(np.concatenate([part(x[part.name]) for part in parts], axis=1))
    return item_ids, inputs


def by_modality(inputs: Tensor, parts: Sequence[ContentInput]) -> dict[str, Tensor]:
    """Return the inputs ``(I, P_m)`` of each modality, of those of all ``(I, P)``."""
    columns = inputs.split([len(part.components) for part in parts], dim=1)
    return {part.name: column for part, column in zip(parts, columns, strict=True)}


def mean_squares(x: Tensor) -> Tensor:
    """Return the mean square of each input of a modality, of ``(I, P_m)`` without the items that do not have it."""
    return x.square().sum(dim=0) / x.any(dim=1).sum()


def to_arrays(inputs: Sequence[ContentInput]) -> dict[str, NDArray[Any]]:
    """Return the arrays of inputs, to save."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, part in enumerate(inputs):
        arrays |= {f"inputs.{number}.mean": part.mean, f"inputs.{number}.components": part.components}
    return arrays


def state_of(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, Tensor]:
    """Return the state of a module, of the saved arrays whose names begin with a prefix."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array) for name, array in arrays.items() if name.startswith(prefix)
    }


def from_arrays(names: Sequence[Any], arrays: Mapping[str, NDArray[Any]]) -> tuple[ContentInput, ...]:
    """Return the inputs of ``to_arrays``; raises a ValueError if any of the saved arrays is damaged."""
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("it holds numbers that are not finite")
    inputs = tuple(
        ContentInput(str(name), arrays[f"inputs.{number}.mean"], arrays[f"inputs.{number}.components"])
        for number, name in enumerate(names)
    )
    for part in inputs:
        if part.components.shape[1:] != part.mean.shape:
            raise ValueError(f"the components of '{part.name}' have another dim than its mean")
    return inputs
