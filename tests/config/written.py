"""A configuration folder of two experiments and a dataset, to change."""

import pytest
import yaml

from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.errors import ConfigError, MissingFileError

MODEL = """
Base:
    seed: 1
    epochs: 5
    metrics: [AUC]
_shared: &shared
    batch_size: 16
    epochs: 6
X_tiny:
    <<: *shared
    description: an experiment
    model: X
    dataset_id: d
    epochs: 7
    learning_rate: 2.0e-3
    monitor: {AUC: 1, logloss: -1}
    max_gradient_norm: 5
    feature_specs: [{name: likes_level, embedding_dim: 4}]
    num_heads: 4
    net_dropout: 0
Y_tiny:
    model: Y
    data_root: ./overruled/
    dataset_id: d
"""

DATASET = """
d:
    description: a dataset
    data_root: ./data/
    data_format: parquet
    train_data: ./data/d/train.parquet
    valid_data: ./data/d/valid.parquet
    test_data: ./data/d/test.parquet
    item_info: ./data/d/item_info.parquet
    rebuild_dataset: False
    feature_cols:
        - {name: user_id, active: True, dtype: int, type: meta}
        - {name: [likes_level, views_level], active: True, dtype: int, type: categorical, vocab_size: 11}
        - {name: item_tags, active: True, dtype: int, type: sequence, max_len: 5, source: item}
    label_col: {name: label, dtype: float}
    resident: False
"""


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def add(folder, *lines):
    """Add settings to X_tiny."""
    change(
        folder / "model_config.yaml",
        "    num_heads: 4\n",
        "".join(f"    {line}\n" for line in ("num_heads: 4", *lines)),
    )


def refused(folder, expid="X_tiny", **options):
    with pytest.raises((ConfigError, MissingFileError)) as caught:
        ExperimentConfig.load(folder, expid, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def split(folder):
    """Turn the two files into folders of files."""
    for stem in ("model_config", "dataset_config"):
        content = yaml.safe_load((folder / f"{stem}.yaml").read_text())
        (folder / f"{stem}.yaml").unlink()
        (folder / stem).mkdir()
        for name, entry in content.items():
            (folder / stem / f"{name}.yaml").write_text(yaml.safe_dump({name: entry}))
