"""The configuration of a prepared dataset: its labels, its entry, and initial experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm.errors import ConfigError, MissingFileError, nearest

if TYPE_CHECKING:
    from fuxictr_mm.datasets.reader import Reader
    from fuxictr_mm.datasets.summary import Summary

#: What a comment begins with where gAUC is not among the metrics.
LEFT_OUT = "gAUC is left out"


def choose_labels(name: str, reader: Reader, given: Sequence[str] | None) -> list[str]:
    """Return the labels to train on, by default the reader's own."""
    labels = [reader.written_label(label) for label in given or ()] or [reader.label]
    known = [reader.label, *reader.other_labels]
    for label in labels:
        if label not in known or labels.count(label) > 1:
            what = "is given twice" if label in known else f"no label of {name}{nearest(label, known)}"
            raise ConfigError(f"--labels {label}: {what} (there are: {', '.join(known)})")
    return labels


def write_config(
    folder: Path, dataset_id: str, reader: Reader, summary: Summary, labels: Sequence[str] = ()
) -> list[str]:
    """Write the configuration of a prepared folder as ``write_files`` does; return the experiment ids."""
    entry = dataset_entry(reader, summary, labels)
    return write_files(folder, dataset_id, entry, reader.experiments(summary), reader.advice(summary))


def write_files(
    folder: Path,
    dataset_id: str,
    dataset: dict[str, Any],
    models: dict[str, dict[str, Any]],
    advice: Sequence[str] = (),
) -> list[str]:
    """Write ``dataset_config.yaml`` and ``model_config.yaml``; return the ids of the experiments, one of each model.

    Existing files are kept, because they may have been changed. ``models`` are the settings of each, of which None
    leaves one out; ``advice`` are comments above the experiments. gAUC is left out where the validation rows do not
    define it: a training would refuse it.
    """
    experiments = {}
    for model, given in models.items():
        settings = {key: value for key, value in given.items() if value is not None}
        if (reason := _leave_out_undefined(folder, dataset, settings)) is not None:
            advice = advice if reason in advice else [*advice, reason]
        experiments[f"{model}_{dataset_id}"] = {"model": model, "dataset_id": dataset_id, **settings}
    _write_texts(folder, {"dataset_config": {dataset_id: dataset}, "model_config": experiments}, advice)
    return list(experiments)


