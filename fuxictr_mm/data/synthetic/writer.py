"""Writes a synthetic world as the Parquet files of MicroLens_1M_x1, chunk by chunk."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.data.synthetic.titles import sample_titles
from fuxictr_mm.data.synthetic.world import (
    MAX_TAGS,
    SPLITS,
    USER_CHUNK,
    Histories,
    Stream,
    World,
    chunks,
    generator,
    sample_history_chunk,
    sample_row_chunk,
)
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import write_folder

#: Items, and rows of a split with histories of up to 100 items, that are written at a time.
ITEM_CHUNK, ROW_CHUNK = 8192, 100_000

#: What reduced embeddings are multiplied by where they are 8-bit integers.
INT8_FACTOR = 16

#: Files of a dataset, and its configuration, which ``overwrite`` keeps.
FILES = {
    *("train.parquet", "valid.parquet", "test.parquet", "test_labelled.parquet"),
    *("item_info.parquet", "item_feature.parquet", "item_emb.parquet"),
}
CONFIGURATION = ("dataset_config.yaml", "model_config.yaml")


def generate(spec: SyntheticSpec, folder: str | Path, progress: bool = True, overwrite: bool = False) -> None:
    """Write a synthetic dataset: three splits, the labelled test split, and three item files.

    The folder is created atomically, with all files or not at all. ``overwrite`` replaces an older dataset of the same
    file names; its ``CONFIGURATION`` is kept.
    """
    target = Path(folder).resolve()
    _check_target(target, overwrite)

    def write(temporary: Path) -> None:
        for name in CONFIGURATION:
            if (target / name).exists():
                shutil.copy2(target / name, temporary / name)
        world = World.build(spec)
        shown = shown_items(world)
        _write_items(world, temporary, progress)
        exposure = world.exposure()
        histories = sample_histories(world, exposure, progress)
        if spec.emb_items < 1:
            exposure = np.cumsum(np.diff(exposure, prepend=0.0) * shown)
            exposure /= exposure[-1]
        for split in SPLITS:
            _write_split(world, histories, exposure, shown, split, temporary, progress)

    # One BLAS thread: sums over another number of threads may differ in the last bit, and with them the files.
    with threadpool_limits(1):
        write_folder(target, write)


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder that is empty or does not exist")
    found = sorted(path.name for path in folder.iterdir())
    if found and not overwrite:
        raise DataError(f"{folder} is not empty (it holds {found[0]}); give another folder, or --overwrite")
    others = sorted(set(found) - FILES - set(CONFIGURATION))
    if others:
        raise DataError(
            f"{folder} holds {others[0]}, which is not part of a dataset; remove it, or give another folder"
        )


def _write_items(world: World, folder: Path, progress: bool) -> None:
    """Write the item files: raw features first, the sums for the PCA meanwhile, then the reduced embeddings."""
    spec = world.spec
    schema = pa.schema(
        [
            ("item_id", pa.int64()),
            ("item_title", pa.string()),
            ("item_tags", pa.list_(pa.int64(), MAX_TAGS)),
            ("likes_level", pa.int64()),
            ("views_level", pa.int64()),
            ("txt_emb_BERT", pa.list_(pa.float32(), spec.text_dim)),
            ("img_emb_CLIPRN50", pa.list_(pa.float32(), spec.image_dim)),
        ]
    )
    raw_embeddings = _RawEmbeddings(world)
    dim = spec.text_dim + spec.image_dim
    total, products, count = np.zeros(dim), np.zeros((dim, dim)), 0
    with (
        _progress_bar("items", spec.items, "items", progress) as bar,
        open_writer(folder / "item_feature.parquet", schema) as writer,
    ):
        for chunk, start, stop in chunks(spec.items, ITEM_CHUNK):
            ids: np.ndarray = np.arange(start + 1, stop + 1)
            titles = sample_titles(generator(spec, Stream.TITLES, chunk), world.text_topics[ids])
            kept = world.embedded(chunk, ids)
            raw, ids = raw_embeddings.sample(chunk, ids)[kept], ids[kept]
            columns = {
                "item_id": ids,
                "item_title": titles.filter(pa.array(kept)),
                "item_tags": world.tags[ids],
                "likes_level": world.likes_level[ids],
                "views_level": world.views_level[ids],
                "txt_emb_BERT": raw[:, : spec.text_dim],
                "img_emb_CLIPRN50": raw[:, spec.text_dim :],
            }
            writer.write_table(_to_table(columns, schema))
            exact = raw.astype(np.float64)
            total += exact.sum(axis=0)
            products += exact.T @ exact
            count += len(ids)
            bar.update(stop - start)
    mean = total / count
    projections = _fit_projections(spec, products / count - np.outer(mean, mean))
    _write_embeddings(world, raw_embeddings, mean, projections, folder, progress)


class _RawEmbeddings:
    """Text and image embeddings: the topics of each half in random directions, with noise."""

    def __init__(self, world: World) -> None:
        self.world, spec = world, world.spec
        rng = generator(spec, Stream.PROJECTIONS)
        half = spec.topics // 2
        self.text = np.linalg.qr(rng.standard_normal((spec.text_dim, half)))[0].T
        self.image = np.linalg.qr(rng.standard_normal((spec.image_dim, half)))[0].T

    def sample(self, chunk: int, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of the items of a chunk, (I, text and image dim), text first."""
        spec = self.world.spec
        rng = generator(spec, Stream.EMBEDDINGS, chunk)
        text = self.world.text_topics[ids] @ self.text
        text += spec.text_noise * rng.standard_normal(text.shape)
        image = self.world.image_topics[ids] @ self.image
        image += spec.image_noise * rng.standard_normal(image.shape)
        return half_precision(np.concatenate([spec.text_scale * text, spec.image_scale * image], axis=1))


