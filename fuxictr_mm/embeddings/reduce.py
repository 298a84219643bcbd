"""``fuxictr-mm embed reduce``: vectors of any modalities, reduced and joined by PCA.

The strategies of "Feature Fusion Revisited" (Zhou, WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2504.18961):
V1 PCA(text), V2 PCA(image), V3 PCA(text, image), V4 PCA(text) + PCA(image).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.cli import add_examples, show
from fuxictr_mm.config import nearest
from fuxictr_mm.embeddings.command import add_output
from fuxictr_mm.embeddings.item_files import (
    ItemFileWriter,
    JoinedVectors,
    PretrainedEmbFile,
    SavedFormat,
    Source,
    add_sources,
    vector_type,
)
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.terminal import item_bar

#: A direction whose variance is below this part of the largest is rounding, and is set to zero.
NO_VARIANCE = 1e-12


@dataclass(frozen=True)
class PrincipalComponents:
    """z = (x - mean) W^T, rows of W orthonormal, by falling variance of z.

    Parameters
    ----------
    mean : ndarray
        ``(D,)``.
    components : ndarray
        W ``(K, D)``; zero rows past the rank of the data.
    variances : ndarray
        ``(K,)``, with the divisor I - 1.
    total : float
        Variance of all D columns together.
    count : int
        I, the vectors that took part.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    total: float
    count: int

    def keep(self, width: int) -> PrincipalComponents:
        """Return the first ``width`` components."""
        return PrincipalComponents(
            self.mean, self.components[:width].copy(), self.variances[:width].copy(), self.total, self.count
        )

    @property
    def rank(self) -> int:
        """Components that have variance."""
        return int((self.variances > 0).sum())

    def width_for(self, share: float) -> int:
        """Return the smallest width that keeps ``share`` of the variance; at least 1."""
        kept = np.cumsum(self.variances)
        # Rounding of the sum must not cost one more component, and a share of 1 must be reachable.
        enough = kept >= share * self.total * (1 - 1e-9)
        return int(enough.argmax()) + 1 if enough.any() else max(self.rank, 1)


class Moments:
    """Mean and covariance of vectors that come in chunks; memory is D^2, whatever their number.

    The update of Chan, Golub, LeVeque, The American Statistician 1983, https://doi.org/10.1080/00031305.1983.10483115:
    S += S_chunk + (m_chunk - m)(m_chunk - m)^T n I / (n + I), which loses nothing where means are large.

    Parameters
    ----------
    width : int
        D.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros(width)
        self.scatter: np.ndarray = np.zeros((width, width))

    def update(self, vectors: np.ndarray) -> None:
        """Add vectors ``(n, D)``."""
        if not len(vectors):
            return
        mean = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors - mean
        self._add(len(centred), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add the vectors that ``other`` has seen."""
        if other.count:
            self._add(other.count, other.mean, other.scatter)

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        both = self.count + count
        delta = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(delta, delta * (self.count * count / both))
        self.mean += delta * (count / both)
        self.count = both

    def block(self, columns: slice) -> Moments:
        """Return the moments of some of the columns."""
        part = Moments(0)
        part.count = self.count
        part.mean = self.mean[columns].copy()
        part.scatter = self.scatter[columns, columns].copy()
        return part

    @property
    def covariance(self) -> np.ndarray:
        """``(D, D)``, with the divisor I - 1."""
        return self.scatter / (self.count - 1)

    def components(self, deviations: np.ndarray | None = None) -> PrincipalComponents:
        """Return all components there can be, of the columns divided by ``deviations`` ``(D,)`` where given."""
        covariance = self.covariance
        if deviations is not None:
            covariance /= deviations
            covariance /= deviations[:, None]
        variances, vectors = np.linalg.eigh(covariance)
        most = min(len(variances), self.count - 1)
        return _in_order(
            self.mean, vectors.T[::-1][:most], variances[::-1][:most], float(np.trace(covariance)), self.count
        )


