"""Titles and images to embeddings, by pretrained models.

Shape letters: I items, n items of a chunk, D dim.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fuxictr_mm.data.ids import AS_IS, Numbering
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.encoders import ImageEncoder, TextEncoder
from fuxictr_mm.embeddings.image_names import ImageNames
from fuxictr_mm.embeddings.images import ImageFiles
from fuxictr_mm.embeddings.item_files import ItemFileWriter, embedding_type, read_ids
from fuxictr_mm.embeddings.pretrained import model_stem, require_extra
from fuxictr_mm.embeddings.texts import ItemTexts, default_template
from fuxictr_mm.encoding.text_encodings import UTF8, Encoding
from fuxictr_mm.errors import ConfigError, DataError, Interrupted, UserError, first_line
from fuxictr_mm.files import StrPath, check_outputs, read_json, write_beside, write_json
from fuxictr_mm.terminal import item_bar, listed

#: Items of a chunk, the most that a killed run has to encode again.
CHUNK_ROWS = 1024

#: Items or files that a message names.
FEW = 5

#: Why item 0 has no embedding although it has a text.
ZERO = "0 is padding unless --ids is vocabulary, here and in the commands that read the file"


@dataclass(frozen=True)
class EncodeOptions:
    """The model, the column, and how a run resumes."""

    model: str  #: A folder with safetensors, or an id of the Hugging Face hub.
    column: str | None = None  #: Name of the column of embeddings; ``txt_emb_`` or ``img_emb_`` and the model's name.
    chunk_rows: int = CHUNK_ROWS  #: Items between two checkpoints.
    overwrite: bool = False  #: Replace existing files.
    restart: bool = False  #: Discard the finished chunks of a run that was killed, instead of resuming.
    report: StrPath | None = None  #: A JSON file to write with all missing items.
    verbose: int = 1  #: 0 shows no progress.
    numbering: Numbering = AS_IS  #: Of the items.
    encoding: Encoding = UTF8  #: Of item files of text.


@dataclass(frozen=True)
class EncodeReport:
    """The result of an encoding."""

    out: str  #: The file.
    column: str  #: Of the embeddings.
    width: int  #: D.
    items: int  #: Rows, without the padding.
    missing: dict[Any, str]  #: The reason of each zero embedding, by item.
    skipped: list[str] = field(default_factory=list)  #: Files that are not an image of a requested item.
    prompt: str = ""  #: Default prompt of the model, put before every text.

    def lines(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        yield f"{self.out}: {self.items} items, {self.column} of dim {self.width}"
        if self.prompt:
            yield f"  each text follows the model's default prompt {self.prompt!r}"
        for reason in sorted(set(self.missing.values())):
            ids = [str(item) for item, why in self.missing.items() if why == reason]
            yield f"  {len(ids)} without an embedding, {reason}: {listed(ids, FEW)}"
        if self.skipped:
            yield f"  {len(self.skipped)} files skipped: {listed(self.skipped, FEW)}"


def encode_texts(
    path: StrPath, out: StrPath, options: EncodeOptions, *, template: str | None = None, **settings: Any
) -> EncodeReport:
    """Encode a text of each item; items without one get zeros and ``txt_missing`` True.

    Parameters
    ----------
    path : str or path
        A Parquet, CSV or JSON lines file with ``item_id`` and the template's columns.
    out : str or path
        A Parquet file to write: ``item_id`` ascending from the padding 0, ``txt_emb_MODEL``, ``txt_missing``.
    options : EncodeOptions
        The model, the column, and how a run resumes.
    template : str, optional
        Columns in braces, such as ``"{item_title}. {genres}"``; ``item_title`` by default, or else ``title``.
    **settings
        The fields of ``TextOptions``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option, an input or a model is invalid.
    """
    job = _Job(out, [path], "txt", options)
    template = default_template(path, options.encoding) if template is None else template
    texts = ItemTexts(path, template, options.numbering, options.encoding)
    require_extra("transformers", "sentence_transformers")  # imports both, which takes seconds
    encoder = TextEncoder(options.model, **settings)

    def encode(chunk: list[str | None], advance: Callable[[int], object]) -> tuple[np.ndarray, dict[int, str]]:
        rows = [row for row, text in enumerate(chunk) if text]
        embeddings = np.zeros((len(chunk), encoder.dim), dtype=np.float32)
        embeddings[rows] = encoder.encode([text for text in chunk if text], advance)
        advance(len(chunk) - len(rows))
        return embeddings, {row: "no text" for row, text in enumerate(chunk) if not text}

    job.open({"input": texts.digest, "template": template, **encoder.settings})
    job.run(texts.ids, texts.chunks(options.chunk_rows), encode)
    return job.finish(texts.ids, encoder.dim, prompt=encoder.prompt, zero=bool(texts.padding))


def encode_images(
    path: StrPath,
    out: StrPath,
    options: EncodeOptions,
    *,
    items: StrPath | None = None,
    image_column: str | None = None,
    **settings: Any,
) -> EncodeReport:
    """Encode an image of each item; items whose image is broken or missing get zeros and ``img_missing`` True.

    Parameters
    ----------
    path : str or path
        A folder or an archive with ``ID.jpg`` (or .jpeg, .png, .webp) at any depth, or the files of ``image_column``.
    out : str or path
        A Parquet file to write: ``item_id`` ascending from the padding 0, ``img_emb_MODEL``, ``img_missing``.
    options : EncodeOptions
        The model, the column, and how a run resumes.
    items : str or path, optional
        A Parquet, CSV or JSON lines file with the ``item_id`` of the items to write; all that have an image by default.
    image_column : str, optional
        A column of ``items`` with the name of each item's image, relative to ``path``.
    **settings
        The fields of ``ImageOptions``.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        An option, an input or a model is invalid; broken single images are no error.
    """
    if image_column is not None and items is None:
        raise ConfigError(
            f"image_column {image_column}: is a column of the file of --items, which is missing; give --items FILE"
        )
    job, numbering, rows = _Job(out, [path, items], "img", options), options.numbering, options.chunk_rows
    encoding = options.encoding
    names = None if items is None or image_column is None else ImageNames(items, image_column, numbering, encoding)
    # Before the images, whose names are unknown ids if this file cannot be read.
    wanted = None if items is None else read_ids(items, numbering, encoding) if names is None else names.ids
    with ImageFiles(path, names, numbering) as images:
        skipped, without = list(images.others), np.zeros(0, dtype=np.int64)
        if wanted is not None:
            without = np.setdiff1d(wanted, images.ids)
            skipped += [f"{item} (an item that is not in {items})" for item in np.setdiff1d(images.ids, wanted)]
            images.keep(wanted)
            if not images.ids.size:
                raise DataError(f"{path}: holds no image of the {wanted.size} items of {items}")
        require_extra("transformers", "PIL")
        encoder = ImageEncoder(options.model, **settings)
        starts = range(0, len(images.ids), rows)
        job.open({"input": images.digest(), **encoder.settings})
        job.run(images.ids, (images.read(start, start + rows) for start in starts), encoder.encode)
        missing = dict.fromkeys(without.tolist(), "no image file")
        return job.finish(images.ids, encoder.dim, missing, skipped)


class _Job:
    """One output: its finished chunks, its file and its report. A killed run resumes."""

    def __init__(self, out: StrPath, inputs: Iterable[StrPath | None], modality: str, options: EncodeOptions) -> None:
        if options.chunk_rows < 1:
            raise ConfigError(f"chunk_rows {options.chunk_rows}, expected 1 or more")
        self.options, self.numbering = options, options.numbering
        self.out, self.flag = Path(out), f"{modality}_missing"
        self.column = options.column or f"{modality}_emb_{model_stem(options.model)}"
        if self.column in (ITEM_ID, self.numbering.roles.target, self.flag) or not self.column.isidentifier():
            raise ConfigError(f"column '{self.column}', expected a name of letters, digits and _; give --column")
        self._rows = options.chunk_rows
        self._outputs = [self.out, *([] if options.report is None else [Path(options.report)])]
        self._folder = self.out.with_name(f"{self.out.name}.chunks")
        # A run that was killed while it wrote its outputs may write them again.
        begun = set() if options.restart else begun_outputs(self._folder)
        new = [path for path in self._outputs if path.resolve() not in begun]
        self._overwrite = options.overwrite or self.out not in new
        check_outputs(new, inputs, options.overwrite)  # now, not after hours

    def open(self, settings: Mapping[str, Any]) -> None:
        """Open the chunks of an earlier run with these settings, or a new folder."""
        settings = {key: str(value) for key, value in settings.items()} | {"chunk_rows": str(self._rows)}
        self._store = ChunkStore(self._folder, settings, self.options.restart)

    def run(
        self,
        ids: np.ndarray,
        chunks: Iterable[Any],
        encode: Callable[[Any, Callable[[int], object]], tuple[np.ndarray, dict[int, str]]],
    ) -> None:
        """Encode the chunks that are not finished."""
        store, numbers = self._store, range(-(-len(ids) // self._rows))
        done = sum(min(self._rows, len(ids) - number * self._rows) for number in numbers if number in store.finished)
        if done and self.options.verbose:
            print(f"{done} of {len(ids)} items are finished in {store.folder}: resuming", file=sys.stderr)
        try:
            with item_bar(len(ids), self.column, self.options.verbose, done) as bar:
                for number, chunk in zip(numbers, chunks, strict=True):
                    if number in store.finished:
                        continue
                    embeddings, broken = encode(chunk, bar.update)
                    bad = np.flatnonzero(~np.isfinite(embeddings).all(1))
                    if bad.size:
                        item = self.numbering.name(ids[number * self._rows + bad[0]])
                        raise DataError(
                            f"{self.column}: the model returns NaN or infinite numbers for {item}; try "
                            "--precision fp32 or another model"
                        )
                    store.save(number, embeddings, broken)
        except KeyboardInterrupt:
            kept = f"{len(store.finished)} of {len(numbers)} chunks are saved in {store.folder}"
            raise Interrupted(f"stopped; {kept}: the same command resumes", signal.SIGINT) from None

    def finish(
        self,
        ids: np.ndarray,
        dim: int,
        missing: Mapping[int, str] | None = None,
        skipped: list[str] | None = None,
        prompt: str = "",
        zero: bool = False,
    ) -> EncodeReport:
        """Write the file in ascending order of ids, then the report, which names ``zero``, and remove the chunks."""
        without, missing = dict(missing or {}), dict(missing or {})
        for number in sorted(self._store.finished):
            reasons = self._store.broken(number).items()
            missing.update({int(ids[number * self._rows + row]): reason for row, reason in reasons})
        if len(missing) == len(ids) + len(without):
            item, reason = next(iter(missing.items()))
            first = f"first {self.numbering.name(item)} ({reason})"
            raise DataError(f"{self.column}: none of {len(missing)} items has an embedding, {first}")
        items = np.sort(np.concatenate([ids, np.fromiter(without, np.int64, len(without))]))
        flagged = np.fromiter(missing, np.int64, len(missing))
        self._store.begin_outputs(self._outputs)
        schema = {self.column: embedding_type(dim), self.flag: pa.bool_()}
        with ItemFileWriter(self.out, schema, self._overwrite, numbering=self.numbering) as writer:
            for start in range(0, len(items), CHUNK_ROWS):
                some = items[start : start + CHUNK_ROWS]
                writer.write(some, {self.column: self._gather(ids, some, dim), self.flag: np.isin(some, flagged)})
        shown = {self.numbering.show(item): reason for item, reason in sorted(missing.items())}
        if zero and self.numbering.items is None:
            shown = {0: ZERO, **shown}
        done = EncodeReport(str(self.out), self.column, dim, len(items), shown, skipped or [], prompt)
        text = json.dumps(asdict(done), indent=1, ensure_ascii=False)
        for report in self._outputs[1:]:
            write_beside(report, lambda stream: stream.write(text.encode(errors="replace")))
        self._store.remove()
        return done

    def _gather(self, ids: np.ndarray, items: np.ndarray, dim: int) -> np.ndarray:
        """Return the embeddings ``(n, D)`` of some items from the chunks; zeros for an item that is in none."""
        order = np.argsort(ids, kind="stable")
        positions = order[np.searchsorted(ids, items, sorter=order).clip(max=len(ids) - 1)]
        embeddings = np.zeros((len(items), dim), dtype=np.float32)
        numbers = np.where(ids[positions] == items, positions // self._rows, -1)
        for number in np.unique(numbers[numbers >= 0]):
            rows = numbers == number
            embeddings[rows] = self._store.vectors(int(number))[positions[rows] % self._rows]
        return embeddings


def begun_outputs(folder: Path) -> set[Path]:
    """Return the output files that an interrupted run had started to write from its finished chunks."""
    file = folder / "outputs.json"
    return {Path(name) for name in read_json(file)["files"]} if file.is_file() else set()


class ChunkStore:
    """A folder with a file of embeddings per finished chunk, and the settings (model, input, options) of them all.

    Raises ConfigError where the folder holds chunks of other settings, unless ``restart``, or something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], restart: bool = False) -> None:
        self.folder = folder
        manifest = folder / "made_of.json"
        if restart and manifest.is_file():
            self.remove()
        if manifest.is_file():
            self._require_same(read_json(manifest), settings)
        else:
            # Chunks are written after the manifest: a folder without one is not ours.
            if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
                raise ConfigError(f"{folder}: exists and holds no chunks; move it, or give another --out")
            write_json(manifest, settings)
        self.finished = {int(file.stem) for file in folder.glob("*.npy") if re.fullmatch(r"[0-9]+", file.stem)}

    def _require_same(self, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        changed = [key for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)]
        texts = {key: f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in changed}
        if changed:
            raise ConfigError(
                f"{self.folder}: holds finished chunks of a run with another "
                f"{', '.join(text if len(text) < 80 else key for key, text in texts.items())}; "
                "resume with the same model, input and options, or add --restart to discard them"
            )

    def save(self, number: int, embeddings: np.ndarray, broken: Mapping[int, str]) -> None:
        """Save a chunk: embeddings ``(n, D)``, and by row the reason why an item has none."""
        write_json(self.folder / f"{number:08d}.json", {str(row): reason for row, reason in sorted(broken.items())})
        # The embeddings come last: where they are, the chunk is complete.
        write_beside(self.folder / f"{number:08d}.npy", lambda stream: np.save(stream, embeddings, allow_pickle=False))
        self.finished.add(number)

    def vectors(self, number: int) -> np.ndarray:
        """Return embeddings ``(n, D)`` of a finished chunk, mapped from the file."""
        file = self.folder / f"{number:08d}.npy"
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file}: cannot be read ({first_line(error)}); perhaps another run with the same output "
                "has removed it; start again with --restart"
            ) from None

    def broken(self, number: int) -> dict[int, str]:
        """Return by row the reason why an item of a finished chunk has no embedding."""
        return {int(row): reason for row, reason in read_json(self.folder / f"{number:08d}.json").items()}

    def begin_outputs(self, outputs: Iterable[Path]) -> None:
        """Record that all chunks are finished and that these files are written next."""
        write_json(self.folder / "outputs.json", {"files": [str(path.resolve()) for path in outputs]})

    def remove(self) -> None:
        """Rename the folder, then remove it, so that the rest of a killed removal is not taken for chunks."""
        going = self.folder.with_name(f".{self.folder.name}.removed")
        try:
            if going.exists():
                shutil.rmtree(going)
            if self.folder.exists():
                self.folder.rename(going)
                shutil.rmtree(going)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be removed ({error.strerror}); remove it manually") from None
