import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main


@pytest.fixture
def features(tmp_path):
    random = np.random.default_rng(0)
    columns = {name: random.normal(size=(40, width)).tolist() for name, width in (("txt", 6), ("img", 8))}
    path = tmp_path / "features.parquet"
    pq.write_table(pa.table({"item_id": np.arange(1, 41), **columns}), path)
    return path


def run(*arguments):
    main(["embed", *map(str, arguments)])


def test_help_imports_no_stage():
    code = (
        "import sys\nfrom fuxictr_mm.cli import main\n"
        "try:\n    main(['embed', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'sklearn', 'transformers', 'pyarrow', 'numpy', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for stage in ("encode", "reduce", "quantize", "align"):
        assert f"\n    {stage} " in shown


def test_help_of_a_stage_ends_with_an_example(capsys):
    with pytest.raises(SystemExit) as ended:
        run("reduce", "--help")
    assert ended.value.code == 0
    assert "--apply item_emb.reducer.safetensors --out new_item_emb.parquet\n" in capsys.readouterr().out


def test_reduce_prints_the_report_and_the_lines_to_paste(features, tmp_path, capsys):
    report = tmp_path / "report.json"
    names = [f"text={features}:txt", f"image={features}:img"]
    run("reduce", *names, "--dim", 4, "--out", tmp_path / "e.parquet", "--report", report, "--quiet")
    shown = capsys.readouterr().out
    assert "item_emb_v3  PCA(text, image)        4" in shown
    assert "item_emb_v4  PCA(text) + PCA(image)  2 + 2" in shown
    assert "- {name: item_emb_v4, active: False, dtype: float, type: embedding, source: item, pretrain_dim: 4}" in shown
    kept = [s["kept"] for s in json.loads(report.read_text())["strategies"]]
    assert all(0 < share < 1 for share in kept)
    reducer = tmp_path / "e.reducer.safetensors"
    run("reduce", *names, "--apply", reducer, "--out", tmp_path / "again.parquet", "--quiet")
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(tmp_path / "e.parquet"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{f}:txt"], "error: {d}/e.parquet: exists already; add --overwrite or choose another name"),
        (["{f}:tx", "--overwrite"], "error: {f}: no column 'tx'; did you mean 'txt'"),
        (["{f}", "--overwrite"], "names no column of a file; expected NAME=FILE:COLUMN"),
        (
            ["{f}:txt", "--dim", "7", "--overwrite"],
            "which has no more than 6 (vectors of width 6, 40 items); lower dim",
        ),
        (["{f}:txt", "--apply", "x", "--dim", "3"], "--dim is a setting of the fit, and --apply fits nothing"),
        (["{f}:txt", "--apply", "{f}", "--overwrite"], "features.parquet: is damaged"),
        (["{f}:txt", "--strategies", "v3", "--overwrite"], "strategy 'v3' is unknown (there are: txt)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(features, tmp_path, capsys, arguments, message):
    (tmp_path / "e.parquet").write_text("old")
    filled = [argument.format(f=features) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        run("reduce", *filled, "--out", tmp_path / "e.parquet", "--quiet")
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert message.format(f=features, d=tmp_path) in shown
    assert shown.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet", "features.parquet"]
    assert (tmp_path / "e.parquet").read_text() == "old"