def fit_in_memory(vectors: np.ndarray, deviations: np.ndarray | None = None) -> PrincipalComponents:
    """Return all components of vectors ``(I, D)`` by scikit-learn; ``deviations`` is as in ``Moments.components``.

    Float64 vectors are centred (and divided) in place; others are copied.
    """
    from sklearn.decomposition import PCA

    exact = vectors.astype(np.float64, copy=False)
    # scikit-learn takes the mean off the products, which loses digits where means are large.
    mean = exact.mean(axis=0)
    exact -= mean
    if deviations is not None:
        exact /= deviations
    with np.errstate(invalid="ignore"):  # its shares of a variance of zero
        fitted = PCA(svd_solver="covariance_eigh", copy=False).fit(exact)
    total = float(np.einsum("nd,nd->", exact, exact)) / (len(exact) - 1)
    most = min(exact.shape[1], len(exact) - 1)
    return _in_order(mean, fitted.components_[:most], fitted.explained_variance_[:most], total, len(exact))


def _in_order(
    mean: np.ndarray, components: np.ndarray, variances: np.ndarray, total: float, count: int
) -> PrincipalComponents:
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    real = (variances > NO_VARIANCE * variances.max(initial=0)) & (variances > 0)
    # Past the rank any direction will do, and each way finds another: none is the same for all.
    components = np.where(real[:, None], components * signs[:, None], 0.0)
    return PrincipalComponents(mean, components, np.where(real, variances, 0.0), total, count)


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


#: Bytes of a chunk of float64 vectors, of all modalities together.
CHUNK_BYTES = 1 << 26


#: A column that varies less than this part of its mean is constant up to float32's rounding.
CONSTANT = 1e-6


