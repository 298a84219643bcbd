"""PCA of item embeddings by modality, and of all modalities: strategies, and the saved reducer.

Shape letters: I items, n items of a chunk, D dim of an embedding, K dim after the reduction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuxictr_mm.files import StrPath
from fuxictr_mm.reduction.pca import PrincipalComponents
from fuxictr_mm.reduction.saved import SavedFormat, check_modalities

#: Kinds of strategies besides the PCA of one modality: the joint PCA, and separate PCAs, concatenated.
JOINT, APART = "joint", "apart"

SAVED = SavedFormat("reducer", "reduce")


@dataclass(frozen=True)
class Modality:
    """One modality of a reducer."""

    name: str
    column: str  #: Of the fit.
    dim: int  #: D.
    missing: int  #: Items of the fit whose embedding is zero.
    divisors: np.ndarray  #: ``(D,)``, what columns are divided by; ones unless the scaling is ``standard``.
    pca: PrincipalComponents  #: Of this modality alone.


@dataclass(frozen=True)
class Strategy:
    """One column of the output."""

    name: str  #: Without the prefix: ``v1`` to ``v4`` for two modalities, else a modality, ``joint`` or ``apart``.
    kind: str  #: ``single`` (PCA of one modality), ``joint`` (joint PCA), ``apart`` (separate PCAs).
    dims: dict[str, int]  #: K of each modality; for ``joint``, of all under ``joint``.

    @property
    def dim(self) -> int:
        """K of the column."""
        return sum(self.dims.values())

    def describe(self, modalities: Iterable[str]) -> str:
        """Return a formula."""
        if self.kind == JOINT:
            return f"PCA({', '.join(modalities)})"
        return " + ".join(f"PCA({name})" for name in self.dims)


@dataclass(frozen=True)
class Reducer:
    """PCA of item embeddings, one result per strategy.

    An item without an embedding, that is, a zero one, gets zeros, as the padding has. Centred like the others it would
    become -mean W^T: a point far from all items, the same for all items without an embedding, which a model would take
    for content. The joint PCA replaces missing modalities of an item by their mean, so that they add
    nothing.

    With ``balance``, each part of the strategy of separate PCAs is multiplied by one number, so that the mean variance
    of the components is the same in all parts, the geometric mean of theirs: at their own scales, one modality would
    dominate the other in the model.
    """

    modalities: tuple[Modality, ...]  #: In the order of the joint embedding.
    joint: PrincipalComponents | None  #: The joint PCA; None if no strategy needs it.
    joint_totals: dict[str, float]  #: Variance of each modality among the items of the joint fit.
    strategies: tuple[Strategy, ...]  #: Columns of the output.
    scaling: str  #: Before the PCA: ``none``, ``l2`` (length 1), ``standard`` (by column standard deviations).
    whiten: bool  #: Each component is divided by its standard deviation.
    balance: bool

    @property
    def columns(self) -> dict[str, slice]:
        """Position of each modality in the joint embedding."""
        ends = np.cumsum([0, *(m.dim for m in self.modalities)]).tolist()
        return {m.name: slice(*pair) for m, pair in zip(self.modalities, itertools.pairwise(ends), strict=True)}

    def check(self, dims: Mapping[str, int]) -> None:
        """Raise ConfigError where names and dims of embeddings are not those of the fit."""
        columns = {m.name: m.column for m in self.modalities}
        check_modalities(dims, {m.name: m.dim for m in self.modalities}, "the reducer", columns)

    def transform(self, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return ``(n, K)`` float32 of each strategy from ``(n, D)`` of each modality; raises as ``check``."""
        self.check({name: rows.shape[1] for name, rows in vectors.items()})
        scaled = {m.name: scale_rows(vectors[m.name], self.scaling) for m in self.modalities}
        present = {name: (rows != 0).any(axis=1, keepdims=True) for name, rows in scaled.items()}
        apply = {s.name: self._joint if s.kind == JOINT else self._separate for s in self.strategies}
        return {s.name: apply[s.name](s, scaled, present).astype(np.float32) for s in self.strategies}

    def _joint(
        self, strategy: Strategy, scaled: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        assert self.joint is not None
        pca = self.joint.keep(strategy.dim)
        result = np.zeros((len(next(iter(scaled.values()))), strategy.dim))
        for modality in self.modalities:
            columns = self.columns[modality.name]
            centred = (scaled[modality.name] - pca.mean[columns]) / modality.divisors
            result += (centred * present[modality.name]) @ pca.components[:, columns].T
        return self._whitened(result, pca)

    def _separate(
        self, strategy: Strategy, scaled: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        parts, variances = [], []
        for modality in self.modalities:
            if modality.name in strategy.dims:
                pca = modality.pca.keep(strategy.dims[modality.name])
                centred = (scaled[modality.name] - pca.mean) / modality.divisors
                parts.append(self._whitened((centred @ pca.components.T) * present[modality.name], pca))
                variances.append(pca.variances.mean())
        if self.balance and not self.whiten:
            # The geometric mean, which for one part is its own: parts of one scale are unchanged.
            common = np.exp(np.mean(np.log(variances)))
            parts = [part * np.sqrt(common / own) for part, own in zip(parts, variances, strict=True)]
        return np.concatenate(parts, axis=1)

    def _whitened(self, result: np.ndarray, pca: PrincipalComponents) -> np.ndarray:
        return result / np.sqrt(np.where(pca.variances > 0, pca.variances, 1)) if self.whiten else result

    def save(self, path: StrPath) -> None:
        """Write a safetensors file, with the meaning of its arrays as JSON in the metadata."""
        arrays: dict[str, np.ndarray] = {}
        pcas = {str(number): modality.pca for number, modality in enumerate(self.modalities)}
        for prefix, pca in [*pcas.items(), *([("joint", self.joint)] if self.joint is not None else [])]:
            arrays |= {f"{prefix}.{name}": getattr(pca, name) for name in ("mean", "components", "variances")}
        arrays |= {f"{number}.deviations": modality.divisors for number, modality in enumerate(self.modalities)}
        described = [
            {"name": m.name, "column": m.column, "width": m.dim, "missing": m.missing}
            | {"total": m.pca.total, "count": m.pca.count}
            for m in self.modalities
        ]
        joint = self.joint and {"total": self.joint.total, "count": self.joint.count, "totals": self.joint_totals}
        strategies = [{"name": s.name, "kind": s.kind, "widths": s.dims} for s in self.strategies]
        settings = {"scaling": self.scaling, "whiten": self.whiten, "balance": self.balance}
        SAVED.save(path, {"modalities": described, "joint": joint, "strategies": strategies, **settings}, arrays)

    @classmethod
    def load(cls, path: StrPath) -> Reducer:
        """Read what ``save`` wrote; raises MissingFileError or DataError."""
        return SAVED.load(path, cls._from_content)

    @classmethod
    def _from_content(cls, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reducer:
        def pca(prefix: str, found: Mapping[str, Any]) -> PrincipalComponents:
            mean, components, variances = (arrays[f"{prefix}.{name}"] for name in ("mean", "components", "variances"))
            return PrincipalComponents(mean, components, variances, float(found["total"]), int(found["count"]))

        reducer = cls(
            tuple(
                Modality(
                    *(str(m["name"]), str(m["column"]), int(m["width"]), int(m["missing"])),
                    divisors=arrays[f"{number}.deviations"],
                    pca=pca(str(number), m),
                )
                for number, m in enumerate(content["modalities"])
            ),
            pca("joint", content["joint"]) if content["joint"] else None,
            dict(content["joint"]["totals"]) if content["joint"] else {},
            tuple(Strategy(s["name"], s["kind"], dict(s["widths"])) for s in content["strategies"]),
            *(content["scaling"], bool(content["whiten"]), bool(content["balance"])),
        )
        reducer._check_arrays()
        return reducer

    def _check_arrays(self) -> None:
        pcas = {m.name: (m.dim, m.pca) for m in self.modalities}
        if self.joint is not None:
            pcas[JOINT] = sum(m.dim for m in self.modalities), self.joint
        good = all(pca.components.shape == (len(pca.variances), *pca.mean.shape) for _, pca in pcas.values())
        good &= all(pca.mean.shape == (dim,) for dim, pca in pcas.values())
        good &= all(m.divisors.shape == (m.dim,) and (m.divisors > 0).all() for m in self.modalities)
        needed = [(name, dim) for s in self.strategies for name, dim in s.dims.items()]
        if not good or not needed or any(len(pcas[name][1].variances) < dim for name, dim in needed):
            raise ValueError("its arrays do not fit together")


def scale_rows(vectors: np.ndarray, scaling: str) -> np.ndarray:
    """Return embeddings ``(n, D)`` as float64, of length 1 where the scaling is ``l2``; zero embeddings stay zero."""
    exact = vectors.astype(np.float64)
    if scaling == "l2":
        # By the largest entry first: the square of a tiny number is zero.
        largest = np.maximum(exact.max(axis=1, initial=0), -exact.min(axis=1, initial=0))
        exact /= np.where(largest > 0, largest, 1)[:, None]
        lengths = np.sqrt(np.einsum("nd,nd->n", exact, exact))
        exact /= np.where(lengths > 0, lengths, 1)[:, None]
    return exact
