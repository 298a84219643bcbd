"""The features of a dataset that the autopilot may try."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.config import DatasetConfig
from fuxictr_mm.config.columns import ITEM_SOURCE, Columns, split_entries
from fuxictr_mm.config.features import FeatureSpec
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.datasets.experiments import FACTOR_DIM

#: What is tried of the dim of a factorization; the first is that of the first trial.
FACTOR_DIMS = (FACTOR_DIM, 33, 0)

#: Computed features that are added to the dataset's: the length of the history, and its similarity to the target.
LENGTH, SIMILARITY = "autopilot_length", "autopilot_similarity"
STATISTICS = ["mean", "max", "newest_5"]


@dataclass(frozen=True)
class Features:
    """The features of a dataset."""

    types: dict[str, str]  #: The type of each that is not meta.
    active: list[str]  #: Those of its configuration.
    embeddings: list[str]  #: An embedding column of each modality.
    #: Columns of the user and of the target.
    user: str
    target: str
    #: Whether there are item files; a dataset whose columns are encoded has none, nor computed features.
    has_items: bool
    trains_unknown: bool = False  #: Whether the target may have ``unknown: trained``.
    plain: tuple[str, ...] = ()  #: Frozen embeddings of items, of those tried, whose column sets no norm and no scale.
    compared: tuple[str, ...] = ()  #: What the active similarities of its configuration compare, by all of STATISTICS.

    @classmethod
    def of(cls, dataset: DatasetConfig, embeddings: list[str]) -> Features:
        """Return the features of a dataset."""
        types: dict[str, str] = {}
        active: list[str] = []
        plain: list[str] = []
        compared: list[str] = []
        for column in split_entries(dataset.feature_cols or ()):
            if column.type != "meta":
                types[str(column.name)] = str(column.type)
                active += [str(column.name)] if column.active else []
            if column.type == "similarity" and column.active and set(STATISTICS) <= set(column.statistics or ()):
                compared.append(str(column.of))
            is_plain = column.norm is None and column.scale is None and column.freeze_emb
            # Embeddings of rows are read as they are.
            is_of_items = column.type == "embedding" and column.source == ITEM_SOURCE and bool(dataset.item_files)
            if is_of_items and is_plain and (column.active or column.name in embeddings):
                plain.append(str(column.name))
        user, target, has_items = dataset.roles.user, dataset.roles.target, bool(dataset.item_files)
        spec = FeatureSpec(name=target, dropout=0.1, unknown="trained")
        columns = Columns(dataset.feature_cols or (), [spec], roles=dataset.roles, item_info=dataset.item_info)
        trains_unknown = has_items and f"feature {target}.unknown" not in columns.problems()
        return cls(types, active, embeddings, user, target, has_items, trains_unknown, tuple(plain), tuple(compared))

    @property
    def has_user(self) -> bool:
        """Whether the user may be a feature."""
        return self.types.get(self.user) == "categorical"

    def embeddings_of(self, names: Iterable[str]) -> list[str]:
        """Return the embeddings among features."""
        return [name for name in names if self.types[name] == "embedding"]

    @property
    def computed(self) -> list[dict[str, Any]]:
        """Entries of features that are computed from target and history: its length, and its similarities to it.

        Without similarities that the dataset has, as ``prepare`` writes them: twice, they would only cost time.
        """
        if not self.has_items:
            return []
        embeddings = dict.fromkeys([*self.embeddings_of(self.types)[:1], *self.embeddings])
        of = [name for name in embeddings if name not in self.compared]
        similar = {"active": False, "type": "similarity", "statistics": STATISTICS}
        return [
            {"name": LENGTH, "active": False, "type": "length"},
            *({"name": f"{SIMILARITY}_{number}", **similar, "of": name} for number, name in enumerate(of)),
        ]

    @property
    def to_try(self) -> list[list[str]]:
        """Lists of features: the active ones, those with an embedding of each modality, and both with more.

        The first list is that of the first trial.
        """
        choices = [self.active]
        if set(self.embeddings) - set(self.active):
            choices.append([*(n for n in self.active if self.types[n] != "embedding"), *self.embeddings])
        if not self.has_items:
            return choices
        similar = {entry["of"]: entry["name"] for entry in self.computed if "of" in entry}
        more = [[*choice, LENGTH, *(similar[n] for n in choice if n in similar)] for choice in choices]
        return [*choices, *more]

    @property
    def of_users(self) -> list[list[str]]:
        """Lists of features for a model of users: the active ones, and only user, target and embeddings."""
        stored = self.embeddings_of(self.active) or self.embeddings
        few = [name for name in (self.user, self.target, *stored) if name in self.types]
        whole = list(dict.fromkeys([*self.active, self.user]))
        return [whole] if set(few) == set(whole) else [whole, few]

    @property
    def factors(self) -> dict[str, list[Any]]:
        """Settings to try beside a factorization, those of the first trial first; none without user or target.

        User, target and the active embeddings are tried separately, besides all features; only lists of features with
        them are tried.
        """
        fields = [self.user, self.target, *self.embeddings_of(self.active)]
        if not self.has_user or not set(fields) <= set(self.active):
            return {}
        named = [ITEM_ID if name == self.target else name for name in fields]  # as models know the target
        lists = [names for names in self.to_try if set(fields) <= set(names)]
        return {"factor_dim": list(FACTOR_DIMS), "factor_features": [named, None], "use_features": lists}
