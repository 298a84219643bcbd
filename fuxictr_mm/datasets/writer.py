"""Write the data of a reader in this library's layout: item files, a folder of part files per split, a configuration.

Every file is written atomically, and a chunk that is finished is not read again by another start of the same command.

Shape letters: R rows, N history items of all rows, I embeddings.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.data.norms import Norms
from fuxictr_mm.data.numbering import digest_of, to_later_metadata, to_metadata
from fuxictr_mm.data.vocabulary import Vocabulary
from fuxictr_mm.datasets.folder import VERSION, PreparedFolder
from fuxictr_mm.datasets.histories import ranges
from fuxictr_mm.datasets.reader import SPLITS, Embeddings, Reader, Rows, names_of
from fuxictr_mm.datasets.summary import SplitSummary, Summary
from fuxictr_mm.encoding.text_files import is_disk_full
from fuxictr_mm.errors import DataError, UserError, first_line
from fuxictr_mm.files import atomic_path, read_json, write_json
from fuxictr_mm.terminal import progress_bar
from fuxictr_mm_serving.prepared import HISTORIES, ITEM_FILE, MANIFEST, NUMBERED, SOURCE_ID, SOURCE_USER, VOCABULARIES

logger = logging.getLogger(__name__)

#: What was written in the end, for another start of the command; not in the manifest, whose digest later logs keep.
FINISHED = ".finished.json"

#: Rows of a row group: what is shuffled and streamed together.
GROUP_ROWS = 100_000


class Writer:
    """Writes the dataset of a reader, called ``name``, into a folder; ``verbose`` is as of ``progress_bar``."""

    def __init__(self, reader: Reader, name: str, folder: Path, verbose: int = 1) -> None:
        self.reader, self.folder, self.verbose = reader, folder, verbose
        found = {str(path.relative_to(reader.source)): path.stat() for path in reader.files()}
        stats = {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}
        self.origin: dict[str, Any] = {"version": VERSION, "reader": name, "max_len": reader.max_len, "files": stats}
        if reader.options:
            self.origin["options"] = reader.options
        self._vocabularies: dict[str, Vocabulary] = {}

    def write(self, overwrite: bool = False) -> Summary:
        """Write everything that does not exist yet; ``overwrite`` deletes an earlier dataset of the folder first."""
        folder = PreparedFolder(self.folder, self.origin)
        overwrite = folder.prepare(self.reader.source, overwrite)
        try:
            with folder.locked(overwrite):
                return self._write()
        except (pl.exceptions.PolarsError, pa.ArrowException) as error:
            reason = first_line(error)
            if is_disk_full(error):
                raise UserError(f"{self.folder}: {reason}; then run the same command again to continue") from error
            raise DataError(f"{self.reader.source}: cannot be read ({reason})") from error
        except UserError:
            raise
        except OSError as error:
            where = error.filename or self.folder
            raise UserError(
                f"{where}: {error.strerror or error}; then run the same command again to continue"
            ) from error

    def finished(self) -> Summary | None:
        """Return what the same command has written before, of the same files and options; None unless all is there."""
        manifest, path = self.folder / MANIFEST, self.folder / FINISHED
        if not (manifest.exists() and path.exists()) or read_json(manifest).get("origin") != self.origin:
            return None
        try:
            with PreparedFolder(self.folder, self.origin).locked(overwrite=False):
                found = self._kept()
                if found is None or not all((self.folder / name).exists() for name in found[1]):
                    return None
                shutil.rmtree(self.reader.scratch, ignore_errors=True)
        except OSError:  # it cannot be locked; to write it tells why
            return None
        logger.info(f"{self.folder}: was written before, of the same files and options; --overwrite writes it again")
        return found[0]

    def kept_advice(self) -> list[str]:
        """Return what an earlier start that has ended said of the data; nothing by an earlier version."""
        return list(read_json(self.folder / FINISHED).get("advice", []))

    def keep_advice(self, advice: Sequence[str]) -> None:
        """Keep what is said of the data, for another start of the command."""
        path = self.folder / FINISHED
        write_json(path, {**read_json(path), "advice": list(advice)})

    def _kept(self) -> tuple[Summary, dict[str, int]] | None:
        """Return the summary of an earlier start that has ended, and the sizes of its files; None if there is none.

        Raises
        ------
        DataError
            A file has another size now: it may be damaged, or changed on purpose.
        """
        try:
            found = read_json(self.folder / FINISHED)
            summary, sizes = Summary.from_json(found["summary"]), dict(found["sizes"])
        except (UserError, KeyError, TypeError, ValueError, AttributeError):  # of another version, or cut off
            return None
        for name, size in sizes.items():
            path = self.folder / name
            if path.exists() and path.stat().st_size != size:
                raise DataError(
                    f"{path}: has {path.stat().st_size} bytes, expected {size}, as it was written; delete it to write "
                    "it again, or add --overwrite to write all again"
                )
        return summary, sizes

    def _write(self) -> Summary:
        done: dict[str, Any] = {"origin": self.origin, "chunks": {}}
        if (self.folder / MANIFEST).exists():
            done = read_json(self.folder / MANIFEST)
            self._kept()
            (self.folder / FINISHED).unlink(missing_ok=True)
            logger.info(f"{self.folder}: resuming, {len(done['chunks'])} chunks are finished")
        else:
            shutil.rmtree(self.reader.scratch, ignore_errors=True)  # of another source, whose manifest was deleted
            write_json(self.folder / MANIFEST, done)
        coverage, scales, norms = self._write_items()
        self._write_chunks(done)
        splits = {split: SplitSummary() for split in SPLITS}
        for parts in done["chunks"].values():
            for split, counts in parts.items():
                splits[split].add(SplitSummary(**counts))
        splits = {split: counts for split, counts in splits.items() if counts.rows}
        if "train" not in splits and self.reader.known_items is None:
            raise DataError(f"{self.reader.source}: no rows for training were found")
        trained = self._count_targets(splits)
        sizes = self._write_vocabularies()
        facts = self.reader.facts()
        if facts:
            write_json(self.folder / MANIFEST, {**done, "columns": facts, **self.reader.notes()})
        shutil.rmtree(self.reader.scratch, ignore_errors=True)
        users = sizes["user_id"] - 1
        dims = {name: pq.read_schema(self.folder / f"{name}.parquet").field(name).type.list_size for name in coverage}
        summary = Summary(len(self._items), users, splits, coverage, scales, norms, sizes, facts, trained, dims)
        paths = [self.folder / ITEM_FILE, *(self.folder / f"{name}.parquet" for name in coverage)]
        for name in (*SPLITS, HISTORIES, VOCABULARIES):
            paths += sorted((self.folder / name).glob("*.parquet"))
        written = {str(path.relative_to(self.folder)): path.stat().st_size for path in paths}
        write_json(self.folder / FINISHED, {"summary": asdict(summary), "sizes": written})
        return summary

    # Items

    @cached_property
    def _item_frame(self) -> pl.DataFrame:
        frame = self.reader.items()
        if frame["item_id"].null_count():
            row = int(frame["item_id"].is_null().arg_true()[0])
            raise DataError(f"{self.reader.source}: item {row} (counted from 0) has no id; correct or drop its row")
        twice = frame["item_id"].is_duplicated()
        if twice.any():
            value = frame["item_id"].filter(twice)[0]
            raise DataError(f"{self.reader.source}: the item {value!r} occurs more than once, expected once")
        return frame

    @cached_property
    def _items(self) -> Vocabulary:
        return _build(self._item_frame["item_id"])

    def _write_items(self) -> tuple[dict[str, float], dict[str, float], dict[str, Norms]]:
        """Write the item file and a file per embedding; return coverage, scale and norms of each embedding."""
        path = self.folder / ITEM_FILE
        if not path.exists():
            frame = self._item_frame
            columns: dict[str, pa.Array] = {
                "item_id": pa.array(np.arange(1, len(frame) + 1, dtype=np.int32)),
                SOURCE_ID: frame["item_id"].to_arrow(),
            }
            for name, kind in self.reader.item_columns.items():
                columns[name] = self._item_column(name, kind)
            metadata = self._numbering(names_of(self.reader.item_columns, ["categorical", "sequence"]))
            with atomic_path(path) as temporary:
                table = pa.table(columns).replace_schema_metadata(metadata)
                pq.write_table(table, temporary, compression="zstd", row_group_size=GROUP_ROWS)
        coverage, scales, norms = {}, {}, {}
        for name, embeddings in self.reader.embeddings().items():
            found = self._write_embeddings(name, embeddings)
            coverage[name] = len(found) / max(len(self._items), 1)
            if embeddings.scale is not None:
                scales[name] = embeddings.scale
            elif (of_items := Norms.of(found)) is not None:
                norms[name] = of_items
        return coverage, scales, norms

    def _norms_of(self, name: str) -> np.ndarray:
        """Return the norms of the embeddings that were written before ``(I,)``."""
        batches = pq.ParquetFile(self.folder / f"{name}.parquet").iter_batches(columns=[name])
        columns = (batch.column(0) for batch in batches)
        matrices = (column.flatten().to_numpy().reshape(len(column), -1) for column in columns)
        return np.concatenate([np.linalg.norm(values, axis=1) for values in matrices])

    @cached_property
    def _item_digest(self) -> str:
        return digest_of(self._items)

    @cached_property
    def _known_digest(self) -> str:
        """Digest of the items that were numbered before."""
        return digest_of(Vocabulary(self._items.values.slice(0, self.reader.known_items)))

    def _numbering(self, names: Sequence[str]) -> dict[bytes, bytes]:
        """Return the metadata of a file with items and columns of numbers."""
        digests = {name: digest_of(self._vocabulary(name)) for name in names}
        known = self.reader.known_items
        if known is None:
            return to_metadata({"item_id": self._item_digest, **digests}, self.reader.extends)
        digests = {"item_id": self._known_digest, **digests}
        return to_later_metadata(digests, known, self._item_digest, self.reader.earlier_items)

    def _item_column(self, name: str, kind: str) -> pa.Array:
        column = self._item_frame[name]
        if kind == "numeric":
            return column.cast(pl.Float32).fill_null(0).to_arrow()
        if kind == "text":
            return column.cast(pl.String).fill_null("").to_arrow()
        vocabulary = self._vocabulary(name)
        if kind == "categorical":
            return pa.array(_codes(vocabulary, column))
        values, offsets = _parts(column.to_arrow())
        codes = _codes(vocabulary, values)
        known = codes > 0  # of a later log, an entry that is new; 0 would be padding
        return pa.LargeListArray.from_arrays(np.r_[0, np.cumsum(known)][offsets], pa.array(codes[known]))

    def _write_embeddings(self, name: str, embeddings: Embeddings) -> np.ndarray:
        """Write the embeddings of known items; return their norms ``(I,)``."""
        path = self.folder / f"{name}.parquet"
        if path.exists():
            return self._norms_of(name)
        seen, norms = np.zeros(len(self._items) + 1, dtype=bool), []
        writer: pq.ParquetWriter | None = None
        with atomic_path(path) as temporary:
            try:
                for ids, values in progress_bar(embeddings.chunks(), name, self.verbose):
                    numbers = _codes(self._items, ids)
                    kept = np.flatnonzero(numbers)
                    kept = kept[~seen[numbers[kept]]]
                    seen[numbers[kept]] = True
                    values = values[kept]
                    norms.append(np.linalg.norm(values, axis=1))
                    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
                    lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
                    table = pa.table({"item_id": pa.array(numbers[kept]), name: lists}, metadata=self._numbering([]))
                    writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                    writer.write_table(table)
            finally:
                if writer is not None:
                    writer.close()
            if not seen.any():
                raise DataError(f"{self.reader.source}: no item has an embedding '{name}'")
        return np.concatenate(norms)

    # Rows

    @cached_property
    def _row_metadata(self) -> dict[bytes, bytes]:
        return NUMBERED | self._numbering(["user_id", *names_of(self.reader.context, ["categorical"])])

    def _vocabulary(self, name: str) -> Vocabulary:
        """Return the numbering of an item column, of a context column or of the users."""
        if name not in self._vocabularies:
            given = self.reader.numbering(name)
            if given is not None:
                values = given
            elif name in self.reader.item_columns:
                values = self._item_frame[name]
                values = values.explode(**EMPTY_AS_NULL) if values.dtype == pl.List else values
            else:
                values = self.reader.values(name)
            self._vocabularies[name] = _build(values)
        return self._vocabularies[name]

    def _write_vocabularies(self) -> dict[str, int]:
        """Write ``vocabularies/NAME.parquet``, the value of every code; return the number of codes, 0 included."""
        context = names_of(self.reader.context, ["categorical"])
        sizes = {}
        for name in ["user_id", *context, *names_of(self.reader.item_columns, ["categorical", "sequence"])]:
            values = self._vocabulary(name).values
            sizes[name] = len(values) + 1
            path = self.folder / VOCABULARIES / f"{name}.parquet"
            if not path.exists():
                table = pa.table({"code": np.arange(1, sizes[name], dtype=np.int32), "value": values})
                with atomic_path(path) as temporary:
                    pq.write_table(table, temporary, compression="zstd")
        return sizes

    def _write_chunks(self, done: dict[str, Any]) -> None:
        names = self.reader.chunks()
        bar = progress_bar(range(len(names)), "rows", self.verbose)
        bar.unit = "chunk"
        for number in bar:
            splits = done["chunks"].get(names[number])
            if splits is not None and all((self.folder / split / _part(number)).exists() for split in splits):
                self._write_newest_histories(number, names[number])
                continue
            done["chunks"][names[number]] = {k: asdict(v) for k, v in self._write_chunk(number, names[number]).items()}
            write_json(self.folder / MANIFEST, done)

    def _write_chunk(self, number: int, name: str) -> dict[str, SplitSummary]:
        """Write the part files of a chunk, one per split; return what they hold."""
        summaries: dict[str, SplitSummary] = {}
        writers: dict[str, pq.ParquetWriter] = {}
        temporary = {split: self.folder / split / f".part-{number:05d}.partial" for split in SPLITS}
        try:
            for rows in self.reader.rows(name):
                for split, table, summary in self._encode(rows):
                    if split not in writers:
                        temporary[split].parent.mkdir(exist_ok=True)
                        writers[split] = pq.ParquetWriter(temporary[split], table.schema, compression="zstd")
                        summaries[split] = SplitSummary()
                    writers[split].write_table(table, row_group_size=GROUP_ROWS)
                    summaries[split].add(summary)
        finally:
            for writer in writers.values():
                writer.close()
        for split in writers:
            os.replace(temporary[split], self.folder / split / _part(number))
        self._write_newest_histories(number, name)
        return summaries

    def _write_newest_histories(self, number: int, name: str) -> None:
        """Write those of a chunk, unless there are any."""
        path = self.folder / HISTORIES / _part(number)
        newest = None if path.exists() else self.reader.newest_histories(name)
        if newest is None:
            return
        values, offsets = _parts(newest["item_seq"].to_arrow())
        items = pa.LargeListArray.from_arrays(offsets, pa.array(_codes(self._items, values)))
        table = pa.table({SOURCE_USER: newest[SOURCE_USER].to_arrow(), "item_seq": items})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=GROUP_ROWS)

    def _encode(self, rows: Rows) -> Iterator[tuple[str, pa.Table, SplitSummary]]:
        """Yield the rows of each split with all ids as numbers."""
        reader, columns = self.reader, rows.columns
        values, offsets = _parts(rows.histories)
        items = _codes(self._items, values)
        known = np.r_[0, np.cumsum(items > 0)]
        ends = known[offsets]
        histories = _newest(items[items > 0], ends, reader.max_len)
        which = np.arange(len(columns)) if rows.which is None else rows.which
        table = self._table_of(columns, histories.take(pa.array(which)))
        unknown = (np.diff(offsets) - np.diff(ends))[which]
        lengths = np.diff(np.asarray(histories.offsets))[which]
        others = columns["split"].filter(~columns["split"].is_in(SPLITS).fill_null(False))
        if len(others):
            raise DataError(f"{reader.source}: split {others[0]!r} of a row, expected {', '.join(SPLITS)}")
        target, split_of = table["item_id"].to_numpy(), columns["split"].to_numpy()
        labels = [name for name in (reader.label, *reader.other_labels) if name in table.column_names]
        first = next((table[name].to_numpy() for name in labels if name not in reader.numeric_labels), None)
        for split in columns["split"].unique(maintain_order=True):
            in_split = split_of == split
            kept = np.flatnonzero(in_split & (target > 0))
            label = np.zeros(0) if first is None else first[kept]
            summary = SplitSummary(
                rows=int(kept.size),
                labelled=int((~np.isnan(label)).sum()),
                positives=int((label > 0).sum()),
                without_history=int((lengths[kept] == 0).sum()),
                history_items=int(lengths[kept].sum()),
                left_out=int(in_split.sum()) - int(kept.size),
                unknown_items=int(unknown[kept].sum()),
            )
            part = table.take(pa.array(kept))
            # A test split without labels. All parts of several labels, and of a later log, have the same columns.
            if reader.known_items is None and len(labels) == 1 and len(label) and np.isnan(label).all():
                part = part.drop_columns(labels)
            yield split, part, summary

    def _table_of(self, columns: pl.DataFrame, histories: pa.Array) -> pa.Table:
        """Return rows as they are written, with numbers in place of ids."""
        reader = self.reader
        data: dict[str, Any] = {
            "user_id": _codes(self._vocabulary("user_id"), columns["user_id"]),
            "item_id": _codes(self._items, columns["item_id"]),
            "item_seq": histories,
        }
        for name, kind in reader.context.items():
            column = columns[name]
            if kind == "group":
                data[name] = column.to_arrow()
            elif kind == "categorical":
                data[name] = _codes(self._vocabulary(name), column)
            else:
                data[name] = column.cast(pl.Float32).fill_null(0).to_numpy()
        for name in (reader.label, *reader.other_labels):
            if name in columns.columns:
                data[name] = columns[name].cast(pl.Float32).to_numpy()
        data |= {name: columns[name].to_arrow() for name in reader.row_sources}
        return pa.table(data).replace_schema_metadata(self._row_metadata)

    def _count_targets(self, splits: dict[str, SplitSummary]) -> int:
        """Return the number of items that are a target of training, and count the rows of other splits with none.

        Of a later log, items of the earlier one count as targets of training there.
        """
        seen = np.zeros(len(self._items) + 1, dtype=bool)
        for targets in self._targets("train"):
            seen[targets] = True
        trained = int(seen.sum())
        before = self.reader.known_items or max(self.reader.extends.get("item_id", {}).values(), default=0)
        seen[: 1 + before] = True
        for split in splits.keys() - {"train"}:
            splits[split].cold = sum(int((~seen[targets]).sum()) for targets in self._targets(split))
        return trained

    def _targets(self, split: str) -> Iterator[np.ndarray]:
        """Yield the targets of the rows of a split, part by part."""
        for path in sorted((self.folder / split).glob("part-*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(columns=["item_id"]):
                yield batch.column(0).to_numpy()


def _part(number: int) -> str:
    """Return the name of the part files of a chunk."""
    return f"part-{number:05d}.parquet"


def _build(values: pl.Series) -> Vocabulary:
    return Vocabulary.build([values.to_arrow()])


def _codes(vocabulary: Vocabulary, values: pl.Series) -> np.ndarray:
    """Return the number of each value, int32; 0 for a null and for one that is unknown."""
    return np.maximum(vocabulary.encode(values.to_arrow()), 0).astype(np.int32)


def _parts(lists: pa.Array) -> tuple[pl.Series, np.ndarray]:
    """Return the values of all lists, and the offsets of each; a null is an empty list."""
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return pl.Series("values", lists.flatten()), np.r_[0, np.cumsum(lengths)].astype(np.int64)


def _newest(values: np.ndarray, offsets: np.ndarray, max_len: int) -> pa.LargeListArray:
    """Return lists with their last ``max_len`` values."""
    lengths = np.minimum(np.diff(offsets), max_len)
    kept = np.r_[0, np.cumsum(lengths)]
    return pa.LargeListArray.from_arrays(kept, pa.array(values[ranges(offsets[1:] - lengths, lengths)]))
