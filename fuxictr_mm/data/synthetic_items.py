"""Item files of synthetic data: titles, tags, raw text and image embeddings, and what PCA makes of them.

Text embeddings are a noisy linear view of the text half of the topics, image embeddings of the image half, on unequal
scales. The PCA needs one pass for the sums and one to project; the raw embeddings are drawn again rather than kept.

Shapes: I items, D width of raw text and image side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fuxictr_mm.data.synthetic import SyntheticSpec
from fuxictr_mm.data.synthetic_parquet import open_writer, progress_bar, to_table
from fuxictr_mm.data.synthetic_titles import draw_titles
from fuxictr_mm.data.synthetic_world import Stream, World, chunks, generator

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
