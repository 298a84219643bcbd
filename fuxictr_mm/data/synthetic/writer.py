"""Writes a synthetic world as the parquet files of MicroLens_1M_x1, chunk by chunk, beside the folder, then renames.

Shapes: I items.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.data.synthetic.world import (
    SPLITS,
    USER_CHUNK,
    Histories,
    Stream,
    World,
    chunks,
    draw_history_chunk,
    draw_row_chunk,
    draw_titles,
    generator,
)
from fuxictr_mm.errors import DataError


def to_table(columns: dict[str, NDArray], schema: pa.Schema) -> pa.Table:
    """Put the columns that `schema` names into a table; (rows, width) arrays become fixed-size lists."""
    return pa.table([_column(columns[field.name], field.type) for field in schema], schema=schema)


def _column(values: NDArray | pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), kind.list_size)
    return pa.array(values, kind)


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a parquet file; float lists are split by byte, which compresses far better than a dictionary of them."""
    floats = [
        f"{field.name}.list.element"
        for field in schema
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]
    others = [
        f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name
        for field in schema
        if f"{field.name}.list.element" not in floats
    ]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=others,
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    )


def progress_bar(what: str, total: int, unit: str, progress: bool) -> tqdm:
    """Show rate and time left of one step."""
    return tqdm(total=total, desc=f"{what:>15}", unit=f" {unit}", unit_scale=True, disable=not progress)


ITEM_CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class _Reduction:
    """One reduced embedding: (raw - mean) @ components * scale."""

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    scale: float

    def __call__(self, raw: NDArray) -> NDArray[np.float32]:
        return half_precision((raw - self.mean) @ self.components * self.scale)


def write_items(world: World, folder: Path, progress: bool) -> None:
    """Write the item files: raw features first, the sums for the PCA meanwhile, then the reduced embeddings."""
    spec = world.spec
    feature_schema = pa.schema(
        [
            ("item_id", pa.int64()),
            ("item_title", pa.string()),
            ("item_tags", pa.list_(pa.int64(), world.tags.shape[1])),
            ("likes_level", pa.int64()),
            ("views_level", pa.int64()),
            ("txt_emb_BERT", pa.list_(pa.float32(), spec.text_dim)),
            ("img_emb_CLIPRN50", pa.list_(pa.float32(), spec.image_dim)),
        ]
    )
    raw_embeddings = _raw_embeddings(world)
    width = spec.text_dim + spec.image_dim
    total, products = np.zeros(width), np.zeros((width, width))
    with (
        progress_bar("items", spec.items, "items", progress) as bar,
        open_writer(folder / "item_feature.parquet", feature_schema) as writer,
    ):
        for chunk, first, last in chunks(spec.items, ITEM_CHUNK):
            raw, ids = raw_embeddings(chunk, first, last), slice(first + 1, last + 1)
            columns = {
                "item_id": np.arange(first + 1, last + 1),
                "item_title": draw_titles(generator(spec, Stream.TITLES, chunk), world.text_topics[ids]),
                "item_tags": world.tags[ids],
                "likes_level": world.likes_level[ids],
                "views_level": world.views_level[ids],
                "txt_emb_BERT": raw[:, : spec.text_dim],
                "img_emb_CLIPRN50": raw[:, spec.text_dim :],
            }
            writer.write_table(to_table(columns, feature_schema))
            exact = raw.astype(np.float64)
            total += exact.sum(axis=0)
            products += exact.T @ exact
            bar.update(last - first)
    mean = total / spec.items
    reductions = _reductions(spec, mean, products / spec.items - np.outer(mean, mean))
    _write_embeddings(world, raw_embeddings, reductions, folder, progress)


