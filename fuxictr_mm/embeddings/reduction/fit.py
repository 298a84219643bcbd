"""Fit a reducer: in memory by scikit-learn where the vectors fit, in chunks by their covariance where they do not.

Shape letters: I items, n items of a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fuxictr_mm.checking import nearest
from fuxictr_mm.embeddings.reduction.pca import Moments, PrincipalComponents, fit_in_memory
from fuxictr_mm.embeddings.reduction.reducer import (
    APART,
    JOINT,
    SCALINGS,
    Modality,
    Reducer,
    Strategy,
    blocks,
    scale_rows,
)
from fuxictr_mm.embeddings.store import JoinedVectors
from fuxictr_mm.errors import ConfigError, DataError

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
