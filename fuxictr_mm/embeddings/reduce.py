"""PCA of item embeddings, separate for each modality and joint.

The strategies of "Feature Fusion Revisited" (Zhou, WWW 2025 EReL@MIR workshop, https://arxiv.org/abs/2504.18961):
V1 PCA(text), V2 PCA(image), V3 PCA(text, image), V4 PCA(text) + PCA(image).

Shape letters: I items, n items of a chunk, D dim of an embedding, K dim after the reduction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.embeddings.fit_reducer import CHUNK_BYTES, ReduceOptions, choose_strategies, fit_reducer, rows_of
from fuxictr_mm.embeddings.item_files import (
    ItemFileWriter,
    JoinedEmbeddings,
    Source,
    embedding_type,
    read_embeddings,
)
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import StrPath, atomic_path, check_outputs, write_beside
from fuxictr_mm.reduction.reducer import Reducer
from fuxictr_mm.reduction.summary import summarize
from fuxictr_mm.terminal import item_bar


def reduce_vectors(
    sources: Sequence[Source],
    out: StrPath,
    *,
    apply: StrPath | None = None,
    save: StrPath | None = None,
    report: StrPath | None = None,
    h5: StrPath | None = None,
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
        The fields of ``ReduceOptions``.

    Returns
    -------
    tuple of Reducer and dict
        The reducer and the report of its fit (``summarize``); with ``apply`` a dict of ``applied``, ``items``,
        ``missing`` (items without an embedding of each modality) and that report under ``fit``.

    Raises
    ------
    UserError
        Settings, files or embeddings are invalid. Incomplete files are removed.
    """
    if not prefix.isidentifier():
        raise ConfigError(f"prefix '{prefix}', expected a name of letters, digits and _ such as item_emb")
    out = Path(out)
    save = Path(save) if save else out.with_suffix(".reducer.safetensors")
    reducer = Reducer.load(apply) if apply else None
    options = ReduceOptions.read(fit, "reduce")
    plan = choose_strategies([source.name for source in sources], options.strategies)
    names = [s.name for s in reducer.strategies] if reducer else [name for name, _ in plan]
    h5_files = {name: Path(f"{h5}_{name}.h5") for name in names} if h5 else {}
    outputs = [out, None if apply else save, report, *h5_files.values()]
    check_outputs(outputs, [*(source.path for source in sources), apply], overwrite)
    if h5 and any(source.numbering.items is not None for source in sources):
        raise ConfigError("--h5: needs integer item ids, but these ids are not integers; remove it")
    with JoinedEmbeddings(sources) as joined:
        if reducer is None:
            with item_bar(len(joined.ids), "fitting", int(progress)) as bar:
                reducer = fit_reducer(joined, options, bar.update)
        reducer.check(joined.dims)
        summary = summarize(reducer, prefix)
        missing = _write(joined, reducer, out, prefix, overwrite, progress, save=None if apply else save)
        count = len(joined.ids)
    for name, file in h5_files.items():
        _write_h5(file, Source(name, out, f"{prefix}_{name}", joined.numbering), count)
    if apply:
        summary = {"applied": str(apply), "items": count, "missing": missing, "fit": summary}
    if report:
        text = json.dumps(summary, indent=2) + "\n"
        write_beside(report, lambda stream: stream.write(text.encode()))
    return reducer, summary


def _write(
    joined: JoinedEmbeddings,
    reducer: Reducer,
    out: Path,
    prefix: str,
    overwrite: bool,
    progress: bool,
    save: Path | None,
) -> dict[str, int]:
    """Write all items, and the reducer to ``save``; return how many have no embedding of each modality."""
    missing = dict.fromkeys(joined.dims, 0)
    schema = {f"{prefix}_{s.name}": embedding_type(s.dim) for s in reducer.strategies}
    bar = item_bar(len(joined.ids), "reducing", int(progress))
    with ItemFileWriter(out, schema, overwrite, numbering=joined.numbering) as writer, bar:
        for ids, vectors in joined.chunks(rows_of(joined, CHUNK_BYTES)):
            for name, rows in vectors.items():
                missing[name] += int((~rows.any(axis=1)).sum())
            writer.write(ids, {f"{prefix}_{name}": rows for name, rows in reducer.transform(vectors).items()})
            bar.update(len(ids))
        if save is not None:
            reducer.save(save)  # before the file gets its name: no file without its reducer
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
