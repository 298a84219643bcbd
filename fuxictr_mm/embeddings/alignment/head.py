"""A trained alignment: from the vectors of each modality to aligned ones; apply it, save it, load it.

Shapes: n items, D_m width of a modality, P_m of its components, P their sum, D output width.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuxictr_mm.checking import nearest
from fuxictr_mm.embeddings.alignment.contrastive import AlignmentHead
from fuxictr_mm.embeddings.checksum import checksum
from fuxictr_mm.embeddings.reduction.pca import PrincipalComponents
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.files import write_beside

#: The head that sees all modalities.
JOINT = "joint"

#: Version of the file's layout.
FORMAT = 1
KEY = "fuxictr_mm.alignment"


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
        from safetensors.torch import save

        arrays: dict[str, Tensor] = {}
        for number, part in enumerate(self.inputs):
            arrays[f"inputs.{number}.mean"] = torch.from_numpy(part.mean)
            arrays[f"inputs.{number}.components"] = torch.from_numpy(part.components)
        for number, head in enumerate(self.heads.values()):
            arrays |= {f"heads.{number}.{name}": tensor for name, tensor in head.state_dict().items()}
        content = {"format": FORMAT, "modalities": list(self.names), "heads": list(self.heads)}
        text = json.dumps(content)
        sealed = {KEY: text, "sha256": checksum(text, {name: array.numpy() for name, array in arrays.items()})}
        data = save({name: array.contiguous() for name, array in arrays.items()}, metadata=sealed)
        write_beside(path, lambda stream: stream.write(data))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Alignment:
        """Read what `save` wrote.

        Raises
        ------
        MissingFileError, DataError
            There is no such file; it is damaged or holds something else.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise MissingFileError(f"{path}: no such file, expected a head that `fuxictr-mm embed align` wrote")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from None
        if KEY not in metadata:
            raise DataError(f"{path}: is no head; expected a file that `fuxictr-mm embed align` wrote")
        if metadata.get("sha256") != checksum(metadata[KEY], {name: array.numpy() for name, array in arrays.items()}):
            raise _damaged(path, "its checksum is not that of its contents")
        try:
            content = json.loads(metadata[KEY])
            if content["format"] != FORMAT:
                raise DataError(f"{path}: has the format {content['format']}, expected {FORMAT}; train it anew")
            inputs = tuple(
                ContentInput(
                    str(name), arrays[f"inputs.{number}.mean"].numpy(), arrays[f"inputs.{number}.components"].numpy()
                )
                for number, name in enumerate(content["modalities"])
            )
            heads = {str(name): _head(arrays, f"heads.{number}.") for number, name in enumerate(content["heads"])}
            alignment = cls(inputs, heads)
            alignment._check_shapes()
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, json.JSONDecodeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        if not all(bool(array.isfinite().all()) for array in arrays.values()):
            raise _damaged(path, "it holds numbers that are not finite")
        return alignment

    def _check_shapes(self) -> None:
        widths = {part.name: len(part.components) for part in self.inputs}
        widths[JOINT] = sum(widths.values())
        for part in self.inputs:
            if part.components.shape[1:] != part.mean.shape:
                raise TypeError(f"the components of '{part.name}' are of another width than its mean")
        for name, head in self.heads.items():
            if head.start.shape[1] != widths[name]:
                raise TypeError(f"head '{name}' is of another width than its inputs")


def aligned_rows(head: AlignmentHead, inputs: Tensor) -> Tensor:
    """Return vectors of mean square 1, ``(n, D)``, that is of length sqrt(D), the direction being what was trained.

    Zeros, as the padding has, where no modality has a vector.
    """
    rows = torch.nn.functional.normalize(head(inputs), dim=-1) * len(head.start) ** 0.5
    return rows * (inputs != 0).any(dim=-1, keepdim=True)


def _column(head: str) -> str:
    return "item_emb_aligned" if head == JOINT else f"item_emb_aligned_{head}"


def _head(arrays: Mapping[str, Tensor], prefix: str) -> AlignmentHead:
    state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    hidden = len(state["residual.0.weight"]) if "residual.0.weight" in state else 0
    head = AlignmentHead(torch.zeros_like(state["start"]), hidden)
    head.load_state_dict(state)
    return head.requires_grad_(False)


def shares(dim: int, names: Sequence[str]) -> list[int]:
    """Divide a width among modalities, the first ones taking what is left over.

    Examples
    --------
    >>> shares(16, ["text", "image", "sound"])
    [6, 5, 5]
    """
    return [dim // len(names) + (place < dim % len(names)) for place in range(len(names))]


def _damaged(path: str | os.PathLike[str], reason: str) -> DataError:
    return DataError(f"{path}: is damaged ({' '.join(reason.split())}); train the head anew")
