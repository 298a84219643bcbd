"""What a reader of a public dataset provides, and finding a reader by its name.

A reader is one file of this package; the name of the file, with hyphens, is the name that ``fuxictr-mm prepare`` takes.

Shape letters: R rows, N history items of all rows.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fuxictr_mm.errors import ConfigError, MissingFileError, nearest

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa

    from fuxictr_mm.datasets.summary import Summary

#: Kind of a column. ``text`` is kept for ``fuxictr-mm embed encode``, ``group`` for metrics; no model reads them.
Kind = Literal["categorical", "numeric", "sequence", "text", "group"]

#: Splits that a reader may give; each becomes a folder of part files.
SPLITS = ("train", "valid", "test")

#: Modules of this package that hold no reader.
_OTHERS = (
    "reader",
    "histories",
    "negatives",
    "configuration",
    "experiments",
    "writer",
    "summary",
    "folder",
    "synthetic",
)


@dataclass(frozen=True)
class Rows:
    """Rows of one chunk, with ids as the source has them."""

    columns: pl.DataFrame  #: ``R`` rows: ``split``, ``user_id``, ``item_id``, the context columns and the labels.
    histories: pa.Array  #: Lists of item ids, oldest first.
    #: ``(R,)`` the index of each row's history, where rows share histories; by default each row has its own.
    which: np.ndarray | None = None


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of items."""

    #: Returns an iterator over ``(ids, embeddings)``: a polars Series ``(n,)`` of item ids, and an ndarray ``(n, D)``.
    chunks: Callable[[], Iterator[tuple[pl.Series, np.ndarray]]]
    scale: float | None = None  #: What stored integers are multiplied by.


