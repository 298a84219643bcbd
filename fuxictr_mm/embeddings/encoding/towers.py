"""What a tower of a CLIP-like model, or a plain vision model, returns for a vector.

Shape letters: B images or texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fuxictr_mm.errors import DataError


def features_of(output: Any) -> Tensor:
    """Return ``(B, D)``: the tensor itself, or ``pooler_output`` where a newer release wraps it."""
    return output if isinstance(output, Tensor) else output.pooler_output


def refuse_missing(names: Sequence[str], model: str) -> None:
    """Raise where weights would be random.

    Raises
    ------
    DataError
        The model's file lacks parameters that the vectors depend on.
    """
    if names:
        raise DataError(
            f"model '{model}': its weights lack {len(names)} parameters, first '{names[0]}', which would be random; "
            "expected a file that fits its config.json"
        )


def token_sequence(hidden: Tensor) -> Tensor:
    """Return ``(B, T, D)``; the places of a feature map ``(B, D, height, width)`` count as tokens."""
    return hidden if hidden.dim() == 3 else hidden.flatten(2).transpose(1, 2)