def _leave_out_undefined(folder: Path, dataset: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """Leave gAUC out of an experiment whose validation rows do not define it; return why, or None."""
    metrics, group = settings.get("metrics") or [], settings.get("group_id") or "user_id"
    if "gAUC" not in metrics or "gAUC" in str(settings.get("monitor")) or _has_mixed_groups(folder, dataset, group):
        return None
    settings["metrics"] = [metric for metric in metrics if metric != "gAUC"]
    return f"{LEFT_OUT}: no {group} of valid has rows of both classes"


def _has_left_out(folder: Path) -> bool:
    """Whether a comment says that gAUC was left out of the experiments of a prepared folder."""
    path = folder / "model_config.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return any(line.startswith(f"# {LEFT_OUT}") for line in lines)


def _write_texts(folder: Path, contents: dict[str, dict[str, Any]], advice: Sequence[str] = ()) -> None:
    from fuxictr_mm.files import atomic_path
    from fuxictr_mm.yaml_files import dump_yaml

    comments = {"model_config": "".join(f"# {line}\n" for line in advice)}
    for stem, content in contents.items():
        path = folder / f"{stem}.yaml"
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_text(comments.get(stem, "") + dump_yaml(content), encoding="utf-8")


def copy_config(
    folder: Path, dataset_id: str, like: Path, summary: Summary, growth: float, rate: float = 1.0
) -> dict[str, str]:
    """Write the configuration of a folder that extends another; return its experiments, each with that of the other.

    Settings are the same, but ``vocab_size`` follows the new numbers, ``learning_rate`` is multiplied by ``rate``, and
    ``swa_start``, a number of updates, by ``growth``, the number of training rows per one of the other folder. gAUC is
    left out as by ``write_files``, and is a metric again if only the validation rows of the other folder did not define
    it.
    """
    from fuxictr_mm.config import list_experiments, load_dataset_config, load_model_config

    of = dataset_of(like)
    entry, experiments, names = load_dataset_config(like, of), {}, {}
    splits = {f"{split}_data": f"./{split}" for split in summary.splits}
    files = entry.get("item_info") or []
    files = [f"./{Path(path).name}" for path in ([files] if isinstance(files, str) else files)]
    sizes = {**summary.vocab_sizes, "item_id": summary.items + 1}
    columns = [
        {**column, "vocab_size": max(column["vocab_size"], sizes[column["name"]])}
        if "vocab_size" in column and column.get("name") in sizes
        else column
        for column in entry["feature_cols"]
    ]
    none = dict.fromkeys(f"{split}_data" for split in ("train", "valid", "test"))
    entry |= {**none, "data_root": "./", **splits, "item_info": files, "feature_cols": columns}
    entry = {key: value for key, value in entry.items() if value is not None}
    advice = [] if rate == 1 else [f"learning_rate is {rate:g} times that of {of}, since training continues"]
    has_left_out = _has_left_out(like)
    for expid in list_experiments(like):
        settings = load_model_config(like, expid)
        if settings["dataset_id"] != of:
            continue
        name = f"{expid.removesuffix(f'_{of}')}_{dataset_id}"
        if settings.get("swa_start"):
            settings["swa_start"] = max(1, round(settings["swa_start"] * growth))
        if rate != 1 and "learning_rate" in settings:
            settings["learning_rate"] *= rate
        settings.pop("initial_weights", None)
        may_return = has_left_out and settings.get("metrics") == ["AUC", "logloss"]
        if may_return:
            settings["metrics"] = ["AUC", "gAUC", "logloss"]
        reason = _leave_out_undefined(folder, entry, settings)
        if reason is None and may_return:
            reason = f"gAUC is among the metrics again; {of} left it out"
        if reason is not None and reason not in advice:
            advice.append(reason)
        names[name], experiments[name] = expid, {**settings, "dataset_id": dataset_id}
    _write_texts(folder, {"dataset_config": {dataset_id: entry}, "model_config": experiments}, advice)
    return names


def dataset_of(folder: Path) -> str:
    """Return the id of the dataset of a prepared folder, whose configuration must be there."""
    from fuxictr_mm.config import list_datasets, list_experiments

    try:
        known, _ = list(list_datasets(folder)), list_experiments(folder)
    except MissingFileError:
        raise MissingFileError(
            f"--like {folder}: has no dataset_config.yaml and model_config.yaml, whose experiments --extend continues; "
            "run its prepare command again, which writes them"
        ) from None
    name = folder.resolve().name
    return name if name in known or len(known) > 1 else known[0]


def _has_mixed_groups(folder: Path, dataset: dict[str, Any], group: str) -> bool:
    """Return whether a group of the validation rows has two values of each label, which the AUC of groups needs."""
    import polars as pl

    valid = folder / dataset.get("valid_data", "")
    if "valid_data" not in dataset or not valid.exists() or group not in pl.scan_parquet(valid).collect_schema():
        return True
    columns = dataset["label_col"] if isinstance(dataset["label_col"], list) else [dataset["label_col"]]
    labels = [column["name"] for column in columns]
    ranges = [(pl.col(name).max() > pl.col(name).min()).alias(name) for name in labels]
    mixed = pl.scan_parquet(valid).group_by(group).agg(ranges).select(pl.col(labels).any()).collect()
    return all(mixed.row(0))


def dataset_entry(reader: Reader, summary: Summary, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Return the entry of ``dataset_config.yaml`` for a prepared folder, by default on the reader's own label."""
    from fuxictr_mm_serving.prepared import ITEM_FILE

    user_id: dict[str, Any] = {"name": "user_id", "dtype": "int", "type": "meta"}
    if reader.embeds_users(summary):
        user_id.update(type="categorical", vocab_size=summary.vocab_sizes["user_id"])
    columns: list[dict[str, Any]] = [
        user_id,
        {"name": "item_seq", "dtype": "int", "type": "meta"},
    ]
    for name, kind in reader.context.items():
        columns.append(_feature(name, kind, summary))
    item_id = {"name": "item_id", "dtype": "int", "type": "categorical" if reader.embed_item_id else "meta"}
    columns.append({**item_id, "source": "item", "vocab_size": summary.items + 1})
    for name, kind in reader.item_columns.items():
        if kind != "text":
            columns.append({**_feature(name, kind, summary), "source": "item"})
    for name in summary.coverage:
        feature: dict[str, Any] = {"name": name, "dtype": "float", "type": "embedding", "source": "item"}
        if name in summary.scales:
            feature["scale"] = summary.scales[name]
        elif name in summary.norms and (setting := summary.norms[name].setting) is not None:
            feature[setting[0]] = setting[1]
        columns.append(feature)
    names = {column["name"] for column in columns}
    for name in reader.columns_to_compare(summary):
        match = next(n for n in (f"{name}_match{'_' * count}" for count in range(len(names) + 1)) if n not in names)
        columns.append({"name": match, "type": "similarity", "of": name, "statistics": ["mean", "max", "newest_5"]})
    paths = {f"{split}_data": f"./{split}" for split in summary.splits}
    label_col = [{"name": name, "dtype": "float"} for name in labels or [reader.label]]
    return {
        "data_root": "./",
        "data_format": "parquet",
        **paths,
        "item_info": [f"./{ITEM_FILE}", *(f"./{name}.parquet" for name in summary.coverage)],
        "rebuild_dataset": False,
        "feature_cols": columns,
        "label_col": label_col if len(label_col) > 1 else label_col[0],
        **({} if reader.sample_weight is None else {"sample_weight": reader.sample_weight}),
    }


def _feature(name: str, kind: str, summary: Summary) -> dict[str, Any]:
    if kind == "numeric":
        return {"name": name, "dtype": "float", "type": "numeric"}
    if kind == "group":
        return {"name": name, "dtype": "str", "type": "meta"}
    return {"name": name, "dtype": "int", "type": kind, "vocab_size": summary.vocab_sizes[name]}