class Reader(ABC):
    """Reads the files of one dataset; subclasses describe where they come from in their docstring.

    Parameters
    ----------
    source : Path
        Folder of the owner's files.
    scratch : Path
        Folder for intermediate files; it is kept until the dataset is complete.
    max_len : int
        Histories are cut to their newest ``max_len`` items.
    """

    #: The label, and further labels that are written beside it.
    label: str = "label"
    other_labels: tuple[str, ...] = ()
    #: Those of them that are numbers to predict; the others hold 0 and 1.
    numeric_labels: tuple[str, ...] = ()
    #: Whether the number of an item is a feature of it, with its own embedding.
    embed_item_id: bool = True
    #: Columns of rows that are written as they are and are not features, such as those that predictions are joined by.
    row_sources: tuple[str, ...] = ()
    #: That of them with the weights of rows.
    sample_weight: str | None = None
    #: Of a later log: items up to this number were numbered before, and weights have no parameters of the others.
    known_items: int | None = None
    #: Digests of all items of the later logs that this one continues: see ``fuxictr_mm.data.numbering``.
    earlier_items: Sequence[str] = ()
    #: Of a log that extends another: by column, the digests and sizes of the numberings that its own begin with.
    extends: Mapping[str, Mapping[str, int]] = {}
    #: Whether valid and test have users of train, so that an embedding of the user is worth training.
    evaluates_known_users: ClassVar[bool] = False
    #: Default of ``max_len``.
    history_len: ClassVar[int] = 100

    def __init__(self, source: Path, scratch: Path, max_len: int) -> None:
        self.source, self.scratch, self.max_len = source, scratch, max_len
        #: Options that it was given; a folder that was begun with others is not continued.
        self.options: dict[str, Any] = {}

    def configure(self, given: Mapping[str, Any]) -> None:
        """Set the options of ``prepare`` that only this reader has, and ``labels``.

        Raises
        ------
        ConfigError
            An option that the reader does not have.
        """
        for name in given:
            if name != "labels":
                raise ConfigError(f"--{name}: is an option only of 'fuxictr-mm prepare log'; remove it")

    @property
    def context(self) -> Mapping[str, Kind]:
        """Context columns with their kinds."""
        return {}

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return {}

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the files that are read.

        Raises
        ------
        MissingFileError
            One of them does not exist.
        """

    @abstractmethod
    def items(self) -> pl.DataFrame:
        """Return a row per item: its id ``item_id`` and the item columns, in the order in which they are numbered."""

    @abstractmethod
    def values(self, name: str) -> pl.Series:
        """Return the distinct values that a categorical context column has in training, or all users (``user_id``).

        Users are groups of metrics, not a feature, so those of every split count: rows of users that are not among them
        would be of one and the same user.
        """

    @abstractmethod
    def chunks(self) -> list[str]:
        """Return the names of the chunks that the rows are read in; a chunk that is finished is not read again."""

    @abstractmethod
    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return the rows of a chunk."""

    def numbering(self, name: str) -> pl.Series | None:
        """Return the values of a column, or all users, in the order of numbers that they have already; None if new."""
        return None

    def newest_histories(self, chunk: str) -> pl.DataFrame | None:
        """Return ``source_user`` and ``item_seq`` of the users of a chunk, for rows after all of these; None: not kept.

        The lists hold item ids as the source has them.
        """
        return None

    def embeddings(self) -> dict[str, Embeddings]:
        """Return the embeddings of the items by column name."""
        return {}

    def experiments(self, summary: Summary) -> dict[str, dict[str, Any]]:
        """Return the models of the first experiments and their settings; one that is None is not written."""
        from fuxictr_mm.datasets.experiments import first_experiments

        group = next(iter(names_of(self.context, ("group",))), "user_id")
        labels = {name: name in self.numeric_labels for name in (self.label, *self.other_labels)}
        return first_experiments(
            summary, self.max_len, self.embeds_users(summary), group, labels, self.samples_negatives
        )

    def embeds_users(self, summary: Summary) -> bool:
        """Return whether the number of a user is a feature with its own embedding."""
        from fuxictr_mm.datasets.experiments import users_recur

        return self.evaluates_known_users and users_recur(summary)

    @property
    def samples_negatives(self) -> bool:
        """Whether the rows of label 0 are sampled, not logged."""
        return bool(self.options.get("negatives"))

    def columns_to_compare(self, summary: Summary) -> list[str]:
        """Return the columns of the items whose similarity of target and history is a feature."""
        from fuxictr_mm.datasets.experiments import columns_to_compare

        return columns_to_compare(summary, self.item_columns, self.samples_negatives)

    def advice(self, summary: Summary) -> list[str]:
        """Return lines on what in the experiments follows from what was found."""
        from fuxictr_mm.datasets.experiments import explain

        compared = self.columns_to_compare(summary)
        return explain(summary, self.embeds_users(summary), compared, self.samples_negatives)

    def written_label(self, name: str) -> str:
        """Return the name that a label of ``--labels`` is written with."""
        return name

    def facts(self) -> dict[str, Any]:
        """Return what is to be kept of the columns in the manifest."""
        return {}

    def notes(self) -> dict[str, Any]:
        """Return what else is to be kept in the manifest, for readers of the folder."""
        return {}

    def find(self, *names: str) -> list[Path]:
        """Return files of the source by name or pattern, sorted; hidden ones, such as copies by macOS, do not count.

        Raises
        ------
        MissingFileError
            A name that no file has.
        """
        found = []
        for name in names:
            paths = sorted(path for path in self.source.rglob(name) if not path.name.startswith("."))
            if not paths:
                present = sorted(p.name for p in self.source.rglob("*") if p.is_file())
                listing = ", ".join(present[:8]) or "no file"
                raise MissingFileError(
                    f"{self.source}: no file {name}{nearest(name, present)} (it holds: {listing}); --source "
                    "is the folder of the owner's unpacked files"
                )
            found += paths
        return found

    def find_one(self, name: str) -> Path:
        """Return the only file of a name or pattern.

        Raises
        ------
        MissingFileError, ConfigError
            The file does not exist, or there are several, as in a folder with two datasets.
        """
        path, *others = self.find(name)
        if others:
            raise self.holds_two(path, others[0])
        return path

    def holds_two(self, first: Path, second: Path) -> ConfigError:
        """Return the error of two files or folders of the source of which there is one in a dataset."""
        both = " and ".join(str(path.relative_to(self.source)) for path in (first, second))
        return ConfigError(f"--source {self.source}: holds {both}; give the folder of one dataset")


def list_readers() -> dict[str, str]:
    """Return the first line of every reader's docstring by name; no reader is imported."""
    lines = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in _OTHERS or path.stem.startswith("_"):
            continue
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines[path.stem.replace("_", "-")] = doc.splitlines()[0].rstrip(".")
    return lines


def load_reader(name: str) -> type[Reader]:
    """Return a reader by its name, or of ``package.module:Class``.

    Raises
    ------
    ConfigError
        There is no such reader.
    """
    if ":" in name:
        return _from_module(name)
    known = list_readers()
    if name not in known:
        raise ConfigError(
            f"'{name}': no reader of this name{nearest(name, known)} (there are: {', '.join(known)}; or "
            "give your own as package.module:Class)"
        )
    module = importlib.import_module(f"fuxictr_mm.datasets.{name.replace('-', '_')}")
    return next(
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and issubclass(value, Reader)
    )


def _from_module(target: str) -> type[Reader]:
    from fuxictr_mm.registry import import_module

    module_name, _, class_name = target.partition(":")
    found = getattr(import_module(module_name, f"reader '{target}'"), class_name, None)
    if not inspect.isclass(found) or not issubclass(found, Reader):
        raise ConfigError(f"'{target}': is not a subclass of fuxictr_mm.datasets.reader.Reader")
    return found


def names_of(columns: Mapping[str, Kind], kinds: Sequence[Kind]) -> list[str]:
    """Return the names of the columns of some kinds, in their order."""
    return [name for name, kind in columns.items() if kind in kinds]