def _write_embeddings(
    world: World,
    raw_embeddings: Callable[[int, int, int], NDArray[np.float32]],
    reductions: dict[str, _Reduction],
    folder: Path,
    progress: bool,
) -> None:
    """Write item_info.parquet (v3 as its embedding) and item_emb.parquet, both with the padding row 0."""
    spec = world.spec
    stem, halves = spec.embedding_name, _half_names(spec)
    widths = {f"{stem}_{version}": spec.emb_dim for version in ("v1", "v2", "v3", "e4")}
    widths |= dict.fromkeys(halves, spec.emb_dim // 2)
    id_field = pa.field("item_id", pa.int64())
    vectors = [pa.field(name, pa.list_(pa.float32(), width)) for name, width in widths.items()]
    emb_schema = pa.schema([id_field, *vectors])
    info_schema = pa.schema(
        [
            id_field,
            ("item_tags", pa.list_(pa.int64(), world.tags.shape[1])),
            (stem, pa.list_(pa.float32(), spec.emb_dim)),
        ]
    )
    with (
        progress_bar("item embeddings", spec.items, "items", progress) as bar,
        open_writer(folder / "item_emb.parquet", emb_schema) as emb_writer,
        open_writer(folder / "item_info.parquet", info_schema) as info_writer,
    ):
        for chunk, first, last in chunks(spec.items, ITEM_CHUNK):
            raw = raw_embeddings(chunk, first, last)
            columns: dict[str, NDArray] = {name: reduction(raw) for name, reduction in reductions.items()}
            columns[f"{stem}_e4"] = np.concatenate([columns[name] for name in halves], axis=1)
            columns[stem] = columns[f"{stem}_v3"]
            if chunk == 0:
                columns = {name: np.pad(rows, ((1, 0), (0, 0))) for name, rows in columns.items()}
            ids = np.arange(first + (chunk > 0), last + 1)
            columns |= {"item_id": ids, "item_tags": world.tags[ids]}
            emb_writer.write_table(to_table(columns, emb_schema))
            info_writer.write_table(to_table(columns, info_schema))
            bar.update(last - first)


def _raw_embeddings(world: World) -> Callable[[int, int, int], NDArray[np.float32]]:
    """Return a function that gives the text and image embeddings, side by side, of items first + 1 to last."""
    spec = world.spec
    rng = generator(spec, Stream.PROJECTIONS)
    half = spec.topics // 2
    text_view = np.linalg.qr(rng.standard_normal((spec.text_dim, half)))[0].T
    image_view = np.linalg.qr(rng.standard_normal((spec.image_dim, half)))[0].T

    def draw(chunk: int, first: int, last: int) -> NDArray[np.float32]:
        rng = generator(spec, Stream.EMBEDDINGS, chunk)
        text = world.text_topics[first + 1 : last + 1] @ text_view
        text += spec.text_noise * rng.standard_normal(text.shape)
        image = world.image_topics[first + 1 : last + 1] @ image_view
        image += spec.image_noise * rng.standard_normal(image.shape)
        return half_precision(np.concatenate([spec.text_scale * text, spec.image_scale * image], axis=1))

    return draw


def _reductions(spec: SyntheticSpec, mean: NDArray[np.float64], covariance: NDArray) -> dict[str, _Reduction]:
    """PCA of the text (v1), of the image (v2), of both as they are (v3), and of each in half the width on unit scale.

    The fourth column, e4 (strategy V4), is the last two side by side.
    """
    text, image, both = slice(0, spec.text_dim), slice(spec.text_dim, None), slice(None)
    half = spec.emb_dim // 2
    text_half, image_half = _half_names(spec)
    plan = {
        f"{spec.embedding_name}_v1": (text, spec.emb_dim, False),
        f"{spec.embedding_name}_v2": (image, spec.emb_dim, False),
        f"{spec.embedding_name}_v3": (both, spec.emb_dim, False),
        text_half: (text, half, True),
        image_half: (image, half, True),
    }
    reductions = {}
    for name, (part, dim, unit_scale) in plan.items():
        variances, vectors = np.linalg.eigh(covariance[part, part])
        variances, vectors = variances[::-1][:dim], vectors[:, ::-1][:, :dim]
        largest = np.abs(vectors).argmax(axis=0)
        vectors = vectors * np.sign(vectors[largest, np.arange(dim)])
        components = np.zeros((len(mean), dim))
        components[part] = vectors
        scale = 1 / np.sqrt(max(variances.mean(), 1e-12)) if unit_scale else 1.0
        reductions[name] = _Reduction(mean, components, float(scale))
    return reductions


def _half_names(spec: SyntheticSpec) -> tuple[str, str]:
    return f"txt_emb_pca{spec.emb_dim // 2}", f"img_emb_pca{spec.emb_dim // 2}"


def half_precision(values: NDArray) -> NDArray[np.float32]:
    """Round to what float16 can hold, kept as float32: half the size on disk once compressed."""
    return values.astype(np.float16).astype(np.float32)


ROW_CHUNK = 100_000


FILES = {
    *("train.parquet", "valid.parquet", "test.parquet", "test_labelled.parquet"),
    *("item_info.parquet", "item_feature.parquet", "item_emb.parquet"),
}


def write_dataset(spec: SyntheticSpec, folder: Path, progress: bool, overwrite: bool) -> None:
    """Write all files of a dataset; see `fuxictr_mm.data.synthetic.spec.generate`."""
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
