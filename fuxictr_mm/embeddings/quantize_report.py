"""The report of a quantization: statistics of its codes, lines for the YAML, a summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.codebooks import Codebook, Codes, Floats
from fuxictr_mm.terminal import format_table


class Statistics:
    """The numbers of a codebook's report, summed over chunks."""

    def __init__(self, book: Codebook) -> None:
        self.book = book
        self.error = np.zeros((book.levels, len(book.space.modalities)))
        self.energy = np.zeros(len(book.space.modalities))
        self.use = np.zeros((book.levels, book.codes), dtype=np.int64)
        self.codes: list[NDArray[np.int32]] = []
        self.items = self.incomplete = 0

    def add(self, z: Floats, codes: Codes, present: NDArray[np.bool_]) -> None:
        """Add items with z ``(M, D)``, codes ``(M, L)`` and modalities present ``(M, modalities)``."""
        some = present.max(axis=1)
        self.items += len(z)
        self.incomplete += int((some & ~present.all(axis=1)).sum())
        z, codes, present = z[some], codes[some], present[some]
        parts = list(zip(self.book.space.parts, present.T, strict=True))
        self.energy += [np.square(z[has, part], dtype=np.float64).sum() for part, has in parts]
        for level, known in enumerate(self.book.reconstructions(codes)):
            self.use[level] += np.bincount(codes[:, level], minlength=self.book.codes)
            difference = z - known
            self.error[level] += [np.square(difference[has, part], dtype=np.float64).sum() for part, has in parts]
        self.codes.append(codes.astype(np.int32))

    def report(self) -> dict[str, Any]:
        """Return the report of one column."""
        book, tiny = self.book, np.finfo(np.float64).tiny
        share = self.use / max(self.use[0].sum(), 1)
        entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
        codes = np.concatenate(self.codes)
        groups = np.unique(codes, axis=0, return_counts=True)[1] if len(codes) else np.zeros(1, dtype=np.int64)
        by_modality = (self.error / np.maximum(self.energy, tiny)).T.tolist()
        names = [m.name for m in book.space.modalities]
        return {
            "method": book.method,
            "levels": book.levels,
            "codes": book.codes,
            "scaling": book.space.scaling,
            "modalities": names,
            "vocab_size": book.vocab_size,
            "items": self.items,
            "items_without_vector": self.items - len(codes),
            "items_without_a_modality": self.incomplete,
            "relative_error": (self.error.sum(axis=1) / max(self.energy.sum(), tiny)).tolist(),
            "relative_error_by_modality": dict(zip(names, by_modality, strict=True)),
            "codes_used": (self.use > 0).mean(axis=1).tolist(),
            "perplexity": np.exp(entropy).tolist(),
            "colliding_items": int(groups[groups > 1].sum()),
            "largest_collision": int(groups.max()),
        }


def yaml_lines(
    report: Mapping[str, Mapping[str, Any]], neighbors: int = 0, largest_id: int = 0, target: str = ITEM_ID
) -> list[str]:
    """Return the lines for ``feature_cols`` of dataset_config.yaml.

    ``report`` and ``neighbors`` are those of ``quantize``, and ``target`` is the column whose embedding the neighbors
    share. ``largest_id`` is 0 where a vocabulary numbers the items.

    Examples
    --------
    >>> yaml_lines({"codes_rq_text": {"levels": 2, "vocab_size": 17}})[0]
    '- {name: codes_rq_text, active: False, dtype: int, type: sequence, source: item, max_len: 2, vocab_size: 17, \
feature_encoder: layers.MaskedSumPooling()}'
    """
    start, lines = "active: False, dtype: int, type: sequence, source: item", []
    for column, values in report.items():
        shape = f"max_len: {values['levels']}, vocab_size: {values['vocab_size']}"
        lines.append(f"- {{name: {column}, {start}, {shape}, feature_encoder: layers.MaskedSumPooling()}}")
        if neighbors:
            shape = f"max_len: {neighbors}" + (f", vocab_size: {largest_id + 1}" if largest_id else "")
            shape += f", share_embedding: {target}"
            lines.append(f"- {{name: {related(column, 'neighbors')}, {start}, {shape}}}")
    return lines


def related(column: str, what: str) -> str:
    """Return the column of ``what`` that belongs to a column of codes: ``neighbors_vq_text`` to ``codes_vq_text``."""
    return what + column.removeprefix("codes")


def format_report(report: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the report as text, with a table per column."""
    lines = []
    for column, values in report.items():
        names = values["modalities"]
        lines.append(
            f"{column}: {values['method']} of {', '.join(names)} (scaling {values['scaling']}), "
            f"{values['items']} items, {values['items_without_vector']} without an embedding"
        )
        if values["items_without_a_modality"]:
            lines.append(f"  {values['items_without_a_modality']} items without a modality: it is replaced by the mean")
        shown = names if len(names) > 1 else []
        header = ["level", "relative error", "codes used", "perplexity", *(f"error of {name}" for name in shown)]
        errors = [values["relative_error"], *(values["relative_error_by_modality"][name] for name in shown)]
        rows = [
            [str(level), f"{errors[0][level - 1]:.4f}", f"{used:.1%}", f"{perplexity:.1f}"]
            + [f"{error[level - 1]:.4f}" for error in errors[1:]]
            for level, (used, perplexity) in enumerate(zip(values["codes_used"], values["perplexity"], strict=True), 1)
        ]
        lines += [f"  {line}" for line in format_table(header, rows, right=header).splitlines()]
        lines.append(
            f"  {values['colliding_items']} items share all their codes with another item; the largest "
            f"group has {values['largest_collision']} items"
        )
    return "\n".join(lines)
