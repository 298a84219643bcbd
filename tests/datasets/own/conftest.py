"""Folders of a log, one like another."""

import pytest

from fuxictr_mm.datasets import log as log_module
from fuxictr_mm.datasets.own import buckets
from fuxictr_mm.datasets.own.extended import ExtendedLog
from fuxictr_mm.datasets.own.later import LaterLog
from fuxictr_mm.datasets.reader import load_reader
from fuxictr_mm.datasets.writer import Writer
from tests.datasets.shop import ROLES


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Prepare a source by itself or like another folder, in several chunks."""
    monkeypatch.setattr(buckets, "CHUNK_ROWS", 120)
    monkeypatch.setattr(log_module, "PART_ROWS", 16)

    def write(source, name, like=None, max_len=5, overwrite=False, **options):
        out = tmp_path / "prepared" / name
        later = ExtendedLog if options.get("extend") else LaterLog
        reader = (load_reader("log") if like is None else later)(source, out / ".scratch", max_len)
        own = {"roles": ROLES, "labels": ["click"]} if like is None else {"like": like}
        given = {"interactions": "interactions*", **own, **options}
        reader.configure({name: value for name, value in given.items() if value is not None})
        Writer(reader, "log", out, verbose=0).write(overwrite)
        return out

    return write
