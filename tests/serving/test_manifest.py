"""A manifest and the files that it names are checked before they are used."""

import io
import json
import os
import pickle

import numpy as np
import pytest
from pydantic import ValidationError

from fuxictr_mm_serving import Export, ServingError
from fuxictr_mm_serving.command import main as serve
from fuxictr_mm_serving.manifest import CategoricalEntry, Files, checksum, read_manifest
from fuxictr_mm_serving.scoring import score_file
from fuxictr_mm_serving.service import Service
from tests.errors import raises_naming
from tests.paths import TINY

pytest.importorskip("onnxscript")


def put(folder, name, content):
    """Write a file of an export, and its checksum as well."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][name], manifest["bytes"][name] = checksum(folder / name), len(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_graphs_of_torch_are_not_loaded(export_copy, tmp_path):
    manifest = json.loads((export_copy / "manifest.json").read_text())
    manifest["graphs"]["user"] = "user.pt2"
    (export_copy / "manifest.json").write_text(json.dumps(manifest))
    put(export_copy, "user.pt2", b"expressions that torch would evaluate")
    rows = TINY / "test.parquet"
    for use in (Export, Service, lambda export_copy: score_file(export_copy, rows, tmp_path / "scores.parquet")):
        with raises_naming(ServingError, export_copy / "user.pt2", "--format onnx"):
            use(export_copy)
    with pytest.raises(SystemExit) as stopped:
        serve([str(export_copy), "--workers", "2"])
    assert stopped.value.code == 2


def set_value(manifest, path, value):
    *parents, last = path
    for key in parents:
        manifest = manifest[key]
    if value is None:
        del manifest[last]
    else:
        manifest[last] = value


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("graphs", "user"), "../user.onnx", "../user.onnx"),
        (("graphs", "user"), "/etc/passwd", "/etc/passwd"),
        (("graphs", "rows"), "other.onnx", "other.onnx"),
        (("graphs", "rows"), "..", "graphs.rows"),
        (("graphs", "rows"), "a\0b", "graphs.rows"),
        (("items", "max_len"), "5", "items.max_len"),
        (("items", "table", "file"), "other.npy", "other.npy"),
        (("items", "known"), "a/known.npy", "a/known.npy"),
        (("items", "contents", "txt_emb_pca8", "file"), "../x.npy", "../x.npy"),
        (("items", "codes"), {"file": "codes.npy", "columns": {}}, "codes.npy"),
        (("context", 0, "table", "scales"), "x.npy", "x.npy"),
        (("context", 0, "table"), None, "context.0"),
        (("context", 0, "vocab_size"), None, "context.0"),
        (("vocabulary",), "../vocabulary.json", "../vocabulary.json"),
        (("sha256", "../x"), "0", "../x"),
        (("sha256", "x"), "0", "x"),
        (("bytes", "items.npy"), None, "items.npy"),
        (("items",), None, "items"),
        (("items", "max_len"), "x", "items.max_len"),
        (("graphs", "candidates"), None, "candidates"),
        (("labels",), [], "labels"),
    ],
)
def test_a_manifest_that_is_not_complete_is_refused(exported, tmp_path, path, value, named):
    manifest = json.loads((exported / "manifest.json").read_text())
    set_value(manifest, path, value)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with raises_naming(ServingError, tmp_path / "manifest.json", named):
        read_manifest(tmp_path)


def test_a_manifest_has_fields_by_their_types(exported, tmp_path):
    content = json.loads((exported / "manifest.json").read_text())
    number = {"name": "age", "column": "age", "type": "numeric", "fill_na": 3.0, "shift": 1, "scale": 2.0}
    content["context"].append(number)
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "of a later version": 1}))
    found = read_manifest(tmp_path)
    assert (found.items.target, found.items.codes, found.vocabulary) == ("item_id", None, None)
    ids, age = found.context[0], found.context[-1]
    assert isinstance(ids, CategoricalEntry)
    assert (ids.vocab_size, ids.scale, age.table) == (content["context"][0]["vocab_size"], 1, None)
    assert (age.fill_na, age.shift, age.scale) == (3, 1, 2)
    with pytest.raises(ValidationError, match="frozen"):
        found.items.max_len = 3


def npy(header, data=b""):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)
    return head.getvalue() + data


def of_shape(*shape, descr="<f4"):
    return {"descr": descr, "fortran_order": False, "shape": shape}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.npy", npy(of_shape(10**12, 10**6))),
        ("items.npy", npy(of_shape(2**62, 2**62))),
        ("items.npy", npy(of_shape(2, 3), bytes(24))),
        ("items.npy", npy(of_shape(1001, -1), bytes(24))),
        ("items.npy", npy(of_shape(1001), bytes(4004))),
        ("items.npy", b"no array"),
        ("items.npy", b""),
        ("known.npy", npy(of_shape(1001, descr="|O"), pickle.dumps([0]))),
        ("known.npy", npy(of_shape(1001), bytes(4004))),
        ("context_likes_level.npy", npy(of_shape(3, 8), bytes(96))),
        ("project_txt_emb_pca8.npy", npy(of_shape(2, 3), bytes(24))),
        ("rows.onnx", b"no graph"),
    ],
)
def test_files_that_are_no_arrays_are_refused(export_copy, name, content):
    """Also where the checksum is right: whoever wrote the file may have written the manifest."""
    put(export_copy, name, content)
    with raises_naming(ServingError, name if name != "project_txt_emb_pca8.npy" else export_copy):
        Export(export_copy)


def test_what_is_no_file_is_refused(export_copy):
    (export_copy / "known.npy").unlink()
    os.mkfifo(export_copy / "known.npy")
    with raises_naming(ServingError, "known.npy"):
        Export(export_copy)


def test_what_is_checked_is_what_is_used(export_copy, exported, monkeypatch):
    """A export_copy that changes between the check of a file and its use changes no score."""
    check, swapped = Files._check, []

    def swap(files, name, content):
        check(files, name, content)
        (export_copy / "other").write_bytes(b"other")
        os.replace(export_copy / "other", export_copy / name)
        swapped.append(name)

    monkeypatch.setattr(Files, "_check", swap)
    found = Export(export_copy)
    assert {"items.npy", "known.npy", "rows.onnx", "user.onnx", "candidates.onnx"} <= set(swapped)
    whole, context = Export(exported), {"likes_level": 3, "views_level": 2}
    scores = [e.score_candidates(e.user_state(context, [5, 6, 7]), [8, 9, 10])[0].tolist() for e in (found, whole)]
    assert scores[0] == scores[1]


def test_a_file_that_is_cut_short_ends_no_process(export_copy):
    """A small table is not mapped: to read what a mapped file no longer has would be SIGBUS."""
    found, context = Export(export_copy), {"likes_level": 3, "views_level": 2}
    before = found.score_candidates(found.user_state(context, [5]), [8])[0]
    with (export_copy / "items.npy").open("r+b") as stream:
        stream.truncate(10)
    assert found.score_candidates(found.user_state(context, [5]), [8])[0] == before
