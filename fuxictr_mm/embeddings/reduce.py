"""``fuxictr-mm embed reduce``: PCA of item embeddings, separate for each modality and joint.

The strategies of "Feature Fusion Revisited" (Zhou, WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2504.18961):
V1 PCA(text), V2 PCA(image), V3 PCA(text, image), V4 PCA(text) + PCA(image).

Shape letters: I items, n items of a chunk, D dim of an embedding, K dim after the reduction.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.arguments import add_examples, show
from fuxictr_mm.config import nearest
from fuxictr_mm.embeddings.command import add_output
from fuxictr_mm.embeddings.item_files import (
    ItemFileWriter,
    JoinedEmbeddings,
    SavedFormat,
    Source,
    add_sources,
    embedding_type,
    read_embeddings,
)
from fuxictr_mm.embeddings.numbering import numbering
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import atomic_path, check_outputs, write_beside
from fuxictr_mm.terminal import format_table, item_bar

SCALINGS = ("none", "l2", "standard")

#: Kinds of strategies besides the PCA of one modality: the joint PCA, and separate PCAs, concatenated.
JOINT, APART = "joint", "apart"

SAVED = SavedFormat("reducer", "reduce")

#: Most bytes of float64 embeddings, of all modalities together, that are held at a time.
CHUNK_BYTES = 1 << 25

#: A component with less than this fraction of the largest variance is rounding, and is set to zero.
NO_VARIANCE = 1e-12

#: A column whose standard deviation is below this fraction of its mean is constant up to float32's rounding.
CONSTANT = 1e-6

#: A modality is dominated if it has less than this fraction of an equal part of the joint components, ...
SMALL_FRACTION = 0.2

#: ... or if they keep less than this fraction of what its own PCA keeps in an equal part of the dim.
SMALL_PART = 0.5


@dataclass(frozen=True)
class PrincipalComponents:
    """z = (x - mean) W^T, with orthonormal rows of W in descending order of the variance of z."""

    mean: np.ndarray  #: ``(D,)``.
    components: np.ndarray  #: W ``(K, D)``; zero rows past the rank of the data.
    variances: np.ndarray  #: ``(K,)``, with the divisor I - 1.
    total: float  #: Variance of all D columns together.
    count: int  #: I, the embeddings of the fit.

    def keep(self, count: int) -> PrincipalComponents:
        """Return the first ``count`` components."""
        return PrincipalComponents(
            self.mean, self.components[:count].copy(), self.variances[:count].copy(), self.total, self.count
        )

    @property
    def rank(self) -> int:
        """Components with variance."""
        return int((self.variances > 0).sum())

    def dim_for(self, fraction: float) -> int:
        """Return the smallest K that keeps ``fraction`` of the variance; at least 1."""
        kept = np.cumsum(self.variances)
        # Rounding of the sum must not cost one more component, and a fraction of 1 must be reachable.
        enough = kept >= fraction * self.total * (1 - 1e-9)
        return int(enough.argmax()) + 1 if enough.any() else max(self.rank, 1)


class Moments:
    """Mean and covariance of embeddings that come in chunks; memory is D^2, whatever their number.

    The update of Chan, Golub, LeVeque, The American Statistician 1983, https://doi.org/10.1080/00031305.1983.10483115:
    S += S_chunk + (m_chunk - m)(m_chunk - m)^T n I / (n + I), which loses no digits where means are large.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros(dim)
        self.scatter: np.ndarray = np.zeros((dim, dim))

    def update(self, vectors: np.ndarray) -> None:
        """Add embeddings ``(n, D)``."""
        if len(vectors):
            mean = vectors.mean(axis=0, dtype=np.float64)
            centred = vectors - mean
            self._add(len(centred), mean, centred.T @ centred)

    def merge_columns(self, other: Moments, columns: slice) -> None:
        """Add some of the columns of the embeddings that ``other`` has seen."""
        if other.count:
            self._add(other.count, other.mean[columns], other.scatter[columns, columns])

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        both = self.count + count
        delta = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(delta, delta * (self.count * count / both))
        self.mean += delta * (count / both)
        self.count = both

    @property
    def covariance(self) -> np.ndarray:
        """``(D, D)``, with the divisor I - 1."""
        return self.scatter / (self.count - 1)

    def components(self, divisors: np.ndarray | None = None) -> PrincipalComponents:
        """Return all components, of the columns divided by ``divisors`` ``(D,)`` where given.

        The entry of largest magnitude of each component is positive.
        """
        covariance = self.covariance
        if divisors is not None:
            covariance /= divisors
            covariance /= divisors[:, None]
        variances, vectors = np.linalg.eigh(covariance)
        most = min(len(variances), self.count - 1)
        variances, components = variances[::-1][:most], vectors.T[::-1][:most]
        signs = np.sign(components[np.arange(most), np.abs(components).argmax(axis=1)])
        # Past the rank, any direction would do; zeros are the same for every chunk size and machine.
        real = (variances > NO_VARIANCE * variances.max(initial=0)) & (variances > 0)
        components = np.where(real[:, None], components * signs[:, None], 0.0)
        total = float(np.trace(covariance))
        return PrincipalComponents(self.mean, components, np.where(real, variances, 0.0), total, self.count)


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
        names = [m.name for m in self.modalities]
        fitted = f"the reducer was fitted on: {', '.join(names)}"
        for name in dims:
            if name not in names:
                raise ConfigError(
                    f"modality '{name}' is unknown{nearest(name, names)} ({fitted}); name it as NAME=FILE:COLUMN"
                )
        for modality in self.modalities:
            if modality.name not in dims:
                raise ConfigError(f"modality '{modality.name}' is missing ({fitted}); add NAME=FILE:COLUMN")
            if dims[modality.name] != modality.dim:
                raise ConfigError(
                    f"modality '{modality.name}' has embeddings of dim {dims[modality.name]}, expected "
                    f"{modality.dim} as in the fit ({modality.column}); use embeddings of the same model"
                )

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

    def save(self, path: str | os.PathLike[str]) -> None:
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
    def load(cls, path: str | os.PathLike[str]) -> Reducer:
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


