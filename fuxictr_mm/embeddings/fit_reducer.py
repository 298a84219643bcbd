"""The fit of a reducer: PCA of each modality and of all together, in chunks, and its strategies.

Shape letters: I items, n items of a chunk, D dim of an embedding, K dim after the reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from fuxictr_mm.checking import Settings
from fuxictr_mm.embeddings.item_files import JoinedEmbeddings
from fuxictr_mm.errors import ConfigError, DataError, nearest
from fuxictr_mm.reduction.pca import Moments, PrincipalComponents
from fuxictr_mm.reduction.reducer import APART, JOINT, Modality, Reducer, Strategy, scale_rows

#: Most bytes of float64 embeddings, of all modalities together, that are held at a time.
CHUNK_BYTES = 1 << 25


#: A column whose standard deviation is below this fraction of its mean is constant up to float32's rounding.
CONSTANT = 1e-6


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
    balance: bool = Field(True, description="scale the modalities' parts of v4 (apart) to the same variance")
    whiten: bool = Field(False, description="give each component the variance 1")
    strategies: Sequence[str] | None = Field(
        None, description="v1 to v4 for two modalities, otherwise their names, joint and apart (default: all)"
    )
    memory: float = Field(CHUNK_BYTES, gt=0, description="bytes of embeddings in memory at a time; at most the default")

    @field_validator("variance")
    @classmethod
    def _check_variance(cls, variance: float | None, info: ValidationInfo) -> float | None:
        if variance is not None and info.data.get("dim") is not None:
            raise ValueError("both dim and variance are given; expected one of them")
        return variance


def fit_reducer(
    joined: JoinedEmbeddings, options: ReduceOptions, advance: Callable[[int], object] = lambda items: None
) -> Reducer:
    """Fit the PCA of each modality, and the joint PCA, in one pass over chunks; ``advance`` is called with their sizes.

    An item takes part in the PCA of a modality if its embedding there is not zero, and in the joint one if none of its
    embeddings is.
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
                    f"all modalities: {together.count} items have an embedding of each, expected at least 2 "
                    f"with different embeddings of '{name}'; exclude the joint PCA by --strategies {others}"
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
                f"{name} takes {components} components of '{part}', which has only {most} (embeddings of "
                f"dim {of}, {pcas[part].count} items); reduce dim"
            )
    return Strategy(name, kind if kind in (JOINT, APART) else "single", dims)
