"""The preset `tiny`, written once, its world, and how a column of it is read."""

import hashlib

import pyarrow.parquet as pq
import pytest

from fuxictr_mm.data.synthetic.spec import PRESETS
from fuxictr_mm.data.synthetic.world import World
from fuxictr_mm.data.synthetic.writer import generate


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("synthetic") / "tiny"
    generate(PRESETS["tiny"], target, progress=False)
    return target


@pytest.fixture(scope="session")
def world():
    return World.build(PRESETS["tiny"])


@pytest.fixture(scope="session")
def hashes():
    return lambda folder: {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="session")
def column():
    def read(path, name):
        values = pq.read_table(path, columns=[name])[name].combine_chunks()
        if hasattr(values.type, "list_size"):
            return values.flatten().to_numpy().reshape(len(values), values.type.list_size)
        return values.to_numpy(zero_copy_only=False)

    return read
