"""Column settings from the ``dataset_config.yaml`` next to the files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fuxictr_mm.check_data.translation import LABEL
from fuxictr_mm.config import Roles, list_datasets
from fuxictr_mm.config.dataset import DatasetConfig


@dataclass(frozen=True)
class Description:
    """Roles, label and types of columns, as far as a configuration has them."""

    roles: Roles = field(default_factory=Roles)
    ids: str = "auto"
    label: str = LABEL  #: The first of several.
    weight: str | None = None  #: Of rows, which is no feature.
    categories: frozenset[str] = frozenset()  #: Features whose numbers are ids, which nobody standardises.
    scaled: frozenset[str] = frozenset()  #: Features with a ``norm`` or a ``scale``.

    @classmethod
    def find(cls, folder: Path) -> Description:
        """Return that of a folder whose ``dataset_config.yaml`` has a single entry; of others, the defaults.

        Raises
        ------
        ConfigError
            The file cannot be read, or its roles or labels are wrong.
        """
        entries = list_datasets(folder) if (folder / "dataset_config.yaml").is_file() else {}
        if len(entries) != 1:
            return cls()
        (entry,) = entries.values()
        known = {
            key: entry[key] for key in ("roles", "ids", "label_col", "sample_weight") if entry.get(key) is not None
        }
        dataset = DatasetConfig.read(known, str(folder / "dataset_config.yaml"))
        label = (dataset.label_names or [LABEL])[0]
        features = [
            (name, feature)
            for feature in entry.get("feature_cols") or []
            if isinstance(feature, dict) and "name" in feature
            for name in (feature["name"] if isinstance(feature["name"], list) else [feature["name"]])
        ]
        return cls(
            dataset.roles,
            dataset.ids,
            label,
            dataset.sample_weight,
            frozenset(name for name, f in features if f.get("type") in ("categorical", "sequence", "meta")),
            frozenset(name for name, f in features if f.get("norm") or f.get("scale")),
        )
