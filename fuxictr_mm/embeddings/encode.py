"""``fuxictr-mm embed encode``: titles and images to vectors, with models of Hugging Face.

Shape letters: I items, n items of a chunk, D width.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fuxictr_mm.cli import add_examples, show
from fuxictr_mm.embeddings.encoding.choices import POOLINGS, PRECISIONS
from fuxictr_mm.embeddings.encoding.chunks import ChunkStore, begun_outputs
from fuxictr_mm.embeddings.encoding.images import open_images
from fuxictr_mm.embeddings.encoding.pretrained import model_stem, require_extra
from fuxictr_mm.embeddings.encoding.texts import ItemTexts
from fuxictr_mm.embeddings.item_file import ItemFileWriter, vector_type
from fuxictr_mm.embeddings.output import add_output, flag
from fuxictr_mm.embeddings.progress import item_bar
from fuxictr_mm.embeddings.store import Source, read_ids
from fuxictr_mm.errors import ConfigError, DataError, Interrupted
from fuxictr_mm.files import check_outputs, write_beside

if TYPE_CHECKING:
    from fuxictr_mm.embeddings.encoding.image_encoder import ImageEncoder
    from fuxictr_mm.embeddings.encoding.text_encoder import TextEncoder

#: Items of a chunk, the most that a killed run has to encode again.
CHUNK_ROWS = 1024

#: Items that a message names.
FEW = 5


@dataclass(frozen=True)
class EncodeReport:
    """What an encoding gave.

    Parameters
    ----------
    out : str
        The file.
    column : str
        Of the vectors.
    width : int
        D.
    items : int
        Rows, the padding left out.
    missing : dict of int to str
        Why an item has a zero vector.
    skipped : list of str
        Files that are no image of an item, or of an item that was not asked for.
    """

    out: str
    column: str
    width: int
    items: int
    missing: dict[int, str]
    skipped: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield what to tell the user."""
        yield f"{self.out}: {self.items} items, {self.column} of width {self.width}"
        for reason in sorted(set(self.missing.values())):
            ids = [item for item, why in self.missing.items() if why == reason]
            yield f"  {len(ids)} without a vector, {reason}: {_some(ids)}"
        if self.skipped:
            yield f"  {len(self.skipped)} files left out: {_some(self.skipped)}"


