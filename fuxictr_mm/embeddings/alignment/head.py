"""A trained alignment: from the vectors of each modality to aligned ones; apply it, save it, load it.

Shapes: n items, D_m width of a modality, P_m of its components, P their sum, D output width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuxictr_mm.checking import nearest
from fuxictr_mm.embeddings.alignment.contrastive import AlignmentHead
from fuxictr_mm.embeddings.alignment.training import JOINT
from fuxictr_mm.embeddings.reduction.pca import PrincipalComponents
from fuxictr_mm.embeddings.saved import SavedFormat
from fuxictr_mm.errors import ConfigError

SAVED = SavedFormat("head", "align")


@dataclass(frozen=True)
class ContentInput:
    """What the heads see of a modality: its principal components, their mean square being 1.

    Parameters
    ----------
    name : str
        Of the modality.
    mean : ndarray of float32, (D_m,)
        Of the items that have a vector.
    components : ndarray of float32, (P_m, D_m)
        By falling variance, scaled.
    """

    name: str
    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    @classmethod
    def from_pca(cls, name: str, pca: PrincipalComponents) -> ContentInput:
        """Take all components of a PCA."""
        scale = 1 / np.sqrt(max(float(pca.variances.mean()), 1e-30))
        return cls(name, pca.mean.astype(np.float32), (scale * pca.components).astype(np.float32))

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``(n, P_m)`` for vectors ``(n, D_m)``; zeros, the mean, for an item without a vector."""
        present = (vectors != 0).any(axis=1, keepdims=True)
        return ((vectors - self.mean) * present) @ self.components.T


@dataclass(frozen=True)
class Alignment:
    """Heads over the same inputs.

    Parameters
    ----------
    inputs : tuple of ContentInput
        One per modality.
    heads : dict of str to AlignmentHead
        ``joint``, of all modalities, and perhaps one for each by its name.
    """

    inputs: tuple[ContentInput, ...]
    heads: dict[str, AlignmentHead]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the modalities."""
        return tuple(part.name for part in self.inputs)

    @property
    def columns(self) -> dict[str, int]:
        """Name and width of each column that it makes."""
        return {_column(name): len(head.start) for name, head in self.heads.items()}

    def check(self, widths: Mapping[str, int]) -> None:
        """Raise ConfigError where vectors of these names and widths are not what it was trained on."""
        known = f"(it was trained on: {', '.join(self.names)}); give its name as NAME=FILE:COLUMN"
        for name in widths:
            if name not in self.names:
                raise ConfigError(f"modality '{name}' is unknown to the head{nearest(name, self.names)} {known}")
        for part in self.inputs:
            if part.name not in widths:
                raise ConfigError(f"modality '{part.name}' lacks; the head needs it {known}")
            if widths[part.name] != len(part.mean):
                raise ConfigError(
                    f"modality '{part.name}' has vectors of width {widths[part.name]}, expected {len(part.mean)}; "
                    "use vectors of the same model as in training"
                )

    @torch.no_grad()
    def transform(self, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Return the columns ``(n, D)`` of vectors ``(n, D_m)`` of each modality, see `aligned_rows`."""
        seen = {part.name: torch.from_numpy(part(vectors[part.name])) for part in self.inputs}
        seen[JOINT] = torch.cat(list(seen.values()), dim=-1)
        return {_column(name): aligned_rows(head, seen[name]).numpy() for name, head in self.heads.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; names stand in its metadata as JSON."""
        arrays: dict[str, NDArray] = {}
        for number, part in enumerate(self.inputs):
            arrays[f"inputs.{number}.mean"], arrays[f"inputs.{number}.components"] = part.mean, part.components
        for number, head in enumerate(self.heads.values()):
            arrays |= {f"heads.{number}.{name}": tensor.numpy() for name, tensor in head.state_dict().items()}
        SAVED.save(path, {"modalities": list(self.names), "heads": list(self.heads)}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Alignment:
        """Read what `save` wrote.

        Raises
        ------
        MissingFileError, DataError
            There is no such file; it is damaged or holds something else.
        """
        return SAVED.load(path, cls._from_content)

    @classmethod
    def _from_content(cls, content: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> Alignment:
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds numbers that are not finite")
        inputs = tuple(
            ContentInput(str(name), arrays[f"inputs.{number}.mean"], arrays[f"inputs.{number}.components"])
            for number, name in enumerate(content["modalities"])
        )
        heads = {str(name): _head(arrays, f"heads.{number}.") for number, name in enumerate(content["heads"])}
        alignment = cls(inputs, heads)
        alignment._check_shapes()
        return alignment

    def _check_shapes(self) -> None:
        widths = {part.name: len(part.components) for part in self.inputs}
        widths[JOINT] = sum(widths.values())
        for part in self.inputs:
            if part.components.shape[1:] != part.mean.shape:
                raise ValueError(f"the components of '{part.name}' are of another width than its mean")
        for name, head in self.heads.items():
            if head.start.shape[1] != widths[name]:
                raise ValueError(f"head '{name}' is of another width than its inputs")


def aligned_rows(head: AlignmentHead, inputs: Tensor) -> Tensor:
    """Return vectors of mean square 1, ``(n, D)``, that is of length sqrt(D), the direction being what was trained.

    Zeros, as the padding has, where no modality has a vector.
    """
    rows = torch.nn.functional.normalize(head(inputs), dim=-1) * len(head.start) ** 0.5
    return rows * (inputs != 0).any(dim=-1, keepdim=True)


def _column(head: str) -> str:
    return "item_emb_aligned" if head == JOINT else f"item_emb_aligned_{head}"


def _head(arrays: Mapping[str, NDArray], prefix: str) -> AlignmentHead:
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    state = {name: torch.from_numpy(array) for name, array in own.items()}
    hidden = len(state["residual.0.weight"]) if "residual.0.weight" in state else 0
    head = AlignmentHead(torch.zeros_like(state["start"]), hidden)
    head.load_state_dict(state)
    return head.requires_grad_(False)
