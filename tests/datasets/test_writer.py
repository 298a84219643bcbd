"""Writing what a reader gives: what is refused, and another start."""

import errno

import pytest

from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.errors import ConfigError, DataError, UserError
from tests.errors import raises_naming


def test_another_source_or_option_is_refused(microlens, prepare):
    prepare("microlens", microlens)
    with pytest.raises(ConfigError, match="max_len"):
        prepare("microlens", microlens, max_len=7)
    path = microlens / "MicroLens-100k_likes_and_views.txt"
    path.write_text(path.read_text() + "40\t1\t1\n")
    with pytest.raises(ConfigError, match="files"):
        prepare("microlens", microlens)


def test_a_folder_of_others_is_left_alone(microlens, prepare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        prepare("microlens", microlens)


def test_an_item_twice_is_refused(kuairand, prepare):
    path = next(kuairand.rglob("video_features_basic_pure.csv"))
    path.write_text(path.read_text() + "3,1,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,98,4,\n")
    with pytest.raises(DataError, match="3 occurs"):
        prepare("kuairand", kuairand)


def test_events_of_another_source_are_not_used_again(kuairand, prepare, tmp_path):
    stale = tmp_path / "out" / ".scratch" / "users"
    stale.mkdir(parents=True)
    (stale / "bucket-0000.parquet").write_bytes(b"of another source")
    _, summary, _ = prepare("kuairand", kuairand)
    assert sum(split.rows for split in summary.splits.values()) == 460


def test_an_item_without_an_id_is_refused(mind, prepare):
    path = mind / "MINDsmall_train" / "news.tsv"
    path.write_text("\tsports\tgolf\tNone\tText\thttps://x\t[]\t[]\n" + path.read_text())
    with raises_naming(DataError, str(mind), "item 0"):
        prepare("mind", mind)


def test_a_full_disk_is_said_and_another_start_goes_on(microlens, prepare, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "_write_chunk", full)
        with raises_naming(UserError, "No space left"):
            prepare("microlens", microlens)
    assert prepare("microlens", microlens)[1].splits["train"].rows > 0