def encode_texts(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str,
    template: str = "{item_title}",
    column: str | None = None,
    revision: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    max_tokens: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    gpu: int = -1,
    chunk_rows: int = CHUNK_ROWS,
    overwrite: bool = False,
    restart: bool = False,
    report: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> EncodeReport:
    """Encode a text of each item; items without one get zeros and ``txt_missing`` True.

    Parameters
    ----------
    path : str or path
        A Parquet file with ``item_id`` and the template's columns.
    out : str or path
        A Parquet file to write: ``item_id`` ascending from the padding 0, ``txt_emb_MODEL``, ``txt_missing``.
    model : str
        A folder with safetensors, or an id of the Hugging Face hub.
    template : str
        Columns in braces, such as ``"{item_title}. {genres}"``.
    column : str, optional
        Name of the column of vectors.
    revision, pooling, normalize, max_tokens, batch_size, precision, gpu
        As for ``TextEncoder``.
    chunk_rows : int
        Items between two savings.
    overwrite : bool
        Replace a file that is there.
    restart : bool
        Throw away the finished chunks of a run that was killed, instead of going on.
    report : str or path, optional
        A JSON file to write with all that is missing.
    verbose : int
        0 shows no progress.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option, an input or a model that cannot be used.
    """
    require_extra("transformers")
    from fuxictr_mm.embeddings.encoding.text_encoder import TextEncoder

    job = _Job(out, [path], column, "txt", model, chunk_rows, overwrite, restart, report, verbose)
    texts = ItemTexts(path, template)
    encoder = TextEncoder(
        model,
        revision=revision,
        pooling=pooling,
        normalize=normalize,
        max_tokens=max_tokens,
        batch_size=batch_size,
        precision=precision,
        gpu=gpu,
    )

    def encode(chunk: list[str | None], advance: Callable[[int], object]) -> tuple[np.ndarray, dict[int, str]]:
        places = [place for place, text in enumerate(chunk) if text]
        vectors = np.zeros((len(chunk), encoder.width), dtype=np.float32)
        vectors[places] = encoder.encode([text for text in chunk if text], advance)
        advance(len(chunk) - len(places))
        return vectors, {place: "no text" for place, text in enumerate(chunk) if not text}

    options = {"template": template, "pooling": encoder.pooling, "max_tokens": encoder.max_tokens}
    store = job.open_store(encoder, texts.digest, {**options, "normalize": encoder.normalize})
    job.run(store, texts.ids, texts.chunks(chunk_rows), encode)
    return job.finish(store, texts.ids, {}, encoder.width)


def encode_images(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str,
    items: str | os.PathLike[str] | None = None,
    column: str | None = None,
    revision: str | None = None,
    pooling: str | None = None,
    normalize: bool = False,
    batch_size: int = 64,
    precision: str = "fp32",
    gpu: int = -1,
    workers: int = 4,
    chunk_rows: int = CHUNK_ROWS,
    overwrite: bool = False,
    restart: bool = False,
    report: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> EncodeReport:
    """Encode an image of each item; items whose image is broken or missing get zeros and ``img_missing`` True.

    Parameters
    ----------
    path : str or path
        A folder or an archive with ``ID.jpg`` (or .jpeg, .png, .webp) at any depth.
    out : str or path
        A Parquet file to write: ``item_id`` ascending from the padding 0, ``img_emb_MODEL``, ``img_missing``.
    items : str or path, optional
        A Parquet file whose ``item_id`` says which items to write; all that have an image by default.
    model, column, revision, chunk_rows, overwrite, restart, report, verbose
        As for ``encode_texts``.
    pooling, normalize, batch_size, precision, gpu, workers
        As for ``ImageEncoder``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option, an input or a model that cannot be used; not for single images.
    """
    require_extra("transformers", "PIL")
    from fuxictr_mm.embeddings.encoding.image_encoder import ImageEncoder

    job = _Job(out, [path, items], column, "img", model, chunk_rows, overwrite, restart, report, verbose)
    images = open_images(path)
    try:
        skipped, without = list(images.others), {}
        if items is not None:
            wanted = read_ids(Source("items", Path(items), "item_id"))
            skipped += [f"{item} (an item that {items} lacks)" for item in np.setdiff1d(images.ids, wanted).tolist()]
            images.keep(wanted)
            without = dict.fromkeys(np.setdiff1d(wanted, images.ids).tolist(), "no image file")
            if not images.ids.size:
                raise DataError(f"{path}: holds an image of none of the {wanted.size} items of {items}")
        encoder = ImageEncoder(
            model,
            revision=revision,
            pooling=pooling,
            normalize=normalize,
            batch_size=batch_size,
            precision=precision,
            gpu=gpu,
            workers=workers,
        )
        starts = range(0, len(images.ids), chunk_rows)
        store = job.open_store(encoder, images.digest(), {"pooling": encoder.pooling, "normalize": normalize})
        job.run(store, images.ids, (images.read(start, start + chunk_rows) for start in starts), encoder.encode)
        return job.finish(store, images.ids, without, encoder.width, skipped)
    finally:
        images.close()


class _Job:
    """One output: its chunks, its file and its report."""

    def __init__(
        self,
        out: str | os.PathLike[str],
        inputs: Iterable[str | os.PathLike[str] | None],
        column: str | None,
        modality: str,
        model: str,
        chunk_rows: int,
        overwrite: bool,
        restart: bool,
        report: str | os.PathLike[str] | None,
        verbose: int,
    ) -> None:
        if chunk_rows < 1:
            raise ConfigError(f"chunk_rows {chunk_rows}, expected 1 or more")
        self.out, self.flag = Path(out), f"{modality}_missing"
        self.column = column or f"{modality}_emb_{model_stem(model)}"
        if self.column in ("item_id", self.flag) or not self.column.isidentifier():
            raise ConfigError(f"column '{self.column}', expected a name of letters, digits and _; give --column")
        self._rows, self._restart, self._verbose = chunk_rows, restart, verbose
        self._folder = self.out.with_name(f"{self.out.name}.chunks")
        self._outputs = [self.out, *([] if report is None else [Path(report)])]
        # A run that was killed while it wrote them may go on and write them again.
        begun = set() if restart else begun_outputs(self._folder)
        fresh = [path for path in self._outputs if path.resolve() not in begun]
        self._overwrite = overwrite or self.out not in fresh
        # Now, not after hours.
        check_outputs(fresh, inputs, overwrite)

    def open_store(self, encoder: TextEncoder | ImageEncoder, digest: str, options: Mapping[str, Any]) -> ChunkStore:
        import torch
        import transformers

        made_of = {
            "model": encoder.digest,
            "input": digest,
            **options,
            "batch_size": encoder.batch_size,
            "precision": encoder.precision,
            "chunk_rows": self._rows,
            "device": encoder.device.type,
            "libraries": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }
        return ChunkStore(self._folder, {key: str(value) for key, value in made_of.items()}, self._restart)

    def run(
        self,
        store: ChunkStore,
        ids: np.ndarray,
        chunks: Iterable[Any],
        encode: Callable[[Any, Callable[[int], object]], tuple[np.ndarray, dict[int, str]]],
    ) -> None:
        """Encode the chunks that are not finished."""
        numbers = range(-(-len(ids) // self._rows))
        done = sum(min(self._rows, len(ids) - number * self._rows) for number in numbers if number in store.finished)
        if done and self._verbose:
            print(f"{done} of {len(ids)} items are finished in {store.folder}: going on", file=sys.stderr)
        bar = item_bar(len(ids), self.column, self._verbose, done)
        try:
            with bar:
                for number, chunk in zip(numbers, chunks, strict=True):
                    if number in store.finished:
                        continue
                    vectors, broken = encode(chunk, bar.update)
                    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
                    if bad.size:
                        raise DataError(
                            f"{self.column}: the model gives NaN or infinite numbers for item "
                            f"{ids[number * self._rows + bad[0]]}; try --precision fp32 or another model"
                        )
                    store.save(number, vectors, broken)
        except KeyboardInterrupt:
            said = f"stopped; {len(store.finished)} of {len(numbers)} chunks are kept in {store.folder}: "
            raise Interrupted(said + "the same command goes on", signal.SIGINT) from None

    def finish(
        self,
        store: ChunkStore,
        ids: np.ndarray,
        without: Mapping[int, str],
        width: int,
        skipped: list[str] | None = None,
    ) -> EncodeReport:
        """Write the file in ascending order of ids, then the report, and remove the chunks."""
        missing = dict(without)
        for number in sorted(store.finished):
            missing.update({int(ids[number * self._rows + place]): why for place, why in store.broken(number).items()})
        if len(missing) == len(ids) + len(without):
            raise DataError(f"{self.column}: not one of {len(missing)} items has a vector, first {_first(missing)}")
        order = np.argsort(ids, kind="stable")
        items = np.sort(np.concatenate([ids, np.fromiter(without, np.int64, len(without))]))
        flagged = np.fromiter(missing, np.int64, len(missing))
        schema = {self.column: vector_type(width), self.flag: pa.bool_()}
        store.begin_outputs(self._outputs)
        with ItemFileWriter(self.out, schema, self._overwrite) as writer:
            for start in range(0, len(items), CHUNK_ROWS):
                some = items[start : start + CHUNK_ROWS]
                rows = np.searchsorted(ids, some, sorter=order).clip(max=len(ids) - 1)
                places = order[rows]
                vectors = np.zeros((len(some), width), dtype=np.float32)
                here = ids[places] == some
                for number in np.unique(places[here] // self._rows):
                    taken = here & (places // self._rows == number)
                    vectors[taken] = store.vectors(int(number))[places[taken] % self._rows]
                writer.write(some, {self.column: vectors, self.flag: np.isin(some, flagged)})
        done = EncodeReport(str(self.out), self.column, width, len(items), dict(sorted(missing.items())), skipped or [])
        text = json.dumps(asdict(done), indent=1, ensure_ascii=False)
        for report in self._outputs[1:]:
            write_beside(report, lambda stream: stream.write(text.encode(errors="replace")))
        store.remove()
        return done


def _some(values: list[Any]) -> str:
    return ", ".join(map(str, values[:FEW])) + (", ..." if len(values) > FEW else "")


def _first(missing: Mapping[int, str]) -> str:
    item, reason = next(iter(missing.items()))
    return f"{item} ({reason})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``fuxictr-mm embed encode``."""
    add_examples(
        parser,
        "fuxictr-mm embed encode --texts item_feature.parquet --template '{item_title}' \\",
        "    --model bert-base-multilingual-cased --column txt_emb_BERT --out text.parquet",
        "fuxictr-mm embed encode --images covers.zip --items item_feature.parquet \\",
        "    --model google/siglip-base-patch16-224 --column img_emb_SigLIP --out image.parquet --report image.json",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--texts", metavar="FILE", help="Parquet file with item_id and texts")
    what.add_argument("--images", metavar="PATH", help="folder, .zip or .tar(.gz) of ID.jpg, .jpeg, .png or .webp")
    parser.add_argument("--model", required=True, help="folder with safetensors, or an id of the Hugging Face hub")
    parser.add_argument("--out", required=True, metavar="FILE", help="Parquet file to write")
    parser.add_argument("--column", help="name of the column (default: txt_emb_ or img_emb_ and the model's name)")
    parser.add_argument("--template", help="texts: columns in braces (default: '{item_title}')")
    parser.add_argument("--max-tokens", type=int, help="texts: longest text in tokens (default: the model's limit)")
    parser.add_argument("--items", metavar="FILE", help="images: Parquet file that says which items to write")
    parser.add_argument("--workers", type=int, help="images: threads that decode (default: 4)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--pooling", choices=POOLINGS, help="instead of what the model says")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="bring vectors to length 1 (default: as the model says)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="items at once (default: 64)")
    parser.add_argument("--chunk-rows", type=int, default=CHUNK_ROWS, help="items between savings (default: 1024)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the arithmetic (default: fp32)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of a GPU (default: -1, the CPU)")
    parser.add_argument("--report", metavar="FILE", help="JSON file to write with all items that have no vector")
    parser.add_argument("--restart", action="store_true", help="throw away the chunks of a run that was killed")
    add_output(parser)


def main_from_args(parsed: argparse.Namespace) -> None:
    """Run ``fuxictr-mm embed encode``."""
    shared = ("model", "column", "revision", "pooling", "batch_size", "chunk_rows", "precision", "gpu", "overwrite")
    options = {name: getattr(parsed, name) for name in (*shared, "restart", "report")}
    own = {"texts": ("template", "max_tokens"), "images": ("items", "workers")}
    kind, other = ("texts", "images") if parsed.texts is not None else ("images", "texts")
    for name in own[other]:
        if getattr(parsed, name) is not None:
            raise ConfigError(f"{flag(name)} is for --{other}, and --{kind} was given; leave it out")
    for name in (*own[kind], "normalize"):
        if getattr(parsed, name) is not None:
            options[name] = getattr(parsed, name)
    options["verbose"] = 0 if parsed.quiet else 1
    if kind == "texts":
        done = encode_texts(parsed.texts, parsed.out, **options)
    else:
        done = encode_images(parsed.images, parsed.out, **options)
    show(parsed, asdict(done), "\n".join(done.lines()))
