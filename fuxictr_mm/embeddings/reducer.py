"""PCA of item embeddings by modality, and of all modalities: strategies, their fit, and the saved reducer.

Shape letters: I items, n items of a chunk, D dim of an embedding, K dim after the reduction.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from fuxictr_mm.checking import Settings
from fuxictr_mm.embeddings.item_files import JoinedEmbeddings
from fuxictr_mm.embeddings.pca import Moments, PrincipalComponents
from fuxictr_mm.embeddings.saved import SavedFormat, check_modalities
from fuxictr_mm.errors import ConfigError, DataError, nearest

#: Kinds of strategies besides the PCA of one modality: the joint PCA, and separate PCAs, concatenated.
JOINT, APART = "joint", "apart"

SAVED = SavedFormat("reducer", "reduce")

#: Most bytes of float64 embeddings, of all modalities together, that are held at a time.
CHUNK_BYTES = 1 << 25

#: A column whose standard deviation is below this fraction of its mean is constant up to float32's rounding.
CONSTANT = 1e-6


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


class ReduceOptions(Settings):
    """How a reducer is fitted."""

    dim: PositiveInt | None = Field(
        None, description="dim of each strategy, divided among its modalities (default 128)"
    )
    variance: float | None = Field(
        None, gt=0, le=1, description="instead of a dim, the fraction of the variance that each PCA keeps, such as 0.95"
    )
    scaling: Literal["none", "l2", "standard"] = Field(
        "none", description="before the PCA: none, l2 per row, standard per column"
    )
    balance: bool = Field(True, description="bring the modalities' parts of v4 (apart) to one scale")
    whiten: bool = Field(False, description="give each component the variance 1")
    strategies: Sequence[str] | None = Field(
        None, description="v1 to v4 for two modalities, else their names, joint and apart (default: all)"
    )
    memory: float = Field(CHUNK_BYTES, gt=0, description="bytes of embeddings held at a time; at most the default")

    @field_validator("variance")
    @classmethod
    def _check_variance(cls, variance: float | None, info: ValidationInfo) -> float | None:
        if variance is not None and info.data.get("dim") is not None:
            raise ValueError("both dim and variance are given; expected one of them")
        return variance


def fit_reducer(
    joined: JoinedEmbeddings, options: ReduceOptions, advance: Callable[[int], object] = lambda items: None
) -> Reducer:
    """Fit the PCA of each modality, and the joint PCA, in one pass over chunks.

    An item takes part in the PCA of a modality if its embedding there is not zero, and in the joint one if none of its
    embeddings is.

    Parameters
    ----------
    joined : JoinedEmbeddings
        The modalities.
    options : ReduceOptions
        How to fit.
    advance : callable
        Called with the number of items of each chunk.

    Raises
    ------
    ConfigError
        A strategy is unknown; K is larger than D.
    DataError
        Fewer than two items have an embedding, or all of a modality are the same; for the joint PCA, among the items
        that have all modalities.
    """
    names = [source.name for source in joined.sources]
    scaling, chosen = options.scaling, choose_strategies(names, options.strategies)
    with_joint = any(kind == JOINT for _, kind in chosen)
    moments = read_moments(joined, scaling, with_joint, min(options.memory, CHUNK_BYTES), advance)
    together = moments.pop(JOINT, None)
    divisors = {name: _divisors(found, scaling) for name, found in moments.items()}
    divide = scaling == "standard"
    pcas = {n: fit_components(n, found, divisors[n] if divide else None) for n, found in moments.items()}
    joint_totals = {}
    if together is not None:
        ends = np.cumsum(list(joined.dims.values()))[:-1]
        for name, part in zip(names, np.split(np.diag(together.scatter), ends), strict=True):
            if not part.any():
                others = ",".join(text for text, kind in choose_strategies(names) if kind != JOINT)
                raise DataError(
                    f"all modalities: {together.count} items have an embedding of each, expected at least 2 with "
                    f"different ones of '{name}'; leave the joint PCA out by --strategies {others}"
                )
        all_divisors = np.concatenate(list(divisors.values()))
        pcas[JOINT] = together.components(all_divisors if divide else None)
        parts = np.split(np.diag(together.covariance) / all_divisors**2, ends)
        joint_totals = {name: float(part.sum()) for name, part in zip(names, parts, strict=True)}
    plan = [_plan(name, kind, names, pcas, options) for name, kind in chosen]
    # The report compares the joint PCA with what a PCA of one modality keeps in an equal part of its K.
    equal_part = max((s.dim // len(names) for s in plan if s.kind == JOINT), default=1)
    modalities = []
    for source in joined.sources:
        name, pca = source.name, pcas[source.name]
        kept = pca.keep(max([1, equal_part, *(s.dims.get(name, 0) for s in plan)]))
        missing = len(joined.ids) - pca.count
        modalities.append(Modality(name, source.column, joined.dims[name], missing, divisors[name], kept))
    joint = pcas[JOINT].keep(max(s.dim for s in plan if s.kind == JOINT)) if with_joint else None
    return Reducer(tuple(modalities), joint, joint_totals, tuple(plan), scaling, options.whiten, options.balance)


def rows_of(joined: JoinedEmbeddings, memory: float) -> int:
    """Return the items of a chunk whose float64 embeddings take so many bytes."""
    return max(256, int(memory) // (8 * sum(joined.dims.values())))


def read_moments(
    joined: JoinedEmbeddings,
    scaling: str = "none",
    with_joint: bool = False,
    memory: float = CHUNK_BYTES,
    advance: Callable[[int], object] = lambda items: None,
) -> dict[str, Moments]:
    """Return the moments of each modality, of the items that have it, and on request of all together as ``joint``.

    Raises a DataError where fewer than two items have a modality.
    """
    moments = {name: Moments(dim) for name, dim in joined.dims.items()}
    together = Moments(sum(joined.dims.values()) if with_joint else 0)
    for ids, vectors in joined.chunks(rows_of(joined, memory)):
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
    for name, found in moments.items():
        if found.count < 2:
            raise DataError(
                f"modality '{name}': {found.count} items have an embedding that is not zero, expected at least 2 to "
                "fit a PCA"
            )
    return moments | ({JOINT: together} if with_joint else {})


def fit_components(name: str, moments: Moments, divisors: np.ndarray | None = None) -> PrincipalComponents:
    """Return the components of a modality; raises a DataError if all its embeddings are the same."""
    pca = moments.components(divisors)
    if pca.rank == 0:
        raise DataError(f"modality '{name}': all {pca.count} embeddings are the same, expected different ones")
    return pca


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


def split_dim(dim: int, parts: int) -> list[int]:
    """Divide a dim among modalities; the first ones get the remainder.

    Examples
    --------
    >>> split_dim(16, 3)
    [6, 5, 5]
    """
    return [dim // parts + (number < dim % parts) for number in range(parts)]


def _plan(
    name: str,
    kind: str,
    names: Sequence[str],
    pcas: Mapping[str, PrincipalComponents],
    options: ReduceOptions,
) -> Strategy:
    """Return a strategy with the K of each of its PCAs."""
    parts = names if kind == APART else [kind]
    if options.variance is not None:
        dims = {part: pcas[part].dim_for(options.variance) for part in parts}
    else:
        dim = options.dim or 128
        if dim < len(parts):
            raise ConfigError(f"dim is {dim}, expected at least {len(parts)}: one for each modality of {name}")
        dims = dict(zip(parts, split_dim(dim, len(parts)), strict=True))
    for part, components in dims.items():
        most, of = pcas[part].components.shape
        if components > most:
            raise ConfigError(
                f"{name} takes {components} components of '{part}', which has no more than {most} "
                f"(embeddings of dim {of}, {pcas[part].count} items); lower dim"
            )
    return Strategy(name, kind if kind in (JOINT, APART) else "single", dims)
