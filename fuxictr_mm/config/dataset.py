"""Keys of an entry of ``dataset_config.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from fuxictr_mm.checking import Settings, describe_type
from fuxictr_mm.config.columns import NOT_ENCODED, OF_ENCODING, split_entries
from fuxictr_mm.config.features import FeatureConfig, LabelConfig, Number, Roles
from fuxictr_mm.errors import ConfigError

NO_EFFECT = "Accepted because FuxiCTR's files have it; no effect here."

#: Keys whose values are paths, or lists of paths.
PATH_KEYS = ("train_data", "valid_data", "test_data", "item_info", "global_item_info")


def label_names(params: Mapping[str, Any]) -> list[str]:
    """Return the names of the label columns in flat settings, one for each task; empty where they have none."""
    labels = params.get("label_col") or []
    return [label["name"] for label in (labels if isinstance(labels, list) else [labels]) if "name" in label]


class DatasetConfig(Settings):
    """Settings of a dataset in ``dataset_config.yaml``."""

    description: str | None = Field(None, description="One line about the dataset, for `fuxictr-mm list datasets`.")
    data_root: str | None = Field(
        None, description="Folder that `--data_root` replaces in the paths below; environment variables are expanded."
    )
    data_format: Literal["parquet", "csv", "npz"] = Field(
        "parquet",
        description="Format of the files; `csv` and `npz` are converted once: [FuxiCTR datasets](fuxictr_datasets.md).",
    )
    sep: str = Field(",", min_length=1, max_length=1, description="Column separator of CSV files.")
    train_data: str | None = Field(
        None, description="Interactions of the training split: a file, or a folder of files."
    )
    valid_data: str | None = Field(None, description="Interactions of the validation split.")
    test_data: str | None = Field(None, description="Interactions of the test split; labels may be missing.")
    item_info: Annotated[str | list[str], Field(min_length=1)] | None = Field(
        None,
        description="Item files, joined by `item_id`: a file, a folder of files, or a list of these; null: a dataset "
        "of FuxiCTR, without items.",
    )
    global_item_info: str | None = Field(
        None, description="Catalogue of the published Transformer_DCN_Quant; no effect on the models of this library."
    )
    roles: Roles = Field(Roles(), description="Names of the columns with a role, see below.")
    ids: Literal["auto", "as_is", "vocabulary"] = Field(
        "auto",
        description="Item ids. `as_is`: positive integers that index the tables; 0 is padding. `vocabulary`: any "
        "integers or texts, numbered in the order of the item files. `auto`: `as_is` where possible, "
        "otherwise `vocabulary`.",
    )
    rebuild_dataset: bool | None = Field(
        None,
        description="True: encode the columns of Parquet files like those of CSV files; null: encode only CSV files.",
    )
    feature_cols: list[FeatureConfig] | None = Field(
        None,
        min_length=1,
        validate_default=True,
        description="The features, see below; null: those of FuxiCTR's `feature_map.json`.",
    )
    label_col: LabelConfig | Annotated[list[LabelConfig], Field(min_length=1)] | None = Field(
        None,
        validate_default=True,
        description="The label, or a list of labels, one per task, see below; null: that of FuxiCTR's "
        "`feature_map.json`.",
    )
    sample_weight: str | None = Field(
        None,
        min_length=1,
        description="Column of the weights of the training rows in the loss, numbers of 0 or more, see "
        "[Weights of rows](your_data/labels.md#weights-of-rows).",
    )
    min_categr_count: int = Field(
        1, description="Encoding: values that occur less often in the training split share one id."
    )
    valid_size: Number = Field(0, description="Must be 0: FuxiCTR 2.3.10 fails with it; name the split's file.")
    test_size: Number = Field(0, description="Must be 0, like `valid_size`.")
    split_type: str | None = Field(None, description=NO_EFFECT)
    data_block_size: int = Field(0, description=NO_EFFECT)
    num_buckets: int | None = Field(None, description=NO_EFFECT)

    def path_of(self, split: str) -> str | None:
        """Return the path of ``train``, ``valid`` or ``test``."""
        path: str | None = getattr(self, f"{split}_data")
        return path

    @property
    def labels(self) -> list[LabelConfig]:
        """The label columns, one for each task; none for a dataset whose entry has none."""
        if self.label_col is None:
            return []
        return self.label_col if isinstance(self.label_col, list) else [self.label_col]

    @property
    def item_files(self) -> list[str]:
        """The item files, an empty list without any."""
        return [self.item_info] if isinstance(self.item_info, str) else list(self.item_info or [])

    @property
    def label_names(self) -> list[str]:
        """Names of the label columns, one for each task; empty for a dataset whose entry has none."""
        return [label.name for label in self.labels]

    def require_one_label(self, command: str) -> str:
        """Return the name of the label of a dataset with one label."""
        if self.label_col is None:
            raise ConfigError(f"{command}: label_col is missing; name the label, such as {LabelConfig.example}")
        if len(self.label_names) > 1:
            raise ConfigError(
                f"{command}: label_col names {len(self.label_names)} labels ({', '.join(self.label_names)}); this "
                "command reads only experiments on one label, train one with a dataset entry that names it alone"
            )
        return self.label_names[0]

    def require_items(self, command: str) -> None:
        """Refuse a dataset without item files."""
        if self.item_info is None:
            raise ConfigError(
                f"{command}: the dataset has no item_info; this command takes models of this library, on item files or "
                "on columns with the roles target and history"
            )

    @field_validator("sep", mode="before")
    @classmethod
    def _check_sep(cls, sep: Any) -> Any:
        if sep == r"\t":  # a tab, in YAML without double quotes
            return "\t"
        if isinstance(sep, str) and len(sep) != 1:
            raise ConfigError(f"sep: {sep!r}, expected one character")
        return sep

    @field_validator("label_col", mode="before")
    @classmethod
    def _check_labels(cls, given: Any) -> Any:
        entries = given if isinstance(given, list) else [given]
        if given is None:
            return given
        if not entries:
            raise ConfigError(f"label_col: is an empty list, expected {describe_type(LabelConfig)} or a list of these")
        labels: list[LabelConfig] = []
        for entry in entries:
            if not isinstance(entry, dict | LabelConfig):
                raise ConfigError(
                    f"label_col: found {entry!r}, expected {describe_type(LabelConfig)} or a list of these"
                )
            label = LabelConfig.read(entry, "label_col") if isinstance(entry, dict) else entry
            if label.name in [other.name for other in labels]:
                raise ConfigError(f"label_col: the label '{label.name}' is listed twice; keep one of them")
            labels.append(label)
        return labels if isinstance(given, list) else labels[0]

    @field_validator("valid_size", "test_size")
    @classmethod
    def _check_size(cls, size: Number, info: ValidationInfo) -> Number:
        if size:
            split = str(info.field_name).split("_")[0]
            raise ConfigError(
                f"{info.field_name}: {size}; expected 0, files are not split here; name the file of the "
                f"split as {split}_data"
            )
        return size

    @field_validator("item_info")
    @classmethod
    def _check_items(cls, paths: Any, info: ValidationInfo) -> Any:
        if paths is not None and info.data.get("data_format", "parquet") != "parquet":
            raise ConfigError(
                f"data_format: {info.data['data_format']} with item_info; datasets with item files are Parquet, "
                "write all of them with pl.read_csv(FILE).write_parquet(...), data_format: parquet"
            )
        return paths

    @field_validator("min_categr_count")
    @classmethod
    def _check_count(cls, count: int, info: ValidationInfo) -> int:
        if count > 1 and info.data.get("item_info") is not None:
            raise ConfigError(f"min_categr_count is {count}, {NOT_ENCODED}; {OF_ENCODING['min_categr_count']}")
        return count

    @field_validator("label_col")
    @classmethod
    def _check_filled(cls, given: Any, info: ValidationInfo) -> Any:
        for label in given if isinstance(given, list) else [given]:
            if label is not None and label.fill_na is not None and info.data.get("item_info") is not None:
                raise ConfigError(
                    f"label '{label.name}': fill_na is {label.fill_na}, {NOT_ENCODED}; fill it in the files"
                )
        return given

    @field_validator("sample_weight")
    @classmethod
    def _check_weight(cls, column: str | None, info: ValidationInfo) -> str | None:
        given = info.data.get("label_col")
        if column in [label.name for label in (given if isinstance(given, list) else [given]) if label is not None]:
            raise ConfigError(f"sample_weight: '{column}' is a label; expected a column of weights")
        kinds = {entry.name: entry.type for entry in split_entries(info.data.get("feature_cols") or ())}
        if kinds.get(str(column), "meta") != "meta":
            raise ConfigError(
                f"sample_weight: '{column}' is also in feature_cols, where it may tell the label; remove it there"
            )
        return column

    @field_validator("rebuild_dataset")
    @classmethod
    def _check_rebuild(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("item_info") is not None:
            raise ConfigError(
                "rebuild_dataset: True; ids must be integers already where there are item files, "
                "set rebuild_dataset: False"
            )
        if value is False and info.data.get("data_format") == "csv":
            raise ConfigError(
                "rebuild_dataset: False with data_format: csv; CSV files are always encoded, leave it out"
            )
        return value

    @field_validator("feature_cols", "label_col")
    @classmethod
    def _check_present(cls, value: Any, info: ValidationInfo) -> Any:
        """Only FuxiCTR's encoded datasets may leave these out: their ``feature_map.json`` has them."""
        encoded = info.data.get("data_format") != "csv" and not info.data.get("rebuild_dataset")
        if value is None and not (encoded and info.data.get("item_info") is None):
            raise ConfigError(f"{info.field_name} is missing")
        return value
