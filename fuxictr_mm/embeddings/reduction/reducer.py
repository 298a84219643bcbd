"""A fitted reduction of several modalities: apply it, save it, load it.

Shape letters: n items, D width of a modality, K width of a result.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuxictr_mm.checking import nearest
from fuxictr_mm.embeddings.reduction.pca import PrincipalComponents
from fuxictr_mm.embeddings.saved import SavedFormat
from fuxictr_mm.errors import ConfigError

SCALINGS = ("none", "l2", "standard")
JOINT, APART = "joint", "apart"

SAVED = SavedFormat("reducer", "reduce")


@dataclass(frozen=True)
class Modality:
    """What is known of one modality.

    Parameters
    ----------
    name, column : str
        Name, and the column that it was fitted on.
    width : int
        D.
    missing : int
        Items of the fit without a vector of it, that is, a zero one.
    deviations : ndarray
        ``(D,)``, what columns are divided by; ones unless the scaling is ``standard``.
    pca : PrincipalComponents
        Of this modality alone.
    """

    name: str
    column: str
    width: int
    missing: int
    deviations: np.ndarray
    pca: PrincipalComponents


@dataclass(frozen=True)
class Strategy:
    """One column of the output.

    Parameters
    ----------
    name : str
        The column's name without its prefix: ``v1`` to ``v4`` for two modalities, else a modality, ``joint`` or
        ``apart``.
    kind : {"single", "joint", "apart"}
        PCA of one modality; PCA of all side by side; PCAs of each side by side.
    widths : dict of str to int
        K taken of each modality; for ``joint``, the whole width under ``joint``.
    """

    name: str
    kind: str
    widths: dict[str, int]

    @property
    def width(self) -> int:
        """K, the whole."""
        return sum(self.widths.values())

    def describe(self, modalities: tuple[str, ...]) -> str:
        """Say in a formula what it is."""
        if self.kind == JOINT:
            return f"PCA({', '.join(modalities)})"
        return " + ".join(f"PCA({name})" for name in self.widths)


@dataclass(frozen=True)
class Reducer:
    """Reduces vectors of items in one way for each strategy.

    An item without a vector, that is, a zero vector, gets zeros, as the padding has. Centred like the others it would
    become -mean W^T: a point away from all items, and the same for all that miss a vector, which a model would take
    for content. Where only some of an item's modalities are missing, the joint PCA takes them for the mean, so that
    they add nothing.

    Parameters
    ----------
    modalities : tuple of Modality
        In the order of the joint vector.
    joint : PrincipalComponents, optional
        Of all modalities side by side; missing where no strategy needs it.
    joint_totals : dict of str to float
        Variance of each modality among the items of the joint fit.
    strategies : tuple of Strategy
        What to write.
    scaling : {"none", "l2", "standard"}
        Vectors before the PCA: as they are, of length 1, or each column divided by its standard deviation.
    whiten : bool
        Each component is divided by its standard deviation.
    balance : bool
        In the strategy of PCAs apart, each modality's part is multiplied by one number, so that the mean variance of
        the components is the same in all parts, the geometric mean of theirs: side by side at their own scales, the
        louder modality would drown the other in the model.
    """

    modalities: tuple[Modality, ...]
    joint: PrincipalComponents | None
    joint_totals: dict[str, float]
    strategies: tuple[Strategy, ...]
    scaling: str
    whiten: bool
    balance: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Of the modalities."""
        return tuple(modality.name for modality in self.modalities)

    @property
    def widths(self) -> dict[str, int]:
        """D of each modality."""
        return {modality.name: modality.width for modality in self.modalities}

    def check(self, widths: Mapping[str, int]) -> None:
        """Raise ConfigError where vectors of these names and widths are not what was fitted."""
        for name in widths:
            if name not in self.names:
                raise ConfigError(
                    f"modality '{name}' is unknown to the reducer{nearest(name, self.names)} "
                    f"(fitted on: {', '.join(self.names)}); give its name as NAME=FILE:COLUMN"
                )
        for modality in self.modalities:
            if modality.name not in widths:
                raise ConfigError(
                    f"modality '{modality.name}' lacks; the reducer was fitted on: {', '.join(self.names)}"
                )
            if widths[modality.name] != modality.width:
                raise ConfigError(
                    f"modality '{modality.name}' has vectors of width {widths[modality.name]}, expected "
                    f"{modality.width} as the reducer was fitted on ({modality.column}); use vectors of the same model"
                )

    def transform(self, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the vectors ``(n, K)`` float32 of each strategy from vectors ``(n, D)`` of each modality.

        Raises
        ------
        ConfigError
            Names or widths are not those of the fit.
        """
        self.check({name: rows.shape[1] for name, rows in vectors.items()})
        scaled = {m.name: scale_rows(vectors[m.name], self.scaling) for m in self.modalities}
        present = {name: (rows != 0).any(axis=1, keepdims=True) for name, rows in scaled.items()}
        return {s.name: self._apply(s, scaled, present).astype(np.float32) for s in self.strategies}

    def _apply(
        self, strategy: Strategy, scaled: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        if strategy.kind == JOINT:
            assert self.joint is not None
            pca = self.joint.keep(strategy.width)
            result = np.zeros((len(next(iter(scaled.values()))), strategy.width))
            for modality, columns in zip(self.modalities, blocks(self.widths.values()), strict=True):
                centred = (scaled[modality.name] - pca.mean[columns]) / modality.deviations
                result += (centred * present[modality.name]) @ pca.components[:, columns].T
            return self._whitened(result, pca)
        parts, variances = [], []
        for modality in self.modalities:
            if modality.name in strategy.widths:
                pca = modality.pca.keep(strategy.widths[modality.name])
                centred = (scaled[modality.name] - pca.mean) / modality.deviations
                parts.append(self._whitened((centred @ pca.components.T) * present[modality.name], pca))
                variances.append(pca.variances.mean())
        if self.balance and not self.whiten:
            # Their geometric mean, and of one part its own, so that parts which are alike stay as they are.
            common = np.exp(np.mean(np.log(variances)))
            parts = [part * np.sqrt(common / own) for part, own in zip(parts, variances, strict=True)]
        return np.concatenate(parts, axis=1)

    def _whitened(self, result: np.ndarray, pca: PrincipalComponents) -> np.ndarray:
        if not self.whiten:
            return result
        return result / np.sqrt(np.where(pca.variances > 0, pca.variances, 1))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; what the arrays mean stands in its metadata as JSON."""
        arrays: dict[str, np.ndarray] = {}
        described = []
        for number, modality in enumerate(self.modalities):
            arrays[f"{number}.deviations"] = modality.deviations
            arrays |= _arrays_of(modality.pca, f"{number}.")
            described.append(
                {
                    "name": modality.name,
                    "column": modality.column,
                    "width": modality.width,
                    "missing": modality.missing,
                    "total": modality.pca.total,
                    "count": modality.pca.count,
                }
            )
        joint = None
        if self.joint is not None:
            arrays |= _arrays_of(self.joint, "joint.")
            joint = {"total": self.joint.total, "count": self.joint.count, "totals": self.joint_totals}
        content = {
            "modalities": described,
            "joint": joint,
            "strategies": [{"name": s.name, "kind": s.kind, "widths": s.widths} for s in self.strategies],
            "scaling": self.scaling,
            "whiten": self.whiten,
            "balance": self.balance,
        }
        SAVED.save(path, content, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reducer:
        """Read what ``save`` wrote.

        Raises
        ------
        MissingFileError
            There is no such file.
        DataError
            It is damaged or holds something else.
        """
        return SAVED.load(path, cls._from_content)

    @classmethod
    def _from_content(cls, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reducer:
        modalities = tuple(
            Modality(
                str(m["name"]),
                str(m["column"]),
                int(m["width"]),
                int(m["missing"]),
                arrays[f"{number}.deviations"],
                _pca_of(arrays, f"{number}.", m),
            )
            for number, m in enumerate(content["modalities"])
        )
        joint = content["joint"]
        reducer = cls(
            modalities,
            None if joint is None else _pca_of(arrays, "joint.", joint),
            {} if joint is None else dict(joint["totals"]),
            tuple(Strategy(s["name"], s["kind"], dict(s["widths"])) for s in content["strategies"]),
            content["scaling"],
            bool(content["whiten"]),
            bool(content["balance"]),
        )
        problem = reducer._problem()
        if problem:
            raise ValueError(problem)
        return reducer

    def _problem(self) -> str | None:
        """Say what does not fit together."""
        pcas = [(m.name, m.width, m.pca) for m in self.modalities]
        if self.joint is not None:
            pcas.append((JOINT, sum(self.widths.values()), self.joint))
        for name, width, pca in pcas:
            kept = pca.variances.shape
            if pca.mean.shape != (width,) or len(kept) != 1 or pca.components.shape != (*kept, width):
                return f"the arrays of '{name}' are of wrong shapes"
            if not all(np.isfinite(array).all() for array in (pca.mean, pca.components, pca.variances)):
                return f"the arrays of '{name}' are not finite"
        for modality in self.modalities:
            deviations = modality.deviations
            if deviations.shape != (modality.width,) or not (np.isfinite(deviations) & (deviations > 0)).all():
                return f"the deviations of '{modality.name}' are not {modality.width} positive numbers"
        kept = {name: len(pca.variances) for name, _, pca in pcas}
        for strategy in self.strategies:
            if any(kept.get(name, 0) < width for name, width in strategy.widths.items()):
                return f"strategy '{strategy.name}' needs components that are not there"
        if self.scaling not in SCALINGS or not self.modalities or not self.strategies:
            return "settings are missing"
        return None


def scale_rows(vectors: np.ndarray, scaling: str) -> np.ndarray:
    """Return vectors ``(n, D)`` as float64, of length 1 where the scaling is ``l2``; zero vectors stay zero."""
    exact = vectors.astype(np.float64)
    if scaling == "l2":
        # By the largest entry first: the square of a tiny number is zero.
        largest = np.maximum(exact.max(axis=1, initial=0), -exact.min(axis=1, initial=0))
        exact /= np.where(largest > 0, largest, 1)[:, None]
        lengths = np.sqrt(np.einsum("nd,nd->n", exact, exact))
        exact /= np.where(lengths > 0, lengths, 1)[:, None]
    return exact


def blocks(widths: Any) -> list[slice]:
    """Return where each modality stands in the joint vector.

    Examples
    --------
    >>> blocks([2, 3])
    [slice(0, 2, None), slice(2, 5, None)]
    """
    ends = np.cumsum([0, *widths]).tolist()
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _arrays_of(pca: PrincipalComponents, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": getattr(pca, name) for name in ("mean", "components", "variances")}


def _pca_of(arrays: Mapping[str, np.ndarray], prefix: str, content: Mapping[str, Any]) -> PrincipalComponents:
    return PrincipalComponents(
        arrays[f"{prefix}mean"],
        arrays[f"{prefix}components"],
        arrays[f"{prefix}variances"],
        float(content["total"]),
        int(content["count"]),
    )
