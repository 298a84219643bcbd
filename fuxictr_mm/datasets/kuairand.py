"""KuaiRand Pure, 1K and 27K: short videos with twelve kinds of feedback.

Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos, CIKM 2022,
https://arxiv.org/abs/2208.08696

The files are those of https://zenodo.org/records/10439422, unpacked: ``log_standard_*.csv``, ``user_features_*.csv``
and ``video_features_basic_*.csv``. The label is ``is_click``; seven further kinds of feedback are written as well. A
history holds the videos that the user clicked at earlier times. The splits follow the days: the last days that hold at
least a tenth of the rows are test, those before them valid. The logs of random exposure and the statistics of videos,
which count what happens after a row's time as well, are not read. There are no embeddings; captions
(``kuairand_video_captions.csv``, https://zenodo.org/records/18159199) become ``item_title`` if the file exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv

from fuxictr_mm.datasets.histories import histories_before, partition_by_user
from fuxictr_mm.datasets.reader import Kind, Reader, Rows
from fuxictr_mm.errors import DataError

#: Rows of a file of users on average.
CHUNK_ROWS = 500_000

#: Bytes of a log read at a time.
BLOCK_BYTES = 1 << 26

FEEDBACK = (*("is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter"),)
VIDEO_COLUMNS = ("author_id", "video_type", "upload_type", "music_type")
USER_COLUMNS = (
    *("user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author", "follow_user_num_range"),
    *("fans_user_num_range", "friend_user_num_range", "register_days_range"),
    *(f"onehot_feat{number}" for number in range(18)),
)


class KuaiRand(Reader):
    """KuaiRand Pure, 1K and 27K: short videos with twelve kinds of feedback."""

    label = "is_click"
    other_labels = FEEDBACK
    evaluates_known_users = True

    @property
    def context(self) -> Mapping[str, Kind]:
        """Context columns with their kinds."""
        return dict.fromkeys(("tab", *USER_COLUMNS), "categorical")

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return {**dict.fromkeys(VIDEO_COLUMNS, "categorical"), "tag": "sequence", "item_title": "text"}

    @cached_property
    def _logs(self) -> list[Path]:
        return self.find("log_standard_*.csv")

    def files(self) -> list[Path]:
        """Return the standard logs, the features of users and videos, and the captions."""
        captions = sorted(self.source.rglob("kuairand_video_captions.csv"))
        # Users of Pure, 1K and 27K have numbers of their own: logs of two of them must not be mixed.
        features = [self.find_one(name) for name in ("user_features_*.csv", "video_features_basic_*.csv")]
        return [*self._logs, *features, *captions]

    def items(self) -> pl.DataFrame:
        """Return the videos in the order of their file."""
        path = self.find_one("video_features_basic_*.csv")
        types = {"video_id": pl.Int64, **dict.fromkeys((*VIDEO_COLUMNS, "tag"), pl.String)}
        videos = pl.read_csv(path, columns=list(types), schema_overrides=types)
        frame = videos.select(
            pl.col("video_id").alias("item_id"),
            *VIDEO_COLUMNS,
            pl.col("tag").fill_null("").str.split(",").list.eval(pl.element().filter(pl.element() != "")),
        )
        captions = next(iter(sorted(self.source.rglob("kuairand_video_captions.csv"))), None)
        if captions is None:
            return frame.with_columns(pl.lit("").alias("item_title"))
        texts = pl.read_csv(captions, columns=["final_video_id", "caption"], schema_overrides={"caption": pl.String})
        texts = texts.rename({"final_video_id": "item_id", "caption": "item_title"}).unique("item_id", keep="first")
        return frame.join(texts, on="item_id", how="left", maintain_order="left")

    @cached_property
    def _users(self) -> pl.DataFrame:
        types = {"user_id": pl.Int64, **dict.fromkeys(USER_COLUMNS, pl.String)}
        path = self.find_one("user_features_*.csv")
        return pl.read_csv(path, columns=list(types), schema_overrides=types)

    @cached_property
    def _days(self) -> tuple[int, int]:
        """Return the first day of valid and the first day of test, as ``20220421``."""
        days = pl.concat([pl.scan_csv(path).select("date") for path in self._logs]).group_by("date").len()
        counts = days.collect(engine="streaming").sort("date")
        after = counts["len"].reverse().cum_sum().reverse().to_numpy() / counts["len"].sum()
        dates = counts["date"].to_numpy()
        # The latest day from which on at least a tenth, or a fifth, of the rows remain.
        return int(dates[np.flatnonzero(after >= 0.2)[-1]]), int(dates[np.flatnonzero(after >= 0.1)[-1]])

    def values(self, name: str) -> pl.Series:
        """Return the values of the users' file, or the tabs of the days of training."""
        if name != "tab":
            return self._users[name]
        logs = [pl.scan_csv(path, schema_overrides={"tab": pl.String}).select("tab", "date") for path in self._logs]
        tabs = pl.concat(logs).filter(pl.col("date") < self._days[0]).select("tab")
        return tabs.unique().collect(engine="streaming")["tab"].sort()

    def chunks(self) -> list[str]:
        """Return the files of users that the logs are divided into."""
        rows = sum(pl.scan_csv(path).select(pl.len()).collect(engine="streaming").item() for path in self._logs)
        return [f"users {number}" for number in range(max(1, round(rows / CHUNK_ROWS)))]

    @cached_property
    def _buckets(self) -> list[Path]:
        return partition_by_user(self._events(), "user_id", self.scratch / "users", len(self.chunks()))

    def _events(self) -> Iterator[pl.DataFrame]:
        labels = (self.label, *self.other_labels)
        numbers = ("user_id", "video_id", "date", "time_ms")
        types = {**dict.fromkeys(numbers, pa.int64()), "tab": pa.string(), **dict.fromkeys(labels, pa.int8())}
        convert = csv.ConvertOptions(column_types=types, include_columns=list(types))
        for path in self._logs:
            try:
                for batch in csv.open_csv(path, csv.ReadOptions(block_size=BLOCK_BYTES), convert_options=convert):
                    yield pl.DataFrame(batch)
            except pa.ArrowException as error:
                raise DataError(f"{path}: cannot be read ({error})") from None

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return the rows of a file of users, with what each had clicked before."""
        valid_from, test_from = self._days
        log = pl.read_parquet(self._buckets[int(chunk.split()[1])]).sort("user_id", "time_ms", maintain_order=True)
        clicked = (log[self.label] > 0).to_numpy()
        histories = histories_before(
            log["user_id"].to_numpy(), log["time_ms"].to_numpy(), log["video_id"].to_arrow(), clicked, self.max_len
        )
        split = (
            pl.when(pl.col("date") >= test_from)
            .then(pl.lit("test"))
            .when(pl.col("date") >= valid_from)
            .then(pl.lit("valid"))
            .otherwise(pl.lit("train"))
        )
        columns = (
            log.with_columns(split.alias("split"))
            .join(self._users, on="user_id", how="left", maintain_order="left")
            .rename({"video_id": "item_id"})
            .drop("date", "time_ms")
        )
        yield Rows(columns, histories)
