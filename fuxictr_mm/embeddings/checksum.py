"""A checksum of the arrays that a stage saves: safetensors itself only checks their sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def checksum(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of a text and of named arrays, whatever their order."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