def half_precision(values: NDArray) -> NDArray[np.float32]:
    """Round to what float16 can hold, kept as float32: half the size on disk once compressed."""
    return values.astype(np.float16).astype(np.float32)


def _stored(values: NDArray, spec: SyntheticSpec) -> NDArray:
    """Return reduced embeddings as they are written."""
    if spec.emb_bits == 8:
        return np.clip(np.rint(values * INT8_FACTOR), -127, 127).astype(np.int8)
    return half_precision(values)


def half_names(spec: SyntheticSpec) -> tuple[str, str]:
    """Return the columns of the text and of the image, each reduced to half the dimension."""
    return f"txt_emb_pca{spec.emb_dim // 2}", f"img_emb_pca{spec.emb_dim // 2}"


def _fit_projections(spec: SyntheticSpec, covariance: NDArray) -> dict[str, tuple[NDArray, float]]:
    """Return components (text and image dim, D) and scale of each reduced embedding.

    PCA of the text (v1), of the image (v2), of both as they are (v3), and of each to half the dimension on unit scale.
    The fourth column, e4 (strategy V4), is the last two joined.
    """
    text, image, both = slice(0, spec.text_dim), slice(spec.text_dim, None), slice(None)
    half, (text_half, image_half) = spec.emb_dim // 2, half_names(spec)
    plan = {
        f"{spec.embedding_name}_v1": (text, spec.emb_dim, False),
        f"{spec.embedding_name}_v2": (image, spec.emb_dim, False),
        f"{spec.embedding_name}_v3": (both, spec.emb_dim, False),
        text_half: (text, half, True),
        image_half: (image, half, True),
    }
    projections: dict[str, tuple[NDArray, float]] = {}
    for name, (part, dim, unit_scale) in plan.items():
        variances, vectors = np.linalg.eigh(covariance[part, part])
        variances, vectors = variances[::-1][:dim], vectors[:, ::-1][:, :dim]
        largest = np.abs(vectors).argmax(axis=0)
        components = np.zeros((len(covariance), dim))
        components[part] = vectors * np.sign(vectors[largest, np.arange(dim)])
        scale = 1 / np.sqrt(max(variances.mean(), 1e-12)) if unit_scale else 1.0
        projections[name] = components, float(scale)
    return projections


