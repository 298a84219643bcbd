"""The files of a log of one's own: which there are, and how each is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.missing import words_of_no
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.positives import Positives
from fuxictr_mm.datasets.own.roles import DEFAULTS
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.encoding.text_files import CSV, Encoding, form_of, unpacked_name
from fuxictr_mm.errors import ConfigError, MissingFileError, nearest
from fuxictr_mm_serving.prepared import ROW_SOURCES

#: Names that the written files have.
WRITTEN = ("user_id", "item_id", "item_seq", "source_id", *ROW_SOURCES, "split", "label")


def find_files(source: Path, option: str, pattern: str | None) -> list[Path]:
    """Return the files of an option: of a name, a pattern or a folder within the source, or by default ``OPTION.*``.

    By default there may be none. A folder stands for all files below it, such as those of Hive partitions. Files of
    several forms are refused: they would be the same rows twice.
    """
    name = pattern or f"{option}.*"
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"--{option} {name}: expected a name within --source {source}, without that folder")
    paths = sorted({file for path in source.glob(name) for file in _files_of(path)})
    if not paths and pattern is not None:
        present = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        listing = ", ".join(present[:8]) or "no file"
        within = "; names are within the folder of --source" if next(iter(Path().glob(name)), None) else ""
        raise MissingFileError(
            f"{source}: no file {name}{nearest(name, present)} for --{option} (it holds: {listing}){within}"
        )
    seen: dict[Path, Path] = {}
    for path in paths:
        # Of one name, a file and its archive are the same rows twice; other parts may be packed in any way.
        other = seen.setdefault(unpacked_name(path), path)
        other = paths[0] if other == path and form_of(path) != form_of(paths[0]) else other
        if other != path:
            raise ConfigError(f"--{option}: {source} holds {other.name} and {path.name}; name one of them")
    return paths


def _files_of(path: Path) -> list[Path]:
    """Return a file, or the files below a folder; names such as ``_SUCCESS`` and ``.part-0.crc`` are no data."""
    files = path.rglob("*") if path.is_dir() else [path]
    hidden = (file for file in files if all(name[0] not in "._" for name in file.relative_to(path.parent).parts))
    return [file for file in hidden if file.is_file()]


@dataclass(frozen=True)
class LogFiles:
    """The files of a log in a folder.

    Those of a later log are read with the columns and types of the ``base``; those that are not ``given`` may be
    missing.
    """

    asked: LogOptions
    source: Path
    scratch: Path  #: Folder for files as Parquet.
    base: Base | None = None
    given: Mapping[str, Any] = field(default_factory=dict)  #: Files that are named for a later log, by option.
    opened: Table | None = None  #: The table of interactions, where it was read before the columns of roles were known.

    @property
    def encoding(self) -> Encoding:
        """How files of text are encoded."""
        return Encoding(self.asked.encoding, "--encoding")

    def table(self, option: str, pattern: str | None, ids: Mapping[str, str]) -> Table | None:
        """Return the table of an option, whose columns of ids are given by role; there may be none."""
        paths = self._find(option, pattern, is_given=option == "interactions" or option in self.given)
        if not paths:
            return None
        history = () if self.asked.history is None else (self.asked.history,)
        group = {} if self.asked.group is None else {self.asked.group: "categorical"}
        texts = (*ids.values(), *history, *self.asked.match_on)
        types = {**self.asked.types, **group}
        if option == "interactions" and self.opened is not None:
            table = self.opened.changed(
                texts=texts, types=types, date_order=self.asked.date_order, numeric=self._numeric, strict=self._strict()
            )
        else:
            table = self._open(option, paths, self.scratch, option, texts, types)
        for role, column in ids.items():
            table.check(column, f"--roles {role}={column}")
        return table if self.base is None else self.base.adapt(table)

    def positives(self, label: str, log: Table) -> Positives | None:
        """Return the positive rows of a label in their file; there may be none for a later log, which may have it."""
        asked, what = self.asked, f"--positives {label}={self.asked.positives[label]}"
        file, _, time = asked.positives[label].partition(":")
        paths = self._find("positives", file, is_given=label in self.given.get("positives", {}))
        if not paths:
            return None
        if label in log.schema or label in set(WRITTEN) - {"label"}:
            raise ConfigError(f"{what}: {log.paths[0]} has the column '{label}' as well; name the label otherwise")
        on = asked.match_on or (asked.user, asked.item)
        table = self._open("positives", paths, self.scratch / f"positives-{label}", label, on, strict=(time,))
        if not time and asked.time in table.schema and (not asked.match_on or asked.match_within is not None):
            time = asked.time
        if not time and asked.match_within is not None:
            raise ConfigError(
                f"--match_within: {paths[0]} has no column '{asked.time}' (it has: {', '.join(table.schema)}); "
                f"name that of its times: --positives {label}={file}:TIME"
            )
        positives = Positives(label, table, on, time or None, asked.match_within, missing=self.missing)
        positives.check()
        return positives

    def vectors(self) -> list[tuple[Path, Path | None]]:
        """Return the files of embeddings, each of an array with that of the ids of its rows (``text.npy:ids.csv``)."""
        pairs, is_given = list[tuple[Path, Path | None]](), "embeddings" in self.given
        for name in self.asked.embeddings:
            array, _, ids = name.partition(".npy:")
            paths = self._find("embeddings", f"{array}.npy" if ids else name, is_given)
            if not ids:
                pairs += [(path, None) for path in paths]
            elif paths:
                pairs += [(paths[0], of_rows) for of_rows in self._find("embeddings", ids, is_given)[:1]]
        return pairs

    def _find(self, option: str, pattern: str | None, is_given: bool) -> list[Path]:
        try:
            return find_files(self.source, option, pattern)
        except MissingFileError:
            if self.base is None or is_given:
                raise
            return []

    def _open(
        self, option: str, paths: Sequence[Path], scratch: Path, header: str, texts: Sequence[str],
        types: Mapping[str, str] | None = None, strict: Collection[str] = (),
    ) -> Table:  # fmt: skip
        """Return the table of some files; ``header`` is the key of ``--header`` for the names of their columns."""
        names = self.asked.header.get(header, ())
        # Files of a later log may have names of their own, as those of Parquet do.
        names = names if self.base is None or any(form_of(path) in CSV for path in paths) else ()
        return Table(
            paths, scratch, option, texts, types or {}, encoding=self.encoding, header=names,
            date_order=self.asked.date_order, numeric=self._numeric, strict=self._strict(*strict),
        )  # fmt: skip

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """Return the texts that stand for no user, by the column of users."""
        return {self.asked.user: words_of_no("user") if self.base is None else self.base.words_of_no("user")}

    @property
    def _numeric(self) -> list[str]:
        return [name for name, kind in self.asked.types.items() if kind == "numeric"]

    def _strict(self, *others: str) -> set[str]:
        """Return the columns that have a role or are labels."""
        asked = self.asked
        named = [word.partition("=")[0] for word in (*asked.labels, *asked.impressions)]
        roles = [column for column in (asked.time, asked.group, asked.weight) if column is not None]
        return {*roles, *asked.labels, *named, *DEFAULTS, *others}