def fit_reducer(
    joined: JoinedVectors,
    *,
    dim: int | None = None,
    variance: float | None = None,
    scaling: str = "none",
    whiten: bool = False,
    balance: bool = True,
    strategies: Sequence[str] | None = None,
    memory: float = 1e9,
    advance: Callable[[int], object] = lambda items: None,
) -> Reducer:
    """Fit the PCA of each modality, and of all side by side.

    An item takes part in the PCA of a modality if its vector there is not zero, and in the joint one if none of its
    vectors is.

    Parameters
    ----------
    joined : JoinedVectors
        The modalities.
    dim : int, optional
        K of each strategy; the modalities of V4 share it equally, the first ones having one more where it does not
        divide. 128 where ``variance`` is not given either.
    variance : float, optional
        The share of the variance to keep, above 0 and at most 1, in place of ``dim``: each PCA gets the smallest width
        that keeps it.
    scaling : {"none", "l2", "standard"}
        Vectors before the PCA: as they are, of length 1, or each column divided by its standard deviation.
    whiten : bool
        Divide each component by its standard deviation.
    balance : bool
        Bring the modalities' parts of V4 to one scale, the geometric mean of theirs.
    strategies : sequence of str, optional
        Which to fit, by name; all by default.
    memory : float
        Bytes. Vectors that need more than that are read in chunks instead of held.
    advance : callable
        Told the number of items whenever some were read.

    Raises
    ------
    ConfigError
        A setting is out of its range; a width is larger than the vectors are.
    DataError
        Fewer than two items have a vector, or all vectors are the same.
    """
    names = [source.name for source in joined.sources]
    chosen = choose_strategies(names, strategies)
    _check(dim, variance, scaling)
    with_joint = any(kind == JOINT for _, kind in chosen)
    total_width = sum(joined.widths.values())
    held = 8 * len(joined.ids) * (total_width if with_joint else max(joined.widths.values()))
    fit = _fit_held if held <= memory else _fit_chunked
    singles, deviations, joint, joint_totals = fit(joined, scaling, with_joint, advance)
    dim = 128 if dim is None and variance is None else dim
    plan = [_plan(name, kind, names, singles, joint, dim, variance) for name, kind in chosen]
    modalities = []
    for source in joined.sources:
        pca = singles[source.name]
        used = max([1, *(s.widths.get(source.name, 0) for s in plan)])
        # The report compares the joint PCA with what an equal part of its width would keep.
        equal_part = max((s.width // len(names) for s in plan if s.kind == JOINT), default=1)
        modalities.append(
            Modality(
                source.name,
                source.column,
                joined.widths[source.name],
                len(joined.ids) - pca.count,
                deviations[source.name],
                pca.keep(max(used, equal_part)),
            )
        )
    if joint is not None:
        joint = joint.keep(max(s.width for s in plan if s.kind == JOINT))
    return Reducer(tuple(modalities), joint, joint_totals, tuple(plan), scaling, whiten, balance)


def choose_strategies(names: Sequence[str], wanted: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return the name and the kind of each strategy; the kind of a PCA apart is its modality.

    Examples
    --------
    >>> choose_strategies(["text", "image"])
    [('v1', 'text'), ('v2', 'image'), ('v3', 'joint'), ('v4', 'apart')]
    >>> choose_strategies(["text", "image", "sound"], ["sound", "apart"])
    [('sound', 'sound'), ('apart', 'apart')]
    """
    for name in names:
        if name in (JOINT, APART):
            raise ConfigError(f"a modality is named '{name}', which is the name of a strategy; give it another name")
    kinds = [*names, JOINT, APART] if len(names) > 1 else list(names)
    every = [(f"v{number}", kind) if len(names) == 2 else (kind, kind) for number, kind in enumerate(kinds, start=1)]
    if wanted is None:
        return every
    known = {text: strategy for strategy in every for text in strategy[::-1]}
    for text in wanted:
        if text not in known:
            raise ConfigError(
                f"strategy '{text}' is unknown{nearest(text, known)} "
                f"(there are: {', '.join(n if n == k else f'{n} or {k}' for n, k in every)})"
            )
    asked = {known[text] for text in wanted}
    return [strategy for strategy in every if strategy in asked]


def _check(dim: int | None, variance: float | None, scaling: str) -> None:
    if dim is not None and variance is not None:
        raise ConfigError("both dim and variance are given; expected one of them")
    if dim is not None and dim < 1:
        raise ConfigError(f"dim is {dim}, expected at least 1")
    if variance is not None and not 0 < variance <= 1:
        raise ConfigError(f"variance is {variance}, expected a share above 0 and at most 1, such as 0.95")
    if scaling not in SCALINGS:
        raise ConfigError(f"scaling is '{scaling}'{nearest(scaling, SCALINGS)}; expected one of {', '.join(SCALINGS)}")


def _plan(
    name: str,
    kind: str,
    names: Sequence[str],
    singles: Mapping[str, PrincipalComponents],
    joint: PrincipalComponents | None,
    dim: int | None,
    variance: float | None,
) -> Strategy:
    parts = names if kind == APART else [kind]
    pcas = {part: joint if part == JOINT and joint is not None else singles[part] for part in parts}
    if dim is None:
        assert variance is not None
        widths = {part: pca.width_for(variance) for part, pca in pcas.items()}
    else:
        if dim < len(parts):
            raise ConfigError(f"dim is {dim}, expected at least {len(parts)}: one for each modality of {name}")
        widths = {part: dim // len(parts) + (number < dim % len(parts)) for number, part in enumerate(parts)}
    for part, pca in pcas.items():
        if widths[part] > len(pca.variances):
            raise ConfigError(
                f"{name} takes {widths[part]} components of '{part}', which has no more than {len(pca.variances)} "
                f"(vectors of width {pca.components.shape[1]}, {pca.count} items); lower dim"
            )
    return Strategy(name, kind if kind in (JOINT, APART) else "single", widths)


_Fit = tuple[dict[str, PrincipalComponents], dict[str, np.ndarray], PrincipalComponents | None, dict[str, float]]


def _fit_chunked(joined: JoinedVectors, scaling: str, with_joint: bool, advance: Callable[[int], object]) -> _Fit:
    """Pass once over the chunks; memory is the square of the width."""
    widths = joined.widths
    columns = dict(zip(widths, blocks(widths.values()), strict=True))
    moments = {name: Moments(width) for name, width in widths.items()}
    together = Moments(sum(widths.values()) if with_joint else 0)
    for ids, vectors in joined.chunks(max(256, CHUNK_BYTES // (8 * sum(widths.values())))):
        scaled = {name: scale_rows(rows, scaling) for name, rows in vectors.items()}
        present = {name: rows.any(axis=1) for name, rows in scaled.items()}
        whole = np.logical_and.reduce(list(present.values())) & with_joint
        if with_joint:
            together.update(np.concatenate([rows[whole] for rows in scaled.values()], axis=1))
        for name, rows in scaled.items():
            # Whole items are in the joint moments already, of which a modality's are a block.
            moments[name].update(rows[present[name] & ~whole])
        advance(len(ids))
    if with_joint:
        for name in widths:
            moments[name].merge(together.block(columns[name]))
        _require_items(together.count, "all modalities")
    for name in widths:
        _require_items(moments[name].count, f"modality '{name}'")
    deviations = {name: _deviations(np.diag(moments[name].covariance), moments[name].mean, scaling) for name in widths}
    singles = {name: moments[name].components(_if_standard(deviations[name], scaling)) for name in widths}
    _require_variance(singles)
    if not with_joint:
        return singles, deviations, None, {}
    divisors = np.concatenate(list(deviations.values()))
    variances = np.diag(together.covariance) / divisors**2
    totals = {name: float(variances[columns[name]].sum()) for name in widths}
    return singles, deviations, together.components(_if_standard(divisors, scaling)), totals


def _fit_held(joined: JoinedVectors, scaling: str, with_joint: bool, advance: Callable[[int], object]) -> _Fit:
    """Hold what is fitted, one PCA after the other, as float64."""
    widths = joined.widths
    singles, deviations = {}, {}
    for name, width in widths.items():
        exact = _collect(joined, [name], scaling)
        _require_items(len(exact), f"modality '{name}'")
        # By columns: numpy's `var` of the whole would hold it once more.
        variances = np.array([exact[:, column].var(ddof=1) for column in range(width)])
        deviations[name] = _deviations(variances, exact.mean(axis=0), scaling)
        singles[name] = fit_in_memory(exact, _if_standard(deviations[name], scaling))
        del exact
    _require_variance(singles)
    advance(len(joined.ids))
    if not with_joint:
        return singles, deviations, None, {}
    exact = _collect(joined, list(widths), scaling)
    _require_items(len(exact), "all modalities")
    divisors = np.concatenate(list(deviations.values()))
    joint = fit_in_memory(exact, _if_standard(divisors, scaling))
    squares = np.einsum("nd,nd->d", exact, exact) / (len(exact) - 1)  # fit_in_memory has centred it
    columns = dict(zip(widths, blocks(widths.values()), strict=True))
    return singles, deviations, joint, {name: float(squares[columns[name]].sum()) for name in widths}


def _collect(joined: JoinedVectors, names: Sequence[str], scaling: str) -> np.ndarray:
    """Return the vectors of the items that have all of these modalities, side by side."""
    exact = np.empty((len(joined.ids), sum(joined.widths[name] for name in names)))
    rows = 0
    for _, vectors in joined.chunks(names=names):
        whole = np.logical_and.reduce([v.any(axis=1) for v in vectors.values()])
        more = rows + int(whole.sum())
        for name, columns in zip(names, blocks(joined.widths[name] for name in names), strict=True):
            exact[rows:more, columns] = scale_rows(vectors[name][whole], scaling)
        rows = more
    return exact[:rows]


def _if_standard(deviations: np.ndarray, scaling: str) -> np.ndarray | None:
    return deviations if scaling == "standard" else None


def _deviations(variances: np.ndarray, mean: np.ndarray, scaling: str) -> np.ndarray:
    """Return what to divide columns by; constant ones are left as they are."""
    if scaling != "standard":
        return np.ones(len(variances))
    deviations = np.sqrt(variances)
    return np.where(deviations > CONSTANT * np.abs(mean), deviations, 1.0)


def _require_items(count: int, what: str) -> None:
    if count < 2:
        raise DataError(f"{what}: {count} items have a vector that is not zero, expected at least 2 to fit a PCA")


def _require_variance(singles: Mapping[str, PrincipalComponents]) -> None:
    for name, pca in singles.items():
        if pca.rank == 0:
            raise DataError(f"modality '{name}': the vectors of all {pca.count} items are the same; nothing to reduce")


#: A modality is drowned if it makes less than this part of an equal share of the joint components, ...
SMALL_SHARE = 0.2


#: ... or if they keep less than this part of what its own PCA in an equal share of the width keeps.
SMALL_PART = 0.5


def summarize(reducer: Reducer, prefix: str) -> dict[str, Any]:
    """Return the report as plain values.

    Keys: ``scaling``, ``whiten``, ``balance``; ``modalities`` with ``items`` (of the fit), ``missing`` and
    ``variance``; ``strategies`` with ``kept`` (share of all variance), ``kept_of`` (of each modality's) and, for the
    joint one, ``made_of`` (share of its components' variance that each modality makes); ``warnings``.
    """
    return {
        "scaling": reducer.scaling,
        "whiten": reducer.whiten,
        "balance": reducer.balance,
        "modalities": [
            {
                "name": m.name,
                "column": m.column,
                "width": m.width,
                "items": m.pca.count,
                "missing": m.missing,
                "variance": m.pca.total,
            }
            for m in reducer.modalities
        ],
        "strategies": [
            {
                "column": f"{prefix}_{s.name}",
                "strategy": s.describe(reducer.names),
                "width": s.width,
                "widths": s.widths,
                **_shares(reducer, s),
            }
            for s in reducer.strategies
        ],
        "warnings": [sentence for s in reducer.strategies if s.kind == JOINT for sentence in _drowned(reducer, s)],
    }


def _shares(reducer: Reducer, strategy: Strategy) -> dict[str, Any]:
    if strategy.kind == JOINT:
        amounts = _joint_amounts(reducer, strategy)
        kept = sum(amounts.values())
        return {
            "kept": kept / sum(reducer.joint_totals.values()),
            "kept_of": {name: amount / reducer.joint_totals[name] for name, amount in amounts.items()},
            "made_of": {name: amount / kept for name, amount in amounts.items()},
        }
    used = [m for m in reducer.modalities if m.name in strategy.widths]
    amounts = {m.name: float(m.pca.variances[: strategy.widths[m.name]].sum()) for m in used}
    return {
        "kept": sum(amounts.values()) / sum(m.pca.total for m in used),
        "kept_of": {m.name: amounts[m.name] / m.pca.total for m in used},
    }


def _joint_amounts(reducer: Reducer, strategy: Strategy) -> dict[str, float]:
    assert reducer.joint is not None
    pca = reducer.joint.keep(strategy.width)
    weighted = pca.variances @ pca.components**2
    columns = blocks(reducer.widths.values())
    return {name: float(weighted[c].sum()) for name, c in zip(reducer.names, columns, strict=True)}


def _drowned(reducer: Reducer, strategy: Strategy) -> list[str]:
    """Say which modalities the joint PCA hardly sees."""
    shares = _shares(reducer, strategy)
    made_of, kept_of = shares["made_of"], shares["kept_of"]
    equal_part = max(strategy.width // len(reducer.modalities), 1)
    loudest = max(made_of, key=made_of.__getitem__)
    apart = next((s.name for s in reducer.strategies if s.kind == APART), APART)
    remedy = f"use {apart}" if reducer.scaling != "none" else f"use {apart}, or scale the vectors (standard or l2)"
    sentences = []
    for modality in reducer.modalities:
        alone = float(modality.pca.variances[:equal_part].sum()) / modality.pca.total
        quiet = made_of[modality.name] < SMALL_SHARE / len(reducer.modalities)
        if modality.name != loudest and (quiet or kept_of[modality.name] < SMALL_PART * alone):
            sentences.append(
                f"{loudest} drowns {modality.name} in {strategy.name}: its components are "
                f"{percent(made_of[loudest])} {loudest} and {percent(made_of[modality.name])} {modality.name}, and "
                f"keep {percent(kept_of[modality.name])} of {modality.name}'s variance, of which a PCA of its own in "
                f"{equal_part} components keeps {percent(alone)}; {remedy}"
            )
    return sentences


def percent(share: float) -> str:
    """Return a share with one digit.

    Examples
    --------
    >>> percent(0.98765)
    '98.8%'
    """
    return f"{100 * share:.1f}%"


def format_report(report: dict[str, Any]) -> str:
    """Return the tables and the warnings."""
    names = [m["name"] for m in report["modalities"]]
    lines = _table(
        ["modality", "column", "width", "items", "without", "variance"],
        [
            [m["name"], m["column"], str(m["width"]), str(m["items"]), str(m["missing"]), f"{m['variance']:.6g}"]
            for m in report["modalities"]
        ],
    )
    rows = []
    for s in report["strategies"]:
        kept = [percent(s["kept_of"][name]) if name in s["kept_of"] else "-" for name in names]
        width = " + ".join(str(width) for width in s["widths"].values())
        rows.append([s["column"], s["strategy"], width, percent(s["kept"]), *kept])
    lines += ["", *_table(["column", "strategy", "width", "variance kept", *(f"of {n}" for n in names)], rows)]
    for s in report["strategies"]:
        if "made_of" in s:
            parts = ", ".join(f"{percent(share)} {name}" for name, share in s["made_of"].items())
            lines += ["", f"The components of {s['column']} are {parts}."]
    lines += [f"warning: {sentence}" for sentence in report["warnings"]]
    return "\n".join(lines)


def format_applied(report: dict[str, Any]) -> str:
    """Return what a saved reducer was applied to; what it kept is said of its own fit."""
    fit = report["fit"]
    lines = [f"{report['items']} items reduced by {report['applied']}"]
    lines += [f"  {count} without a vector of {name}" for name, count in report["missing"].items() if count]
    rows = [[s["column"], s["strategy"], str(s["width"]), percent(s["kept"])] for s in fit["strategies"]]
    items = max(m["items"] for m in fit["modalities"])
    head = ["column", "strategy", "width", f"variance kept of the {items} items of the fit"]
    return "\n".join([*lines, "", *_table(head, rows)])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]


def yaml_lines(report: dict[str, Any]) -> str:
    """Return the lines of ``feature_cols`` in dataset_config.yaml."""
    return "\n".join(
        f"- {{name: {s['column']}, active: False, dtype: float, type: embedding, source: item, "
        f"pretrain_dim: {s['width']}}}"
        for s in report["strategies"]
    )


def reduce_vectors(
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    *,
    apply: str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    h5: str | os.PathLike[str] | None = None,
    prefix: str = "item_emb",
    overwrite: bool = False,
    progress: bool = False,
    **fit: Any,
) -> tuple[Reducer, dict[str, Any]]:
    """Fit a reducer, or load one, and write a column for each of its strategies.

    Parameters
    ----------
    sources : sequence of Source
        The modalities; joined on ``item_id``.
    out : str or path
        The item file to write.
    apply : str or path, optional
        A reducer that was saved, to be applied instead of fitting one.
    save : str or path, optional
        Where the fitted reducer goes; ``OUT`` with ``.reducer.safetensors`` in place of its suffix by default.
    report : str or path, optional
        A JSON file for the report.
    h5 : str or path, optional
        Start of the names of files for FuxiCTR's ``pretrained_emb``, one for each strategy: ``H5_v1.h5``, ...
    prefix : str
        Of the columns.
    overwrite : bool
        Replace files that are there.
    progress : bool
        Show a progress bar.
    **fit
        ``dim``, ``variance``, ``scaling``, ``whiten``, ``balance``, ``strategies`` and ``memory`` of ``fit_reducer``.

    Returns
    -------
    tuple of Reducer and dict
        The reducer and the report of its fit (``reduction.report.summarize``); with ``apply`` a dict of ``applied``,
        ``items``, ``missing`` (items without a vector of each modality) and that report under ``fit``.

    Raises
    ------
    UserError
        For settings, files or vectors that are wrong. Each file is whole then, or as it was before.
    """
    if not prefix.isidentifier():
        raise ConfigError(f"prefix '{prefix}', expected a name of letters, digits and _ such as item_emb")
    out = Path(out)
    save = Path(save) if save else out.with_suffix(".reducer.safetensors")
    outputs = [out, *([] if apply else [save]), *([Path(report)] if report else [])]
    reducer = Reducer.load(apply) if apply else None
    if h5:
        plan = choose_strategies([source.name for source in sources], fit.get("strategies"))
        names = [s.name for s in reducer.strategies] if reducer else [name for name, _ in plan]
        outputs += [Path(f"{h5}_{name}.h5") for name in names]
    check_outputs(outputs, [*(source.path for source in sources), apply], overwrite)
    with JoinedVectors(sources) as joined, ExitStack() as stack:
        if reducer is None:
            with item_bar(len(joined.ids), "fitting", int(progress)) as bar:
                reducer = fit_reducer(joined, **fit, advance=bar.update)
        reducer.check(joined.widths)
        columns = {strategy.name: f"{prefix}_{strategy.name}" for strategy in reducer.strategies}
        schema = {columns[s.name]: vector_type(s.width) for s in reducer.strategies}
        writes: list[Callable[..., None]] = []
        if h5:
            for strategy in reducer.strategies:
                path, size = f"{h5}_{strategy.name}.h5", (len(joined.ids), strategy.width)
                file = stack.enter_context(PretrainedEmbFile(path, *size, overwrite))
                writes.append(lambda ids, reduced, file=file, name=strategy.name: file.write(ids, reduced[name]))
        writer = stack.enter_context(ItemFileWriter(out, schema, overwrite))
        writes.append(lambda ids, reduced: writer.write(ids, {columns[name]: v for name, v in reduced.items()}))
        bar = stack.enter_context(item_bar(len(joined.ids), "reducing", int(progress)))
        missing = dict.fromkeys(joined.widths, 0)
        for ids, vectors in joined.chunks(max(256, CHUNK_BYTES // (8 * sum(joined.widths.values())))):
            reduced = reducer.transform(vectors)
            for name, rows in vectors.items():
                missing[name] += int((~rows.any(axis=1)).sum())
            for write in writes:
                write(ids, reduced)
            bar.update(len(ids))
    summary = summarize(reducer, prefix)
    if apply:
        summary = {"applied": str(apply), "items": len(joined.ids), "missing": missing, "fit": summary}
    else:
        reducer.save(save)
    if report:
        text = json.dumps(summary, indent=2) + "\n"
        write_beside(report, lambda stream: stream.write(text.encode()))
    return reducer, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm embed reduce``."""
    add_examples(
        parser,
        "fuxictr-mm embed reduce text=item_feature.parquet:txt_emb_BERT image=item_feature.parquet:img_emb_CLIPRN50 \\",
        "    --dim 128 --out item_emb.parquet",
        "fuxictr-mm embed reduce text=new_items.parquet:txt_emb_BERT image=new_items.parquet:img_emb_CLIPRN50 \\",
        "    --apply item_emb.reducer.safetensors --out new_item_emb.parquet",
    )
    add_sources(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="item file to write, one column per strategy")
    width = parser.add_mutually_exclusive_group()
    width.add_argument("--dim", type=int, metavar="N", help="width of each strategy (default: 128)")
    width.add_argument("--variance", type=float, metavar="SHARE", help="keep this share of the variance, such as 0.95")
    parser.add_argument(
        "--scaling",
        choices=SCALINGS,
        help="of the vectors before: as they are, l2 per row, standard per column (default: none)",
    )
    parser.add_argument(
        "--no-balance", action="store_true", help="leave each modality's part of v4 (apart) at its own scale"
    )
    parser.add_argument("--whiten", action="store_true", help="give each component the variance 1")
    parser.add_argument(
        "--strategies",
        metavar="NAME,...",
        help="v1 to v4 for two modalities, else their names, joint and apart (default: all)",
    )
    parser.add_argument("--prefix", default="item_emb", help="of the columns (default: item_emb)")
    parser.add_argument("--save", metavar="FILE", help="the fitted reducer (default: OUT.reducer.safetensors)")
    parser.add_argument("--apply", metavar="FILE", help="reduce by a saved reducer instead of fitting one")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON as well")
    parser.add_argument("--h5", metavar="PREFIX", help="write PREFIX_v1.h5, ... for FuxiCTR's pretrained_emb as well")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="fit in memory up to this size, else in chunks (default: 1)"
    )
    add_output(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Reduce as the parsed options of ``add_arguments`` say."""
    if args.memory is not None and not args.memory > 0:
        raise ConfigError(f"--memory is {args.memory:g}, expected gigabytes above 0; the less, the more is in chunks")
    options = {
        "dim": args.dim,
        "variance": args.variance,
        "scaling": args.scaling,
        "whiten": args.whiten or None,
        "balance": False if args.no_balance else None,
        "strategies": args.strategies and [name.strip() for name in args.strategies.split(",")],
        "memory": None if args.memory is None else 1e9 * args.memory,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if args.apply:
        for name in [*given, *(["save"] if args.save else [])]:
            option = "no-balance" if name == "balance" else name
            raise ConfigError(f"--{option} is a setting of the fit, and --apply fits nothing; leave one of them out")
    _, report = reduce_vectors(
        [Source.parse(text) for text in args.sources],
        args.out,
        apply=args.apply,
        save=args.save,
        report=args.report,
        h5=args.h5,
        prefix=args.prefix,
        overwrite=args.overwrite,
        progress=not args.quiet,
        **given,
    )
    told = format_applied(report) if args.apply else format_report(report)
    paste = f"For feature_cols in dataset_config.yaml, with {args.out} added to item_info:"
    show(args, report, f"{told}\n\n{paste}\n\n{yaml_lines(report.get('fit', report))}")
