"""In a world where only distant items tell, models that search find them, and a DIN on the newest items does not."""

import dataclasses

import pytest

from fuxictr_mm.data.synthetic.spec import PRESETS
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.experiment import Experiment
from tests.paths import ROOT

pytestmark = pytest.mark.slow

SIZES = {
    "users": 1000, "items": 4000, "topics": 16, "seq_len": 200, "history_mean": 120, "recent_noise": 30,
    "train_rows": 12_000, "valid_rows": 2000, "test_rows": 10, "text_dim": 16, "image_dim": 16, "emb_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def auc(tmp_path_factory):
    """Train an experiment on a small long world; returns the validation AUC."""
    folder = tmp_path_factory.mktemp("long")
    generate(dataclasses.replace(PRESETS["long"], **SIZES), folder / "long_mm", progress=False)
    for name in ("model_config.yaml", "dataset_config.yaml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text.replace("d32_e4", "d16_e4").replace("vocab_size: 20001", f"vocab_size: {SIZES['items'] + 1}")
        (folder / name).write_text(text, encoding="utf-8")

    def train(expid, max_len=SIZES["seq_len"]):
        settings = {"model_root": str(folder / "runs"), "metrics": ["AUC"], "tensorboard": False, "test_data": None}
        experiment = Experiment.load(
            expid, folder, model_zoo=ROOT / "model_zoo", data_root=str(folder), seed=1, verbose=0, max_len=max_len,
            **settings,
        )  # fmt: skip
        return experiment.fit().valid["AUC"]

    return train


def test_the_newest_items_tell_nothing(auc):
    assert abs(auc("DIN_newest_long", SIZES["recent_noise"]) - 0.5) < 0.03


@pytest.mark.parametrize(("name", "least"), [("MUSE", 0.65), ("ETA", 0.57), ("SIM", 0.56), ("TWIN", 0.54)])
def test_a_search_finds_the_distant_ones(auc, name, least):
    assert auc(f"{name}_long") > least
