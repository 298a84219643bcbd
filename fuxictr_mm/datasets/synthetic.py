"""The configuration of synthetic data: its entry, and initial experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuxictr_mm.data.synthetic.spec import SyntheticSpec
from fuxictr_mm.datasets.configuration import write_files
from fuxictr_mm.datasets.experiments import din_experiments


def write_synthetic_config(folder: Path, spec: SyntheticSpec) -> list[str]:
    """Write the configuration of synthetic data that lie in a folder; return the experiment ids.

    Existing files are kept.
    """
    entry = synthetic_entry(spec)
    return write_files(folder, folder.resolve().name, entry, din_experiments(spec.train_rows, spec.seq_len))


def synthetic_entry(spec: SyntheticSpec) -> dict[str, Any]:
    """Return the entry of ``dataset_config.yaml``: all ids and tags, and the text and image embeddings, each reduced.

    The test split is the one with labels, so that predictions of it have metrics.
    """
    from fuxictr_mm.data.synthetic.world import LEVELS, MAX_TAGS
    from fuxictr_mm.data.synthetic.writer import INT8_FACTOR, half_names

    category = {"dtype": "int", "type": "categorical"}
    scale = {"scale": 1 / INT8_FACTOR} if spec.emb_bits == 8 else {}
    tags = {"dtype": "int", "type": "sequence", "source": "item", "max_len": MAX_TAGS, "vocab_size": spec.tags}
    labels = [{"name": name, "dtype": "float"} for name in ("label", *(["like"] if spec.second_context else []))]
    return {
        "data_root": "./",
        "data_format": "parquet",
        "train_data": "./train.parquet",
        "valid_data": "./valid.parquet",
        "test_data": "./test_labelled.parquet",
        "item_info": ["./item_info.parquet", "./item_emb.parquet"],
        "rebuild_dataset": False,
        "feature_cols": [
            {"name": "user_id", "dtype": "int", "type": "meta"},
            {"name": "item_seq", "dtype": "int", "type": "meta"},
            {"name": ["likes_level", "views_level"], **category, "vocab_size": LEVELS + 1},
            {"name": "item_id", **category, "source": "item", "vocab_size": spec.items + 1},
            {"name": "item_tags", **tags},
            {"name": list(half_names(spec)), "dtype": "float", "type": "embedding", "source": "item", **scale},
        ],
        "label_col": labels if len(labels) > 1 else labels[0],
    }
