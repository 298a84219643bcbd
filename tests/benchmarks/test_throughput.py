"""The benchmark runs on small data, writes what it promises, and compares two things that compute the same."""

import json
import math

import pytest
import torch

from benchmarks import throughput
from benchmarks.curve import curve
from benchmarks.dataset import MODELS, parameters
from benchmarks.equality import equality
from benchmarks.reference import padded_loader
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.data.synthetic.writer import generate
from tests.configs import load_dataset

BATCH_SIZE, MAX_LEN = 32, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    spec = SyntheticSpec(users=60, items=80, tags=40, train_rows=200, valid_rows=20, test_rows=1, history_mean=6.0)
    generate(spec, folder, progress=False)
    return folder


def run(folder, path, *options):
    sizes = ["--batch_size", str(BATCH_SIZE), "--max_len", str(MAX_LEN), "--steps", "2", "--repeats", "2"]
    report = throughput.main(["--data", str(folder), "--threads", "1", "--json", str(path), *sizes, *options])
    written = json.loads(path.read_text())
    assert written["options"] == report["options"]
    return written


#: The published widths would take minutes.
NARROW = {
    "QIN": {"embedding_dim": 16},
    "Transformer_DCN": {"embedding_dim": 4, "first_k_cols": 8, "dcn_hidden_units": [32, 16]},
}


@pytest.mark.parametrize("model", list(MODELS))
def test_ours_and_the_reference_are_one_function(model, folder):
    options = {"batch_size": BATCH_SIZE, "max_len": MAX_LEN, "points": 3, "every": 2}
    found = equality(model, folder, **options, **NARROW.get(model, {}))
    assert found["loss"] < 1e-9
    assert 0 < found["gradient"] < 1e-9


@pytest.mark.parametrize("model", ["DIN", "DIN_MM"])
def test_loss_curves_part_no_more_than_by_rounding(model, folder):
    found = curve(model, folder, batch_size=BATCH_SIZE, max_len=MAX_LEN, steps=12)
    assert len(set(found["loss"])) == 12
    assert 0 < found["ours"] <= 4 * max(found["touched"])
    assert max(found["touched"]) < 0.05


@pytest.mark.parametrize(("model", "what"), [("DIN", "train"), ("DIN_MM", "train"), ("DIN", "scoring")])
def test_both_sides_are_measured(model, what, folder, tmp_path, capsys):
    report = run(folder, tmp_path / "figures.json", "--model", model, "--what", what, "--precision", "bf16")
    assert list(report["sides"]) == ["ours", "reference"]
    for side in report["sides"].values():
        assert side["precision"] == "bf16"
        assert 0 < side["samples_per_second"]["min"] <= side["samples_per_second"]["median"]
        assert 0 < side["waiting_share"]["median"] < 1
        assert side["step_memory_mb"] >= 0
    ratio = report["sides"]["ours"]["ratio"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"] < math.inf
    assert ratio["of_best"] > 0
    assert ratio["of_cpu_time"] > 0
    assert "ratio" not in report["sides"]["reference"]
    assert report["process_peak_mb"] > 0
    assert report["data"]["rows"] == 200
    assert {"cpu", "torch", "allocator", "load_before", "load_after"} <= report["environment"].keys()
    assert capsys.readouterr().out.count("bfloat16") == 2
    assert torch.get_float32_matmul_precision() == "highest"


def test_loaders_alone(folder, tmp_path):
    report = run(folder, tmp_path / "figures.json", "--what", "loader")
    assert list(report["sides"]) == ["ours", "ours_with_items", "reference"]
    assert "waiting_share" not in report["sides"]["ours"]


def test_one_side_alone_has_no_ratio(folder, tmp_path):
    report = run(folder, tmp_path / "figures.json", "--sides", "ours", "--reference_precision", "medium")
    assert list(report["sides"]) == ["ours"]
    assert "ratio" not in report["sides"]["ours"]


def test_the_reference_pads_what_ours_holds(folder):
    """The same rows out of both ways, item by item."""
    params = parameters("DIN", folder, batch_size=BATCH_SIZE, max_len=MAX_LEN)
    dataset = load_dataset(params, {"train": True})
    loader = padded_loader(params)
    columns, items, mask = next(iter(loader))
    batch = gather(dataset.splits["train"], torch.arange(BATCH_SIZE))
    padded, real = batch.history.to_padded(MAX_LEN)
    torch.testing.assert_close(mask, real.float())
    ids = torch.cat([padded, batch.target.unsqueeze(1)], dim=1).flatten().long()
    torch.testing.assert_close(items["item_emb_d16"], dataset.items["item_emb_d16"][ids])
    torch.testing.assert_close(items["item_tags"], dataset.items["item_tags"][ids].long())
    torch.testing.assert_close(columns["label"].float(), batch.label)


def test_no_warmup(folder, tmp_path):
    report = run(folder, tmp_path / "figures.json", "--warmup", "0", "--sides", "ours")
    assert report["sides"]["ours"]["samples_per_second"]["min"] > 0


@pytest.mark.parametrize("option", ["--steps", "--repeats", "--threads", "--reference_steps"])
def test_nothing_to_measure_is_refused(option, capsys):
    with pytest.raises(SystemExit) as ended:
        throughput.main([option, "0"])
    assert ended.value.code == 2
    assert f"{option} is 0" in capsys.readouterr().err
