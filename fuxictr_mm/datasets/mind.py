"""MIND small and large: news impressions with titles and abstracts.

Wu et al., MIND: A Large-scale Dataset for News Recommendation, ACL 2020, https://aclanthology.org/2020.acl-main.331

The files are those of https://msnews.github.io, unpacked: folders whose names end in ``_train``, ``_dev`` and
``_test``, each with ``behaviors.tsv`` (impression, user, time, history, impressions such as ``N129416-0 N26703-1``) and
``news.tsv`` (news, category, subcategory, title, abstract, ...). A row of ours is one news of one impression.

Where there is a ``_test`` folder (MIND-large; it has no labels), train, dev and test are the splits. MIND-small has
none: then the last day of ``_train`` becomes valid and ``_dev`` becomes test. Metrics are by impression. Titles and
abstracts are kept for ``fuxictr-mm embed encode``; the embeddings of Wikidata entities are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.datasets.reader import Kind, Reader, Rows
from fuxictr_mm.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from fuxictr_mm.datasets.summary import Summary

#: Impressions of a chunk; MIND has 37 news each on average.
CHUNK_IMPRESSIONS = 50_000

BEHAVIORS = ["impression", "user_id", "time", "history", "shown"]
NEWS = ["item_id", "category", "subcategory", "item_title", "abstract", "url", "title_entities", "abstract_entities"]
TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"


class Mind(Reader):
    """MIND small and large: news impressions with titles and abstracts."""

    history_len = 50

    @property
    def context(self) -> Mapping[str, Kind]:
        """Context columns with their kinds."""
        return {"hour": "categorical", "impression": "group"}

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return {"category": "categorical", "subcategory": "categorical", "item_title": "text", "abstract": "text"}

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """Return the folder of each of ``train``, ``dev`` and ``test`` that is there."""
        folders: dict[str, Path] = {}
        for path in self.find("behaviors.tsv"):
            kind = next((k for k in ("train", "dev", "test") if path.parent.name.lower().endswith(k)), None)
            if kind in folders:
                raise self.holds_two(folders[kind], path.parent)
            if kind is not None:
                folders[kind] = path.parent
        if not {"train", "dev"} <= folders.keys():
            raise MissingFileError(
                f"{self.source}: expected folders ending in _train and _dev with behaviors.tsv and news.tsv (found: "
                f"{', '.join(path.name for path in folders.values()) or 'none'})"
            )
        return {kind: folders[kind] for kind in ("train", "dev", "test") if kind in folders}

    def experiments(self, summary: Summary) -> dict[str, dict[str, Any]]:
        """Return the common experiments with the metrics of MIND, which are means over impressions."""
        metrics = ["AUC", "gAUC_mean", "MRR", "NDCG@5", "NDCG@10", "logloss"]
        return {name: {**settings, "metrics": metrics} for name, settings in super().experiments(summary).items()}

    def files(self) -> list[Path]:
        """Return behaviors and news of each folder."""
        return [self._folders[k] / name for k in self._folders for name in ("behaviors.tsv", "news.tsv")]

    def items(self) -> pl.DataFrame:
        """Return the news of all folders, each once, in the order of the files."""
        frames = [_read_tsv(folder / "news.tsv", NEWS) for folder in self._folders.values()]
        news = pl.concat(frames).unique("item_id", keep="first", maintain_order=True)
        return news.select("item_id", *self.item_columns)

    @cached_property
    def _behaviors(self) -> dict[str, pl.DataFrame]:
        return {kind: _read_behaviors(folder / "behaviors.tsv") for kind, folder in self._folders.items()}

    @cached_property
    def _last_day(self) -> object:
        """Return the last day of ``_train``, which is valid without ``_test``."""
        return self._behaviors["train"]["time"].max().date()  # type: ignore[union-attr]

    def _splits(self, kind: str) -> pl.Expr:
        if "test" in self._folders:
            return pl.lit({"train": "train", "dev": "valid", "test": "test"}[kind])
        if kind == "dev":
            return pl.lit("test")
        return pl.when(pl.col("time").dt.date() == self._last_day).then(pl.lit("valid")).otherwise(pl.lit("train"))

    def values(self, name: str) -> pl.Series:
        """Return the users of all folders, or the hours of the day in training."""
        if name == "user_id":
            return pl.concat([frame["user_id"] for frame in self._behaviors.values()])
        train = self._behaviors["train"].filter(self._splits("train") == "train")
        return train["time"].dt.hour().cast(pl.String)

    def chunks(self) -> list[str]:
        """Return ranges of impressions of each folder."""
        return [
            f"{kind} {first}"
            for kind, frame in self._behaviors.items()
            for first in range(0, len(frame), CHUNK_IMPRESSIONS)
        ]

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return a row for every news that was shown in a range of impressions."""
        kind, first = chunk.split()
        frame = self._behaviors[kind][int(first) : int(first) + CHUNK_IMPRESSIONS]
        histories = frame.select(pl.col("history").str.split(" ").list.eval(pl.element().filter(pl.element() != "")))
        shown = (
            frame.with_row_index("which")
            .with_columns(self._splits(kind).alias("split"), pl.col("time").dt.hour().cast(pl.String).alias("hour"))
            .select("which", "split", "user_id", "hour", "impression", pl.col("shown").str.split(" "))
            .explode("shown", **EMPTY_AS_NULL)
            .filter(pl.col("shown") != "")  # of two spaces, or of an impression of nothing
            .with_columns(pl.col("shown").str.extract_groups(r"^(?<item_id>.+?)(?:-(?<label>[01]))?$").alias("parts"))
            .unnest("parts")
            .with_columns(pl.col("label").cast(pl.Float32))
        )
        wrong = shown.filter(pl.col("label").is_null())
        if len(wrong) and (kind != "test" or shown["label"].count()):
            raise DataError(
                f"{self._folders[kind] / 'behaviors.tsv'}: row {int(first) + wrong['which'][0]}: impressions hold "
                f"{wrong['shown'][0]!r}, expected a news and its label, such as N129416-0; correct or drop the row"
            )
        yield Rows(shown.drop("which", "shown"), histories.to_series().to_arrow(), shown["which"].to_numpy())


def _read_tsv(path: Path, names: list[str]) -> pl.DataFrame:
    """Read a file of tabs without header, all columns as text; quotes are ordinary characters."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; unpack the owner's archive again")
    try:
        return pl.read_csv(
            path,
            has_header=False,
            separator="\t",
            quote_char=None,
            infer_schema=False,
            schema=dict.fromkeys(names, pl.String),
            truncate_ragged_lines=True,
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read as a table of {len(names)} columns ({error})") from None


def _read_behaviors(path: Path) -> pl.DataFrame:
    frame = _read_tsv(path, BEHAVIORS)
    time = frame["time"].str.to_datetime(TIME_FORMAT, strict=False)
    if time.null_count():
        row = int(time.is_null().arg_true()[0])
        raise DataError(
            f"{path}: time, row {row}: {frame['time'][row]!r}, expected a time such as 11/15/2019 10:22:32 AM"
        )
    return frame.with_columns(time.alias("time"), pl.col("history").fill_null(""))