def fit_reducer(
    joined: JoinedEmbeddings,
    *,
    dim: int | None = None,
    variance: float | None = None,
    scaling: str = "none",
    whiten: bool = False,
    balance: bool = True,
    strategies: Sequence[str] | None = None,
    memory: float = CHUNK_BYTES,
    advance: Callable[[int], object] = lambda items: None,
) -> Reducer:
    """Fit the PCA of each modality, and the joint PCA, in one pass over chunks.

    An item takes part in the PCA of a modality if its embedding there is not zero, and in the joint one if none of its
    embeddings is.

    Parameters
    ----------
    joined : JoinedEmbeddings
        The modalities.
    dim : int, optional
        K of each strategy; divided equally among the modalities of V4, the first ones get the remainder.
        128 where ``variance`` is not given either.
    variance : float, optional
        Fraction of the variance to keep, above 0 and at most 1, instead of ``dim``: each PCA gets the smallest K that
        keeps it.
    scaling, whiten, balance
        As for ``Reducer``.
    strategies : sequence of str, optional
        Which to fit, by name; all by default.
    memory : float
        Bytes of embeddings held at a time; more than ``CHUNK_BYTES`` has no effect.
    advance : callable
        Called with the number of items of each chunk.

    Raises
    ------
    ConfigError
        A setting is out of its range; K is larger than D.
    DataError
        Fewer than two items have an embedding, or all embeddings are the same.
    """
    names = [source.name for source in joined.sources]
    chosen = choose_strategies(names, strategies)
    _check(dim, variance, scaling)
    dim = 128 if dim is None and variance is None else dim
    with_joint = any(kind == JOINT for _, kind in chosen)
    moments, together = _moments(joined, scaling, with_joint, min(memory, CHUNK_BYTES), advance)
    divisors = {name: _divisors(found, scaling) for name, found in moments.items()}
    divide = scaling == "standard"
    pcas = {name: found.components(divisors[name] if divide else None) for name, found in moments.items()}
    for name, pca in pcas.items():
        if pca.rank == 0:
            raise DataError(f"modality '{name}': all {pca.count} embeddings are the same; nothing to reduce")
    joint_totals = {}
    if with_joint:
        all_divisors = np.concatenate(list(divisors.values()))
        pcas[JOINT] = together.components(all_divisors if divide else None)
        parts = np.split(np.diag(together.covariance) / all_divisors**2, np.cumsum(list(joined.dims.values()))[:-1])
        joint_totals = {name: float(part.sum()) for name, part in zip(names, parts, strict=True)}
    plan = [_plan(name, kind, names, pcas, dim, variance) for name, kind in chosen]
    # The report compares the joint PCA with what a PCA of one modality keeps in an equal part of its K.
    equal_part = max((s.dim // len(names) for s in plan if s.kind == JOINT), default=1)
    modalities = []
    for source in joined.sources:
        name, pca = source.name, pcas[source.name]
        kept = pca.keep(max([1, equal_part, *(s.dims.get(name, 0) for s in plan)]))
        missing = len(joined.ids) - pca.count
        modalities.append(Modality(name, source.column, joined.dims[name], missing, divisors[name], kept))
    joint = pcas[JOINT].keep(max(s.dim for s in plan if s.kind == JOINT)) if with_joint else None
    return Reducer(tuple(modalities), joint, joint_totals, tuple(plan), scaling, whiten, balance)


def _rows_of(joined: JoinedEmbeddings, memory: float) -> int:
    """Return the items of a chunk whose float64 embeddings take so many bytes."""
    return max(256, int(memory) // (8 * sum(joined.dims.values())))


def _moments(
    joined: JoinedEmbeddings, scaling: str, with_joint: bool, memory: float, advance: Callable[[int], object]
) -> tuple[dict[str, Moments], Moments]:
    """Return the moments of each modality and, on request, of all together."""
    moments = {name: Moments(dim) for name, dim in joined.dims.items()}
    together = Moments(sum(joined.dims.values()) if with_joint else 0)
    for ids, vectors in joined.chunks(_rows_of(joined, memory)):
        scaled = {name: scale_rows(rows, scaling) for name, rows in vectors.items()}
        present = {name: rows.any(axis=1) for name, rows in scaled.items()}
        complete = np.logical_and.reduce(list(present.values())) & with_joint
        if with_joint:
            together.update(np.concatenate([rows[complete] for rows in scaled.values()], axis=1))
        for name, rows in scaled.items():
            # Complete items are in the joint moments already, of which those of a modality are a block.
            moments[name].update(rows[present[name] & ~complete])
        advance(len(ids))
    start = 0
    for name, dim in joined.dims.items():
        if with_joint:
            moments[name].merge_columns(together, slice(start, start + dim))
        start += dim
    if with_joint:
        _require_items(together.count, "all modalities")
    for name, found in moments.items():
        _require_items(found.count, f"modality '{name}'")
    return moments, together


def _require_items(count: int, what: str) -> None:
    if count < 2:
        raise DataError(f"{what}: {count} items have an embedding that is not zero, expected at least 2 to fit a PCA")


def _divisors(moments: Moments, scaling: str) -> np.ndarray:
    """Return what to divide columns by; constant ones are left as they are."""
    if scaling != "standard":
        return np.ones(len(moments.mean))
    deviations = np.sqrt(np.diag(moments.covariance))
    return np.where(deviations > CONSTANT * np.abs(moments.mean), deviations, 1.0)


def choose_strategies(names: Sequence[str], wanted: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return the name and the kind of each strategy; the kind of the PCA of one modality is its name.

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
    known = {text: strategy for strategy in every for text in strategy[::-1]}
    for text in wanted or ():
        if text not in known:
            raise ConfigError(
                f"strategy '{text}' is unknown{nearest(text, known)} "
                f"(there are: {', '.join(n if n == k else f'{n} or {k}' for n, k in every)})"
            )
    asked = every if wanted is None else [known[text] for text in wanted]
    return [strategy for strategy in every if strategy in asked]


def _check(dim: int | None, variance: float | None, scaling: str) -> None:
    if dim is not None and variance is not None:
        raise ConfigError("both dim and variance are given; expected one of them")
    if dim is not None and dim < 1:
        raise ConfigError(f"dim is {dim}, expected at least 1")
    if variance is not None and not 0 < variance <= 1:
        raise ConfigError(f"variance is {variance}, expected a fraction above 0 and at most 1, such as 0.95")
    if scaling not in SCALINGS:
        raise ConfigError(f"scaling is '{scaling}'{nearest(scaling, SCALINGS)}; expected one of {', '.join(SCALINGS)}")


def _plan(
    name: str,
    kind: str,
    names: Sequence[str],
    pcas: Mapping[str, PrincipalComponents],
    dim: int | None,
    variance: float | None,
) -> Strategy:
    """Return a strategy with the K of each of its PCAs."""
    parts = names if kind == APART else [kind]
    if variance is not None:
        dims = {part: pcas[part].dim_for(variance) for part in parts}
    else:
        assert dim is not None
        if dim < len(parts):
            raise ConfigError(f"dim is {dim}, expected at least {len(parts)}: one for each modality of {name}")
        dims = {part: dim // len(parts) + (number < dim % len(parts)) for number, part in enumerate(parts)}
    for part, components in dims.items():
        most, of = pcas[part].components.shape
        if components > most:
            raise ConfigError(
                f"{name} takes {components} components of '{part}', which has no more than {most} "
                f"(embeddings of dim {of}, {pcas[part].count} items); lower dim"
            )
    return Strategy(name, kind if kind in (JOINT, APART) else "single", dims)


def summarize(reducer: Reducer, prefix: str) -> dict[str, Any]:
    """Return the report as plain values.

    Keys: ``scaling``, ``whiten``, ``balance``; ``modalities`` with ``items`` (of the fit), ``missing`` and
    ``variance``; ``strategies`` with ``kept`` (fraction of all variance), ``kept_of`` (of each modality's) and, for the
    joint one, ``made_of`` (fraction of its components' variance from each modality); ``warnings``.
    """
    names = [m.name for m in reducer.modalities]
    modalities = [
        {"name": m.name, "column": m.column, "width": m.dim}
        | {"items": m.pca.count, "missing": m.missing, "variance": m.pca.total}
        for m in reducer.modalities
    ]
    strategies = [
        {"column": f"{prefix}_{s.name}", "strategy": s.describe(names), "width": s.dim, "widths": s.dims}
        | _fractions(reducer, s)
        for s in reducer.strategies
    ]
    warnings = [sentence for s in reducer.strategies if s.kind == JOINT for sentence in _dominated(reducer, s)]
    settings = {"scaling": reducer.scaling, "whiten": reducer.whiten, "balance": reducer.balance}
    return {**settings, "modalities": modalities, "strategies": strategies, "warnings": warnings}


def _fractions(reducer: Reducer, strategy: Strategy) -> dict[str, Any]:
    if strategy.kind == JOINT:
        assert reducer.joint is not None
        pca = reducer.joint.keep(strategy.dim)
        weighted = pca.variances @ pca.components**2
        amounts = {name: float(weighted[columns].sum()) for name, columns in reducer.columns.items()}
        totals = reducer.joint_totals
    else:
        used = [m for m in reducer.modalities if m.name in strategy.dims]
        amounts = {m.name: float(m.pca.variances[: strategy.dims[m.name]].sum()) for m in used}
        totals = {m.name: m.pca.total for m in used}
    kept = sum(amounts.values())
    fractions = {
        "kept": kept / sum(totals.values()),
        "kept_of": {name: amount / totals[name] for name, amount in amounts.items()},
    }
    made_of = {"made_of": {name: amount / kept for name, amount in amounts.items()}}
    return fractions | made_of if strategy.kind == JOINT else fractions


def _dominated(reducer: Reducer, strategy: Strategy) -> list[str]:
    """Return a warning for each modality that the joint PCA hardly keeps."""
    fractions = _fractions(reducer, strategy)
    made_of, kept_of = fractions["made_of"], fractions["kept_of"]
    equal_part = max(strategy.dim // len(reducer.modalities), 1)
    largest = max(made_of, key=made_of.__getitem__)
    separate = next((s.name for s in reducer.strategies if s.kind == APART), APART)
    fix = f"use {separate}" if reducer.scaling != "none" else f"use {separate}, or --scaling standard or l2"
    sentences = []
    for modality in reducer.modalities:
        alone = float(modality.pca.variances[:equal_part].sum()) / modality.pca.total
        small = made_of[modality.name] < SMALL_FRACTION / len(reducer.modalities)
        if modality.name != largest and (small or kept_of[modality.name] < SMALL_PART * alone):
            sentences.append(
                f"{largest} dominates {strategy.name}: its components are {made_of[largest]:.1%} {largest} and "
                f"{made_of[modality.name]:.1%} {modality.name}; they keep {kept_of[modality.name]:.1%} of "
                f"{modality.name}'s variance, its own PCA keeps {alone:.1%} in {equal_part} components; {fix}"
            )
    return sentences


def format_report(report: dict[str, Any]) -> str:
    """Return the tables and the warnings of a fit."""
    names = [m["name"] for m in report["modalities"]]
    keys = ("name", "column", "width", "items", "missing")
    modalities = [[*(str(m[key]) for key in keys), f"{m['variance']:.6g}"] for m in report["modalities"]]
    rows = []
    for s in report["strategies"]:
        kept = [f"{s['kept_of'][name]:.1%}" if name in s["kept_of"] else "-" for name in names]
        rows.append([s["column"], s["strategy"], " + ".join(map(str, s["widths"].values())), f"{s['kept']:.1%}", *kept])
    head = ["column", "strategy", "dim", "variance kept", *(f"of {name}" for name in names)]
    lines = [format_table(["modality", "column", "dim", "items", "without", "variance"], modalities), ""]
    lines.append(format_table(head, rows))
    for s in report["strategies"]:
        if "made_of" in s:
            parts = ", ".join(f"{fraction:.1%} {name}" for name, fraction in s["made_of"].items())
            lines += ["", f"The components of {s['column']} are {parts}."]
    return "\n".join(lines + [f"warning: {sentence}" for sentence in report["warnings"]])


def format_applied(report: dict[str, Any]) -> str:
    """Return what a saved reducer was applied to; what it kept is that of its own fit."""
    fit = report["fit"]
    lines = [f"{report['items']} items reduced by {report['applied']}"]
    lines += [f"  {count} without an embedding of {name}" for name, count in report["missing"].items() if count]
    rows = [[s["column"], s["strategy"], str(s["width"]), f"{s['kept']:.1%}"] for s in fit["strategies"]]
    items = max(m["items"] for m in fit["modalities"])
    head = ["column", "strategy", "dim", f"variance kept of the {items} items of the fit"]
    return "\n".join([*lines, "", format_table(head, rows)])


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
        A saved reducer, to be applied instead of fitting one.
    save : str or path, optional
        Where the fitted reducer goes; ``OUT`` with ``.reducer.safetensors`` instead of its suffix by default.
    report : str or path, optional
        A JSON file for the report.
    h5 : str or path, optional
        Start of the names of files for FuxiCTR's ``pretrained_emb``, one for each strategy: ``H5_v1.h5``, ...
    prefix : str
        Of the columns.
    overwrite : bool
        Replace existing files.
    progress : bool
        Show a progress bar.
    **fit
        ``dim``, ``variance``, ``scaling``, ``whiten``, ``balance``, ``strategies`` and ``memory`` of ``fit_reducer``.

    Returns
    -------
    tuple of Reducer and dict
        The reducer and the report of its fit (``summarize``); with ``apply`` a dict of ``applied``, ``items``,
        ``missing`` (items without an embedding of each modality) and that report under ``fit``.

    Raises
    ------
    UserError
        Settings, files or embeddings are wrong. No file is left incomplete.
    """
    if not prefix.isidentifier():
        raise ConfigError(f"prefix '{prefix}', expected a name of letters, digits and _ such as item_emb")
    out = Path(out)
    save = Path(save) if save else out.with_suffix(".reducer.safetensors")
    reducer = Reducer.load(apply) if apply else None
    plan = choose_strategies([source.name for source in sources], fit.get("strategies"))
    names = [s.name for s in reducer.strategies] if reducer else [name for name, _ in plan]
    h5_files = {name: Path(f"{h5}_{name}.h5") for name in names} if h5 else {}
    outputs = [out, None if apply else save, report, *h5_files.values()]
    check_outputs(outputs, [*(source.path for source in sources), apply], overwrite)
    if h5 and numbering().items is not None:
        raise ConfigError("--h5: holds items as integers, and the ids of these items are none; leave it out")
    with JoinedEmbeddings(sources) as joined:
        if reducer is None:
            with item_bar(len(joined.ids), "fitting", int(progress)) as bar:
                reducer = fit_reducer(joined, **fit, advance=bar.update)
        reducer.check(joined.dims)
        missing = _write(joined, reducer, out, prefix, overwrite, progress)
        count = len(joined.ids)
    for name, file in h5_files.items():
        _write_h5(file, Source(name, out, f"{prefix}_{name}"), count)
    summary = summarize(reducer, prefix)
    if apply:
        summary = {"applied": str(apply), "items": count, "missing": missing, "fit": summary}
    else:
        reducer.save(save)
    if report:
        text = json.dumps(summary, indent=2) + "\n"
        write_beside(report, lambda stream: stream.write(text.encode()))
    return reducer, summary


def _write(
    joined: JoinedEmbeddings, reducer: Reducer, out: Path, prefix: str, overwrite: bool, progress: bool
) -> dict[str, int]:
    """Write the columns of all items; return how many have no embedding of each modality."""
    missing = dict.fromkeys(joined.dims, 0)
    schema = {f"{prefix}_{s.name}": embedding_type(s.dim) for s in reducer.strategies}
    bar = item_bar(len(joined.ids), "reducing", int(progress))
    with ItemFileWriter(out, schema, overwrite) as writer, bar:
        for ids, vectors in joined.chunks(_rows_of(joined, CHUNK_BYTES)):
            for name, rows in vectors.items():
                missing[name] += int((~rows.any(axis=1)).sum())
            writer.write(ids, {f"{prefix}_{name}": rows for name, rows in reducer.transform(vectors).items()})
            bar.update(len(ids))
    return missing


def _write_h5(path: Path, column: Source, count: int) -> None:
    """Write ``key`` ``(I,)`` int64 and ``value`` ``(I, K)`` float32 of a column, without the padding."""
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        keys = file.create_dataset("key", shape=(count,), dtype=np.int64)
        values = file.create_dataset("value", shape=(count, column.dim), dtype=np.float32)
        row = 0
        for ids, rows in read_embeddings(column):
            keys[row : row + len(ids)], values[row : row + len(ids)] = ids, rows
            row += len(ids)


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
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--dim", type=int, metavar="N", help="dim of each strategy (default: 128)")
    size.add_argument(
        "--variance", type=float, metavar="FRACTION", help="keep this fraction of the variance, such as 0.95"
    )
    parser.add_argument(
        "--scaling", choices=SCALINGS, help="before the PCA: none, l2 per row, standard per column (default: none)"
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
    parser.add_argument("--prefix", default="item_emb", help="prefix of the columns (default: item_emb)")
    parser.add_argument("--save", metavar="FILE", help="the fitted reducer (default: OUT.reducer.safetensors)")
    parser.add_argument("--apply", metavar="FILE", help="reduce by a saved reducer instead of fitting one")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON as well")
    parser.add_argument("--h5", metavar="PREFIX", help="write PREFIX_v1.h5, ... for FuxiCTR's pretrained_emb as well")
    parser.add_argument("--memory", type=float, metavar="GB", help="embeddings held at a time (default, most: 0.033)")
    add_output(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed reduce``."""
    if args.memory is not None and not args.memory > 0:
        raise ConfigError(f"--memory is {args.memory:g}, expected gigabytes above 0")
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
    files = {name: getattr(args, name) for name in ("apply", "save", "report", "h5", "prefix", "overwrite")}
    sources = [Source.parse(text) for text in args.sources]
    _, report = reduce_vectors(sources, args.out, **files, progress=not args.quiet, **given)
    summary = format_applied(report) if args.apply else format_report(report)
    paste = f"For feature_cols in dataset_config.yaml, with {args.out} added to item_info:"
    show(args, report, f"{summary}\n\n{paste}\n\n{yaml_lines(report.get('fit', report))}")
