"""Batch scoring: the numbers of prediction.py, whatever the pieces; resumed after a kill."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from multiprocessing.context import SpawnProcess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm_serving import Export, ServingError, parquet
from fuxictr_mm_serving import scoring as module
from fuxictr_mm_serving.manifest import FORMATS
from fuxictr_mm_serving.parquet import read_part, split
from fuxictr_mm_serving.scoring import score_file
from tests.arrow import write_partitions
from tests.errors import exits_naming, raises_naming
from tests.paths import ROOT
from tests.serving.rows import write
from tests.serving.server import ROWS


@pytest.fixture(scope="session")
def expected(weights_of, exported):
    experiment, weights = weights_of("DIN_MM_tiny")
    return experiment.predict(ROWS, weights=weights)


@pytest.fixture
def pieces(tmp_path):
    """Write the rows in two files of row groups of 300 rows."""
    table = pq.read_table(ROWS)
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(table.slice(0, 1000), folder / "part-2.parquet", row_group_size=300)
    pq.write_table(table.slice(1000), folder / "part-10.parquet", row_group_size=300)
    return folder


def scores(path):
    return pq.read_table(path)["score"].to_numpy()


@pytest.mark.parametrize("processes", [1, 2])
def test_scores_are_those_of_prediction(exported, expected, pieces, tmp_path, processes):
    counts = []

    def progress(*numbers):
        counts.append(numbers)

    count = score_file(exported, pieces, tmp_path / "out", processes=processes, part_rows=500, progress=progress)
    assert count == 3000
    assert counts[-1] == (3000, 3000, 0)
    assert len(counts) == 6
    np.testing.assert_allclose(scores(tmp_path / "out"), expected, atol=1e-5, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows"]


def test_a_stopped_run_is_resumed(exported, expected, pieces, tmp_path, monkeypatch):
    earlier = []

    def stop(done, total, already):
        earlier.append(already)
        if done >= 1200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(exported, pieces, tmp_path / "out", part_rows=500, progress=stop)
    assert not (tmp_path / "out").exists()
    scored = []
    score_part = module._score_part
    monkeypatch.setattr(module, "_score_part", lambda *a: scored.append(score_part(*a)) or scored[-1])
    progress = lambda done, total, already: earlier.append(already)  # noqa: E731
    assert score_file(exported, pieces, tmp_path / "out", part_rows=500, progress=progress) == 3000
    assert 0 < sum(scored) < 3000 - 600
    assert earlier[0] == 0
    assert earlier[-1] == 3000 - sum(scored)
    np.testing.assert_allclose(scores(tmp_path / "out"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_of_one_row_group_is_scored_in_parts(exported, expected, tmp_path, processes):
    pq.write_table(pq.read_table(ROWS), tmp_path / "rows.parquet")
    assert pq.read_metadata(tmp_path / "rows.parquet").num_row_groups == 1

    def stop(done, *_):
        if done >= 1000:
            raise KeyboardInterrupt

    options = {"processes": processes, "part_rows": 700}
    with pytest.raises(KeyboardInterrupt):
        score_file(exported, tmp_path / "rows.parquet", tmp_path / "out", progress=stop, **options)
    counts = []
    progress = lambda *numbers: counts.append(numbers)  # noqa: E731
    score_file(exported, tmp_path / "rows.parquet", tmp_path / "out", progress=progress, **options)
    assert 0 < counts[0][2] < counts[-1][0] == 3000
    np.testing.assert_allclose(scores(tmp_path / "out"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("part_rows", [1, 7, 30, 64, 100, 1000])
def test_parts_hold_each_row_once(tmp_path, part_rows):
    writer = pq.ParquetWriter(tmp_path / "rows.parquet", pa.schema([("row", pa.int64())]))
    first = 0
    for rows in (0, 5, 40, 0, 3, 3, 64, 65, 90, 2, 0):
        writer.write_table(pa.table({"row": np.arange(first, first + rows)}))
        first += rows
    writer.close()
    found = []
    for part in split(tmp_path / "rows.parquet", part_rows):
        rows = [row for columns in read_part(part, ["row"], batch_rows=16) for row in columns["row"]]
        assert (rows[0], len(rows)) == (part.first, part.rows)
        assert len(rows) <= max(2 * part_rows, 90 / parquet.GROUP_PARTS + 1)
        found += rows
    assert found == list(range(first))


def test_only_parts_that_are_of_use_are_kept(exported, pieces, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    broken = shutil.copytree(exported, tmp_path / "broken")
    (broken / "known.npy").write_bytes(b"")
    for folder, rows, named in (
        (broken, pieces, "known.npy"),
        (exported, write(tmp_path, item_id=[*range(1, 20), 99999]), "99999"),
    ):
        with raises_naming(ServingError, named):
            score_file(folder, rows, tmp_path / "out", part_rows=15)
        assert not (tmp_path / ".out.parts").exists()
    shutil.copy(exported / "known.npy", broken)
    with pytest.raises(KeyboardInterrupt):
        score_file(broken, pieces, tmp_path / "out", part_rows=300, progress=stop)
    (broken / "known.npy").write_bytes(b"")
    with raises_naming(ServingError, "known.npy"):
        score_file(broken, pieces, tmp_path / "out", part_rows=300)
    assert len([*(tmp_path / ".out.parts").glob("*.npy")]) == 1  # of hours perhaps, and the export may be copied again


def test_a_process_that_cannot_be_started_is_one_line(exported, pieces, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(SpawnProcess, "start", refuse)
    with raises_naming(ServingError, "process", os.strerror(errno.EAGAIN)):
        score_file(exported, pieces, tmp_path / "out", processes=2, part_rows=300)


def test_two_runs_do_not_write_one_file(exported, pieces, tmp_path):
    refused = []

    def again(*_):
        with raises_naming(ServingError, tmp_path / "out"):
            score_file(exported, pieces, tmp_path / "out", part_rows=500)
        refused.append(True)

    score_file(exported, pieces, tmp_path / "out", part_rows=2000, progress=again)
    assert refused


def test_parts_of_other_rows_are_not_used(exported, expected, pieces, tmp_path):
    def stop(*numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_file(exported, pieces, tmp_path / "out", part_rows=500, progress=stop)
    shutil.copy(pieces / "part-10.parquet", pieces / "part-2.parquet")
    score_file(exported, pieces, tmp_path / "out", part_rows=500)
    np.testing.assert_allclose(scores(tmp_path / "out")[:2000], expected[1000:], atol=1e-5, rtol=0)


def test_hive_partitions_are_read_in_the_order_of_their_files(exported, weights_of, tmp_path):
    table = pq.read_table(ROWS).slice(0, 200)
    write_partitions(table, "likes_level", tmp_path / "rows")
    (tmp_path / "rows" / "_SUCCESS").touch()
    assert score_file(exported, tmp_path / "rows", tmp_path / "out") == 200
    experiment, weights = weights_of("DIN_MM_tiny")
    found = experiment.predict(tmp_path / "rows", weights=weights)
    np.testing.assert_allclose(scores(tmp_path / "out"), found, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_killed_and_resumed(exported, expected, pieces, tmp_path):
    for _ in range(4):
        shutil.copy(pieces / "part-10.parquet", pieces / f"part-{11 + _}.parquet")
    code = (
        "import sys, time; from fuxictr_mm_serving.scoring import score_file;"
        "score_file(*sys.argv[1:4], processes=2, part_rows=300, progress=lambda n, *_: (print(n, flush=True), "
        "time.sleep(0.2)))"
    )
    arguments = [sys.executable, "-c", code, str(exported), str(pieces), str(tmp_path / "out")]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        assert process.stderr.read() == b""  # neither its processes nor what they share is left behind
    assert not (tmp_path / "out").exists()
    assert score_file(exported, pieces, tmp_path / "out", part_rows=300) == 11000
    np.testing.assert_allclose(scores(tmp_path / "out")[:3000], expected, atol=1e-5, rtol=0)


def test_a_process_that_is_killed(exported, expected, pieces, tmp_path):
    def kill(*_):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    with raises_naming(ServingError, "processes", "SIGKILL"):
        score_file(exported, pieces, tmp_path / "out", processes=2, part_rows=300, progress=kill)
    parts = sorted((tmp_path / ".out.parts").glob("*.npy"))
    assert parts
    parts[0].write_bytes(b"")  # as after a power failure
    assert score_file(exported, pieces, tmp_path / "out", part_rows=300) == 3000
    np.testing.assert_allclose(scores(tmp_path / "out"), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_on_ray(exported, expected, pieces, tmp_path):
    ray = pytest.importorskip("ray")
    try:
        assert score_file(exported, pieces, tmp_path / "out", engine="ray", processes=2, part_rows=500) == 3000
        np.testing.assert_allclose(scores(tmp_path / "out"), expected, atol=1e-5, rtol=0)
        rows = write(tmp_path, item_id=[*range(1, 20), 99999])
        with raises_naming(ServingError, rows, "item_id", "99999"):
            score_file(exported, rows, tmp_path / "bad", engine="ray")
    finally:
        ray.shutdown()


def test_the_rows_are_not_overwritten(exported, pieces, tmp_path):
    path = write(tmp_path)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for out in (path, tmp_path / "link"):
        with raises_naming(ServingError, out):
            score_file(exported, path, out)
    with raises_naming(ServingError, pieces / "out"):
        score_file(exported, pieces, pieces / "out")
    assert path.read_bytes() == before
    for name, content in (("other.parquet", before), ("notes.txt", b"notes")):
        (tmp_path / name).write_bytes(content)
        with raises_naming(ServingError, tmp_path / name):
            score_file(exported, path, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    for options in ({"processes": 0}, {"threads": 0}):
        with raises_naming(ServingError, *options):
            score_file(exported, path, tmp_path / "out", **options)


def test_broken_exports(exported, pieces, tmp_path):
    for name in ("items.npy", "rows.onnx", "known.npy"):
        broken = tmp_path / name
        shutil.copytree(exported, broken)
        content = bytearray((broken / name).read_bytes())
        content[-1] ^= 1
        (broken / name).write_bytes(content)
        with pytest.raises(ServingError, match=name):
            Export(broken)
    with raises_naming(ServingError, "known.npy"):
        score_file(broken, pieces, tmp_path / "out", processes=2, part_rows=1000)
    manifest = json.loads((broken / "manifest.json").read_text())
    (broken / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ServingError, match="99"):
        Export(broken)
    (broken / "manifest.json").write_text(json.dumps({**manifest, "format": FORMATS[0] - 1}))
    with raises_naming(ServingError, f"{FORMATS[0] - 1},", "export again"):
        Export(broken)
    (broken / "manifest.json").write_text("{")
    with pytest.raises(ServingError, match="manifest"):
        Export(broken)
    (broken / "manifest.json").write_text(json.dumps({**manifest, "format": "triton"}))  # of a model repository
    with raises_naming(ServingError, broken, "--format onnx"):
        Export(broken)


def test_exports_are_read_where_files_have_no_flags_of_posix(exported, monkeypatch):
    for name in ("O_NONBLOCK", "O_CLOEXEC"):
        monkeypatch.delattr(os, name)
    assert Export(exported).labels


def test_needs_no_torch(exported, tmp_path):
    code = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "fuxictr", "fuxictr_mm", "pandas", "polars", "sklearn", "scipy"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
from fuxictr_mm_serving.scoring import score_file
from tests.errors import exits_naming, raises_naming
from fuxictr_mm_serving.server import make_app
from fuxictr_mm_serving.settings import Settings
print(score_file(*sys.argv[1:4]))
app = make_app(Settings(folder=sys.argv[1]))
"""
    out = tmp_path / "out.parquet"
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported), str(ROWS), str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3000"


