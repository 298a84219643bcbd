"""Folders with a configuration, as a user has them."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.paths import ROOT


def write_project(folder: Path, models: str | dict[str, Any], datasets: dict[str, Any] | None = None) -> Path:
    """Write a configuration and return its folder; without ``datasets``, those of the repository and their data."""
    (folder / "model_config.yaml").write_text(models if isinstance(models, str) else json.dumps(models))
    if datasets is not None:
        (folder / "dataset_config.yaml").write_text(json.dumps(datasets))
        return folder
    shutil.copy(ROOT / "dataset_config.yaml", folder)
    (folder / "data").symlink_to(ROOT / "data")
    return folder
