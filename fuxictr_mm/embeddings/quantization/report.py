"""How good codes are: errors, use of codes, collisions; and the lines of YAML that make a model read them.

Shape letters: M items, D width, L levels, C codes of a level, K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.embeddings.quantization.codebooks import Codebook, Codes, Vectors


class Tally:
    """What the report of a codebook says, summed over chunks."""

    def __init__(self, book: Codebook) -> None:
        self.book = book
        shape = (book.levels, len(book.space.modalities))
        self.error = np.zeros(shape)
        self.energy = np.zeros(shape[1])
        self.use = np.zeros((book.levels, book.codes), dtype=np.int64)
        self.codes: list[NDArray[np.int32]] = []
        self.items = 0
        self.incomplete = 0

    def add(self, z: Vectors, codes: Codes, present: NDArray[np.bool_]) -> None:
        """Count items with z ``(M, D)``, codes ``(M, L)`` and which modalities they have ``(M, modalities)``."""
        some = present.max(axis=1)
        self.items += len(z)
        self.incomplete += int((some & ~present.all(axis=1)).sum())
        z, codes, present = z[some], codes[some], present[some]
        parts = self.book.space.parts
        for place, part in enumerate(parts):
            self.energy[place] += np.square(z[present[:, place], part], dtype=np.float64).sum()
        for level, known in enumerate(self.book.approximations(codes)):
            self.use[level] += np.bincount(codes[:, level], minlength=self.book.codes)
            for place, part in enumerate(parts):
                has = present[:, place]
                self.error[level, place] += np.square(z[has, part] - known[has, part], dtype=np.float64).sum()
        self.codes.append(codes.astype(np.int32))

    def report(self) -> dict[str, Any]:
        """Return the report of one column."""
        book = self.book
        tiny = np.finfo(np.float64).tiny
        share = self.use / max(self.use[0].sum(), 1)
        entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
        codes = np.concatenate(self.codes)
        groups = np.unique(codes, axis=0, return_counts=True)[1] if len(codes) else np.zeros(1, dtype=np.int64)
        by_modality = self.error / np.maximum(self.energy, tiny)
        return {
            "method": book.method,
            "levels": book.levels,
            "codes": book.codes,
            "scaling": book.space.scaling,
            "modalities": [m.name for m in book.space.modalities],
            "vocab_size": book.vocab_size,
            "items": self.items,
            "items_without_vector": self.items - len(codes),
            "items_without_a_modality": self.incomplete,
            "relative_error": (self.error.sum(axis=1) / max(self.energy.sum(), tiny)).tolist(),
            "relative_error_by_modality": {
                m.name: by_modality[:, place].tolist() for place, m in enumerate(book.space.modalities)
            },
            "codes_used": (self.use > 0).mean(axis=1).tolist(),
            "perplexity": np.exp(entropy).tolist(),
            "colliding_items": int(groups[groups > 1].sum()),
            "largest_collision": int(groups.max()),
        }


def yaml_lines(report: Mapping[str, Mapping[str, Any]], neighbors: int = 0, largest_id: int = 0) -> list[str]:
    """Return the lines for ``feature_cols`` of dataset_config.yaml.

    Parameters
    ----------
    report : mapping
        Of ``quantize``.
    neighbors : int
        K, as given to ``quantize``.
    largest_id : int
        The largest item id.

    Examples
    --------
    >>> yaml_lines({"codes_rq_text": {"levels": 2, "vocab_size": 17}})[0]
    '- {name: codes_rq_text, active: False, dtype: int, type: sequence, source: item, max_len: 2, vocab_size: 17, \
feature_encoder: layers.MaskedSumPooling()}'
    """
    lines = []
    for column, values in report.items():
        shape = f"max_len: {values['levels']}, vocab_size: {values['vocab_size']}"
        lines.append(_yaml_line(column, f"{shape}, feature_encoder: layers.MaskedSumPooling()"))
        if neighbors:
            shape = f"max_len: {neighbors}, vocab_size: {largest_id + 1}"
            lines.append(_yaml_line(beside(column, "neighbors"), f"{shape}, share_embedding: item_id"))
    return lines


def _yaml_line(name: str, rest: str) -> str:
    return f"- {{name: {name}, active: False, dtype: int, type: sequence, source: item, {rest}}}"


def describe(report: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the report as a table."""
    lines = []
    for column, values in report.items():
        lines.append(
            f"{column}: {values['method']} of {', '.join(values['modalities'])} (scaling {values['scaling']}), "
            f"{values['items']} items, {values['items_without_vector']} without a vector"
        )
        if values["items_without_a_modality"]:
            lines.append(f"  {values['items_without_a_modality']} items lack a modality: the mean stands for it")
        several = len(values["modalities"]) > 1
        names = values["modalities"] if several else []
        lines.append("  level  relative error  codes used  perplexity" + "".join(f"  error of {n}" for n in names))
        for level in range(values["levels"]):
            cells = f"  {level + 1:5d}  {values['relative_error'][level]:14.4f}"
            cells += f"  {values['codes_used'][level]:10.1%}  {values['perplexity'][level]:10.1f}"
            for name in names:
                cells += f"  {values['relative_error_by_modality'][name][level]:{len(name) + 9}.4f}"
            lines.append(cells)
        lines.append(
            f"  {values['colliding_items']} items share all their codes with another, "
            f"at most {values['largest_collision']} the same"
        )
    return "\n".join(lines)


def beside(column: str, what: str) -> str:
    """Return the name of a column that goes with a column of codes, ``neighbors_vq_text`` with ``codes_vq_text``."""
    return what + column.removeprefix("codes")