def test_a_server_needs_no_pyarrow(exported):
    code = """
import sys

sys.modules["pyarrow"] = None
from fuxictr_mm_serving import ServingError
from fuxictr_mm_serving.server import make_app
from fuxictr_mm_serving.settings import Settings
from starlette.testclient import TestClient
request = {"context": {"likes_level": 3, "views_level": 2}, "history": [5, 6, 7], "candidates": [8, 9, 10]}
print(len(TestClient(make_app(Settings(folder=sys.argv[1]))).post("/score", json=request).json()["scores"]))
try:
    make_app(Settings(folder=sys.argv[1], users=sys.argv[2]))
except ServingError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(exported), str(ROWS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, error = done.stdout.splitlines()
    assert count == "3"
    assert "fuxictr-mm-serving[parquet]" in error


def test_the_command(exported, expected, tmp_path):
    out = tmp_path / "scores.parquet"
    command = [sys.executable, "-m", "fuxictr_mm", "score", str(exported), str(ROWS), "--out", str(out), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout)["rows"] == 3000
    np.testing.assert_allclose(scores(out), expected, atol=1e-5, rtol=0)
    done = subprocess.run([*command[:4], str(tmp_path), *command[5:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "manifest.json" in done.stderr


@pytest.mark.parametrize("name", ["scores.csv", "scores.CSV", "scores.jsonl"])
def test_a_name_of_another_form_is_refused(name, tmp_path, capsys):
    with exits_naming(capsys, name, ".parquet"):
        main(["score", str(tmp_path), str(ROWS), "--out", str(tmp_path / name)])