def _write_embeddings(
    world: World,
    raw_embeddings: _RawEmbeddings,
    mean: NDArray[np.float64],
    projections: dict[str, tuple[NDArray, float]],
    folder: Path,
    progress: bool,
) -> None:
    """Write item_info.parquet (v3 as its embedding) and item_emb.parquet, both with the padding row 0.

    Where some items have no embedding, item_info has the ids and tags of all, and item_emb the rows of the others.
    """
    spec = world.spec
    stem, halves = spec.embedding_name, half_names(spec)
    dims = {f"{stem}_{version}": spec.emb_dim for version in ("v1", "v2", "v3", "e4")}
    dims |= dict.fromkeys(halves, spec.emb_dim // 2)
    ids_field, tags_field = ("item_id", pa.int64()), ("item_tags", pa.list_(pa.int64(), MAX_TAGS))
    kind = pa.int8() if spec.emb_bits == 8 else pa.float32()
    emb_schema = pa.schema([ids_field, *((name, pa.list_(kind, dim)) for name, dim in dims.items())])
    info_embedding = [(stem, pa.list_(kind, spec.emb_dim))] if spec.emb_items == 1 else []
    info_schema = pa.schema([ids_field, tags_field, *info_embedding])
    with (
        _progress_bar("item embeddings", spec.items, "items", progress) as bar,
        open_writer(folder / "item_emb.parquet", emb_schema) as emb_writer,
        open_writer(folder / "item_info.parquet", info_schema) as info_writer,
    ):
        for chunk, start, stop in chunks(spec.items, ITEM_CHUNK):
            ids: np.ndarray = np.arange(start + 1, stop + 1)
            kept = world.embedded(chunk, ids)
            centred = raw_embeddings.sample(chunk, ids)[kept] - mean
            columns: dict[str, NDArray] = {
                name: _stored(centred @ components * scale, spec) for name, (components, scale) in projections.items()
            }
            columns[f"{stem}_e4"] = np.concatenate([columns[name] for name in halves], axis=1)
            columns[stem] = columns[f"{stem}_v3"]
            if chunk == 0:
                columns = {name: np.pad(rows, ((1, 0), (0, 0))) for name, rows in columns.items()}
                ids, kept = np.r_[0, ids], np.r_[True, kept]
            emb_writer.write_table(_to_table({**columns, "item_id": ids[kept]}, emb_schema))
            info_writer.write_table(_to_table({**columns, "item_id": ids, "item_tags": world.tags[ids]}, info_schema))
            bar.update(stop - start)


def shown_items(world: World) -> NDArray[np.bool_]:
    """Return whether items are targets, (I + 1,): those with embeddings, as in Taobao-MM.

    Raises
    ------
    ConfigError
        There are so few that a user may have them all in the history, which leaves no target.
    """
    spec = world.spec
    parts = [
        world.embedded(chunk, np.arange(start + 1, stop + 1)) for chunk, start, stop in chunks(spec.items, ITEM_CHUNK)
    ]
    shown = np.concatenate([[False], *parts])
    warm = int((shown & ~world.cold).sum())
    if warm <= spec.seq_len:
        raise ConfigError(
            f"synthetic data: emb_items is {spec.emb_items}; expected enough for over {spec.seq_len} items (seq_len) "
            f"with embeddings that are not cold; now there are {warm}"
        )
    return shown


def sample_histories(world: World, exposure: NDArray[np.float64], progress: bool = False) -> Histories:
    """Sample what all users liked, chunk by chunk, by the cumulative ``exposure`` (I + 1,) of the items."""
    values, counts = [], []
    with _progress_bar("histories", world.spec.users, "users", progress) as bar:
        for chunk, start, stop in chunks(world.spec.users, USER_CHUNK):
            chunk_values, chunk_counts = sample_history_chunk(world, exposure, chunk, start, stop)
            values.append(chunk_values)
            counts.append(chunk_counts)
            bar.update(stop - start)
    return Histories.from_counts(np.concatenate(values), np.concatenate(counts), world.spec.items)


def _write_split(
    world: World,
    histories: Histories,
    exposure: NDArray[np.float64],
    shown: NDArray[np.bool_],
    split: str,
    folder: Path,
    progress: bool,
) -> None:
    """Write one split; the test split once without labels and once with them."""
    labels = ["label", "like"] if world.spec.second_context else ["label"]
    integers = ("user_id", "item_id", "likes_level", "views_level", *labels)
    fields = {name: pa.field(name, pa.int64()) for name in integers}
    history = pa.field("item_seq", pa.list_(pa.int64(), world.spec.seq_len))
    labelled = pa.schema([fields["user_id"], fields["item_id"], history, *list(fields.values())[2:]])
    schemas = {f"{split}.parquet": labelled}
    if split == "test":
        schemas = {
            "test.parquet": pa.schema([field for field in labelled if field.name not in labels]),
            "test_labelled.parquet": labelled,
        }
    total = getattr(world.spec, f"{split}_rows")
    with ExitStack() as stack:
        writers = [stack.enter_context(open_writer(folder / name, schema)) for name, schema in schemas.items()]
        bar = stack.enter_context(_progress_bar(split, total, "rows", progress))
        for chunk, start, stop in chunks(total, ROW_CHUNK * 100 // max(world.spec.seq_len, 100)):
            columns = sample_row_chunk(world, histories, exposure, shown, split, chunk, stop - start)
            for writer, schema in zip(writers, schemas.values(), strict=True):
                writer.write_table(_to_table(columns, schema))
            bar.update(stop - start)


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file; float lists are split by byte, which compresses far better than a dictionary of them."""
    leaves = {f"{f.name}.list.element" if pa.types.is_fixed_size_list(f.type) else f.name: f.type for f in schema}
    floats = [
        name
        for name, kind in leaves.items()
        if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
    ]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=[name for name in leaves if name not in floats],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    )


def _to_table(columns: dict[str, NDArray | pa.Array], schema: pa.Schema) -> pa.Table:
    """Put the columns that ``schema`` names into a table; (rows, length) arrays become fixed-size lists."""
    return pa.table([_to_arrow(columns[field.name], field.type) for field in schema], schema=schema)


def _to_arrow(values: NDArray | pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), kind.list_size)
    return pa.array(values, kind)


def _progress_bar(what: str, total: int, unit: str, progress: bool) -> tqdm:
    return tqdm(total=total, desc=f"{what:>15}", unit=f" {unit}", unit_scale=True, disable=not progress)
