"""Tables of an export, beside its graphs, of 32, 16 and 8 bits."""

import time

import numpy as np
import pytest
import torch

from fuxictr_mm import terminal
from fuxictr_mm.errors import UserError
from fuxictr_mm.serving import export as module
from fuxictr_mm.serving import tables
from fuxictr_mm.serving.export import export
from fuxictr_mm_serving.tables import quantize

pytest.importorskip("onnxscript")


def test_a_table_is_in_no_graph(exported):
    items = np.load(exported / "items.npy")
    whole = b"".join((exported / f"{name}.onnx").read_bytes() for name in ("rows", "user", "candidates"))
    assert items[7].tobytes() not in whole


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-tables"])
def test_a_table_is_written_in_order_and_not_mapped(tmp_path, monkeypatch, precision):
    """On a full disk, a write is an error; a write to a mapping ends the process."""
    monkeypatch.setattr(np, "memmap", lambda *_, **__: pytest.fail("is mapped"))
    monkeypatch.setattr(tables, "CHUNK", 4)
    rows = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    entry = tables.write_table(lambda ids: rows[ids], 10, tmp_path, "items", precision, [2])
    kinds = {"fp32": np.float32, "fp16": np.float16, "int8-tables": np.int8}
    expected = quantize(rows.numpy(), [2, 4])[0] if precision == "int8-tables" else rows.numpy()
    np.save(tmp_path / "expected.npy", expected.astype(kinds[precision]))
    assert (tmp_path / entry["file"]).read_bytes() == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_large_table_shows_how_far_it_is(tmp_path, monkeypatch, capsys, verbose):
    monkeypatch.setattr(tables, "CHUNK", 4)
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.001)

    def rows_of(ids):
        time.sleep(0.005)
        return torch.zeros(len(ids), 2)

    tables.write_table(rows_of, 10, tmp_path, "items", "fp32", verbose=verbose)
    assert ("items: 10.0/10.0" in capsys.readouterr().err) == (verbose == 1)


@pytest.mark.slow
def test_tables_of_fewer_bits(weights_of, tmp_path):
    experiment, weights = weights_of("DIN_MM_tiny")
    sizes = {}
    for precision, kind in (("fp16", np.float16), ("int8-tables", np.int8)):
        out = tmp_path / precision
        parity = export(experiment, out, weights=weights, precision=precision)
        table = np.load(out / "items.npy", mmap_mode="r")
        assert table.dtype == kind
        assert 1e-7 < parity["largest_difference"] <= module.TOLERANCES[precision]
        assert abs(parity["auc"]["export"] - parity["auc"]["model"]) < 0.01
        sizes[precision] = table.nbytes
    assert sizes["fp16"] == 2 * sizes["int8-tables"]
    with pytest.raises(UserError, match="tolerance"):
        export(experiment, tmp_path / "out", weights=weights, precision="fp16", tolerance=0)


def test_fields_of_8_bits_have_factors_of_their_own():
    rows = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32) * np.repeat([100, 1, 0.01], 4)
    rows[3, 4:8] = 0
    values, scales = quantize(rows, [4, 4, 4])
    restored = values * np.repeat(scales, 4, axis=1)
    bounds = np.abs(rows).reshape(20, 3, 4).max(axis=2) / 127 / 2
    assert (np.abs(restored - rows).reshape(20, 3, 4).max(axis=2) <= bounds * 1.001).all()
