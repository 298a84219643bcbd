"""Writes a synthetic world as the parquet files of MicroLens_1M_x1, chunk by chunk, beside the folder, then renames.

Shapes: I items.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fuxictr_mm.data.synthetic import SyntheticSpec
from fuxictr_mm.data.synthetic_items import write_items
from fuxictr_mm.data.synthetic_parquet import open_writer, progress_bar, to_table
from fuxictr_mm.data.synthetic_rows import SPLITS, Histories, draw_history_chunk, draw_row_chunk
from fuxictr_mm.data.synthetic_world import USER_CHUNK, World, chunks
from fuxictr_mm.errors import DataError

ROW_CHUNK = 100_000
FILES = {
    *("train.parquet", "valid.parquet", "test.parquet", "test_labelled.parquet"),
    *("item_info.parquet", "item_feature.parquet", "item_emb.parquet"),
}


def write_dataset(spec: SyntheticSpec, folder: Path, progress: bool, overwrite: bool) -> None:
    """Write all files of a dataset; see `fuxictr_mm.data.synthetic.generate`."""
    # One BLAS thread: sums over another number of threads may differ in the last bit, and with them the files.
    with _renamed_when_whole(folder, overwrite) as partial, threadpool_limits(1):
        world = World.build(spec)
        write_items(world, partial, progress)
        exposure = world.exposure()
        histories = draw_histories(world, exposure, progress)
        for split in SPLITS:
            _write_split(world, histories, exposure, split, partial, progress)


@contextmanager
def _renamed_when_whole(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its place at the end, or goes away if something fails."""
    folder = folder.resolve()
    _check_target(folder, overwrite)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}; name a folder where you may write") from error
    try:
        yield partial
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder that is empty or not there yet")
    found = sorted(path.name for path in folder.iterdir())
    if found and not overwrite:
        raise DataError(f"{folder} is not empty (it holds {found[0]}); name another folder or pass --overwrite")
    foreign = sorted(set(found) - FILES)
    if foreign:
        raise DataError(f"{folder} holds {foreign[0]}, which is no part of a dataset; remove it or name another folder")


def draw_histories(world: World, exposure: NDArray[np.float64], progress: bool = False) -> Histories:
    """Draw what all users liked, chunk after chunk, by the cumulated `exposure` (I + 1,) of the items."""
    values, counts = [], []
    with progress_bar("histories", world.spec.users, "users", progress) as bar:
        for chunk, first, last in chunks(world.spec.users, USER_CHUNK):
            chunk_values, chunk_counts = draw_history_chunk(world, exposure, chunk, first, last)
            values.append(chunk_values)
            counts.append(chunk_counts)
            bar.update(last - first)
    return Histories.from_counts(np.concatenate(values), np.concatenate(counts), world.spec.items)


def _write_split(
    world: World, histories: Histories, exposure: NDArray[np.float64], split: str, folder: Path, progress: bool
) -> None:
    """Write one split; the test split once without labels and once with them."""
    spec = world.spec
    labelled = pa.schema(
        [
            ("user_id", pa.int64()),
            ("item_id", pa.int64()),
            ("item_seq", pa.list_(pa.int64(), spec.seq_len)),
            ("likes_level", pa.int64()),
            ("views_level", pa.int64()),
            ("label", pa.int64()),
        ]
    )
    schemas = {f"{split}.parquet": labelled}
    if split == "test":
        unlabelled = labelled.remove(labelled.get_field_index("label"))
        schemas = {"test.parquet": unlabelled, "test_labelled.parquet": labelled}
    total = getattr(spec, f"{split}_rows")
    with ExitStack() as stack:
        writers = [stack.enter_context(open_writer(folder / name, schema)) for name, schema in schemas.items()]
        bar = stack.enter_context(progress_bar(split, total, "rows", progress))
        for chunk, first, last in chunks(total, ROW_CHUNK):
            columns = draw_row_chunk(world, histories, exposure, split, chunk, last - first)
            for writer, schema in zip(writers, schemas.values(), strict=True):
                writer.write_table(to_table(columns, schema))
            bar.update(last - first)
