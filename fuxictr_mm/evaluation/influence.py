"""``fuxictr-mm influence``: how much each training example lowers the validation loss, and training without the worst.

Shape letters: B examples of a batch, R training examples, V validation examples, D inputs of the last layer, the
constant input of its bias included.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.config import Roles
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, nearest
from fuxictr_mm.files import check_outputs, write_beside
from fuxictr_mm.runtime import is_one_of_several
from fuxictr_mm.terminal import format_table, progress_bar

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor, nn

    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.experiment import Experiment

#: Worst and best examples in the summary.
SHOWN = 10


@dataclass(frozen=True)
class Checkpoint:
    """Weights saved during training.

    Parameters
    ----------
    path : Path
        State dict.
    learning_rate : float
        Of the steps before it: the weight of this checkpoint's contribution.
    """

    path: Path
    learning_rate: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fuxictr-mm influence``."""
    add_examples(
        parser,
        "fuxictr-mm influence --expid DIN_MM_tiny",
        "fuxictr-mm influence --expid DIN_MM_tiny --drop-worst 5 --test_data data/tiny_mm/test_labelled.parquet",
        "fuxictr-mm influence --expid DIN_MM_tiny --out rows.parquet --json > influence.json",
    )
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of the configuration (default: this one)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--data_root", metavar="DIR", help="replaces the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--seed", type=int, help="replaces the experiment's seed")
    parser.add_argument("--test_data", metavar="FILE", help="replaces the dataset's test_data")
    parser.add_argument(
        "--checkpoints",
        "--weights",
        nargs="+",
        metavar="FILE",
        help="weights to compute influence with, as run_expid.py saves them (default: train, keep every epoch's)",
    )
    parser.add_argument("--plain-loss", action="store_true", help="validation loss without recalibrating its intercept")
    parser.add_argument("--layer", metavar="NAME", help="the model's last nn.Linear (default: detected)")
    parser.add_argument("--out", metavar="FILE", help="Parquet file of the ranking (default: next to the log)")
    parser.add_argument(
        "--drop-worst", type=float, metavar="P", help="train again without the worst P percent, and compare"
    )
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Rank the training examples, write and print the ranking; train without the worst on request."""
    import pyarrow.parquet as pq

    from fuxictr_mm.logs import set_up_logging

    if not args.quiet:
        set_up_logging()
    experiment, out = _prepare(args)
    splits = {"train": True, "valid": True, **({"test": False} if experiment.config.dataset.test_data else {})}
    dataset = experiment.load_dataset(splits, args.checkpoints[0] if args.checkpoints else None)
    num_worst = None if args.drop_worst is None else number_of_worst(dataset, args.drop_worst)
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fuxictr-mm-influence-") as folder:
        if args.checkpoints:
            checkpoints = [Checkpoint(Path(path), experiment.config.learning_rate) for path in args.checkpoints]
        else:
            checkpoints, metrics["before"] = train_keeping_checkpoints(experiment, dataset, Path(folder))
        influence = rank_by_influence(experiment, dataset, checkpoints, args.layer, not args.plain_loss)
        config = experiment.config.dataset
        separator = config.sep if config.data_format == "csv" else None
        ranking = make_ranking(str(config.train_data), config.label_names[0], influence, config.roles, separator)
        write_beside(out, lambda stream: pq.write_table(ranking, stream))
        if num_worst is not None:
            if "before" not in metrics:
                _, metrics["before"] = train_keeping_checkpoints(experiment, dataset, Path(folder))
            worst = np.argsort(ranking["rank"].to_numpy())[:num_worst]
            _, metrics["after"] = train_keeping_checkpoints(experiment, without(dataset, worst), Path(folder))
    document = {
        "expid": args.expid,
        "rows": ranking.num_rows,
        "checkpoints": len(checkpoints),
        "out": str(out),
        "groups": summarize(ranking, experiment.config.dataset.roles.target),
        "worst": extremes(ranking, best=False),
        "best": extremes(ranking, best=True),
    }
    if num_worst is not None:
        document |= {"dropped": num_worst, "metrics": metrics}
    show(args, document, as_text(document))


def _prepare(args: argparse.Namespace) -> tuple[Experiment, Path]:
    """Check the arguments; return the experiment and the file for the ranking."""
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.runtime import device_of, set_precision

    if is_one_of_several():
        raise ConfigError("influence runs in one process; start it without torchrun")
    for path in args.checkpoints or []:
        if not Path(path).is_file():
            raise MissingFileError(f"--checkpoints {path}: no such file; give files that run_expid.py wrote")
    if args.drop_worst is not None and not 0 < args.drop_worst < 100:
        raise ConfigError(f"--drop-worst is {args.drop_worst:g}, expected a percentage above 0 and below 100")
    settings = {"seed": args.seed, "test_data": args.test_data, "verbose": 0 if args.quiet else None}
    experiment = Experiment.load(
        args.expid,
        args.config,
        gpu=args.gpu,
        data_root=args.data_root,
        model_zoo=args.model_zoo,
        **{key: value for key, value in settings.items() if value is not None},
    )
    out = Path(args.out) if args.out else experiment.paths.log.with_suffix(".influence.parquet")
    data = experiment.config.dataset
    if experiment.batch_format(experiment.model_class) == "flat":
        data.require_items("influence")
    data.require_one_label("influence")
    inputs = [*data.item_files, data.train_data, data.valid_data, data.test_data, *(args.checkpoints or [])]
    check_outputs([out], inputs, overwrite=True)
    set_precision(experiment.config.precision, device_of(experiment.config.gpu))
    return experiment, out


def influence_on_validation(
    model: Any,
    checkpoints: Sequence[Checkpoint],
    train: Any,
    valid: Any,
    layer: str | None = None,
    recalibrate: bool = True,
    verbose: int = 1,
) -> np.ndarray:
    r"""Return by how much each training example lowers the mean validation loss: TracInCP on the last layer.

    Pruthi, Liu, Kale, Sundararajan: Estimating Training Data Influence by Tracing Gradient Descent. NeurIPS 2020,
    https://arxiv.org/abs/2002.08484

    For a training example t, checkpoints c with learning rates :math:`\eta_c`, and validation examples v::

        influence(t) = sum_c eta_c <grad loss_c(t), grad mean_v loss_c(v)>
                     = sum_c eta_c d_t <x_t, mean_v d_v x_v>

    with gradients by weight and bias of the last layer: its inputs x times the slope d of the loss by the logit,
    :math:`p - y` for cross-entropy. It is the decrease of the validation loss by one step of gradient descent on t, to
    first order. A checkpoint takes one pass over the training examples; validation inputs ``(V, D)`` stay in memory.

    If the click rate differs between training and validation examples, g mostly corrects that, and ranks follow the
    label. With ``recalibrate`` the validation loss is :math:`\min_a mean_v loss(logit_v + a)`: the intercept is fitted
    to the validation examples. AUC and gAUC do not depend on an intercept either.

    Parameters
    ----------
    model : BaseModel
        Ends in an ``nn.Linear`` whose output is the logit. It is left in eval mode, with the last checkpoint's weights.
    checkpoints : sequence of Checkpoint
        At least one.
    train, valid : loader
        Batches with labels, in the order of the examples.
    layer : str, optional
        Name of the last layer; detected by default.
    recalibrate : bool
        False for the loss as it is.
    verbose : int
        0 turns progress bars off.

    Returns
    -------
    ndarray
        ``(R,)`` float32 in the order of ``train``, in units of the loss. Positive: the example lowers the validation
        loss (a proponent); negative: it raises it (an opponent).

    Raises
    ------
    ConfigError
        The model has no such layer, or a loss other than cross-entropy or squared error.
    DataError
        An influence is not finite.
    """
    import torch

    slope = loss_slope(model)
    if not checkpoints:
        raise ConfigError("no checkpoints; influence needs at least one")
    model.eval()
    total: Tensor | float = 0.0
    with _frozen(model):
        for number, checkpoint in enumerate(checkpoints, start=1):
            model.load_weights(checkpoint.path)
            if number == 1:
                layer = find_last_layer(model, next(iter(valid)), layer)
            last = model.get_submodule(str(layer))
            weight = torch.cat([parameter.detach().flatten() for parameter in last.parameters()])
            title = f"checkpoint {number}/{len(checkpoints)}"
            inputs, labels = map(torch.cat, zip(*_last_inputs(model, last, valid, title, verbose), strict=True))
            shift = _best_shift(inputs @ weight, labels, slope) if recalibrate else 0.0
            slopes = slope(inputs @ weight + shift, labels)
            gradient = (slopes.double() @ inputs.double() / len(labels)).to(inputs.dtype)
            scores = [
                slope(inputs @ weight, labels) * (inputs @ gradient)
                for inputs, labels in _last_inputs(model, last, train, title, verbose)
            ]
            total = total + checkpoint.learning_rate * torch.cat(scores)
    assert isinstance(total, torch.Tensor)
    if not bool(total.isfinite().all()):
        row = int((~total.isfinite()).nonzero()[0])
        raise DataError(f"the influence of training row {row} is {float(total[row])}; the checkpoints are damaged")
    return total.cpu().numpy()


def loss_slope(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that gives the derivative of the loss by the logit from logits and labels ``(B,)``.

    Raises
    ------
    ConfigError
        The model trains on a loss other than cross-entropy or squared error.
    """
    from torch import nn

    from fuxictr_mm.model import LOSSES

    regression = isinstance(model.output_activation, nn.Identity)
    known = LOSSES["regression" if regression else "binary_classification"]
    function = getattr(model, "loss_fn", None)  # a MultimodalModel has none, and trains on no other loss
    name = known[0] if function is None else getattr(function, "__name__", type(function).__name__)
    if name not in known:
        raise ConfigError(f"{model.model_id}: loss is {name}; influence is computed for loss: {known[0]}")
    if regression:
        return lambda logit, label: 2 * (logit - label)
    return lambda logit, label: logit.sigmoid() - label


def find_last_layer(model: Any, batch: Any, name: str | None = None) -> str:
    """Return the name of the ``nn.Linear`` whose output is the logit, or check that the one named is.

    Parameters
    ----------
    model : BaseModel
        In eval mode.
    batch : Any
        Input of the model.
    name : str, optional
        The layer to check.

    Raises
    ------
    ConfigError
        There is none.
    """
    from torch import nn

    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 1}
    there = ", ".join(linears) or "none"
    if name is not None and name not in linears:
        raise ConfigError(
            f"--layer {name}: {model.model_id} has no such nn.Linear of one output{nearest(name, linears)} "
            f"(there are: {there})"
        )
    for candidate in [name] if name is not None else reversed(linears):
        if last_layer_inputs(model, linears[candidate], batch) is not None:
            return candidate
    tried = f"the output of --layer {name}" if name is not None else f"the output of no nn.Linear (tried: {there})"
    raise ConfigError(f"{model.model_id}: {tried} is the model's logit; influence needs a model that ends in one")


def last_layer_inputs(model: Any, layer: nn.Linear, batch: Any) -> Tensor | None:
    """Return the inputs of the last layer for a batch, in the order of the batch.

    Parameters
    ----------
    model : BaseModel
        In eval mode, its parameters frozen: only what follows the layer is recorded for autograd.
    layer : nn.Linear
        One output.
    batch : Any
        Input of the model.

    Returns
    -------
    Tensor or None
        ``(B, D)``, the last column 1 where the layer has a bias; None if the layer's output is not the logit.
    """
    import torch

    from fuxictr_mm.data.batch import num_rows

    calls: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        calls.append((inputs[0].detach(), leaf))
        return leaf.clone()  # a model may add to it in place

    handle = layer.register_forward_hook(keep)
    try:
        answer = model.forward(batch)
    finally:
        handle.remove()
    rows = num_rows(batch)
    if len(calls) != 1 or calls[0][1].numel() != rows:
        return None
    inputs, output = calls[0]
    order = _order_in_batch(model, answer, output)
    if order is None:
        return None
    inputs = inputs.reshape(rows, -1).index_select(0, order)
    return inputs if layer.bias is None else torch.cat([inputs, inputs.new_ones(rows, 1)], dim=1)


def _order_in_batch(model: Any, answer: Mapping[str, Tensor], output: Tensor) -> Tensor | None:
    """Return the index in the layer's output of each example of the batch ``(B,)``, None if that is not the logit.

    A model may compute a batch in another order; the gradient of the logits by the output tells which.
    """
    import torch

    flat = output.detach().reshape(-1)
    rows = torch.arange(flat.numel(), device=flat.device)
    if "logit" not in answer:
        same = torch.allclose(model.output_activation(flat), answer["y_pred"].detach().reshape(-1), atol=1e-6)
        return rows if same else None
    logit = answer["logit"].reshape(-1)
    if not logit.requires_grad:
        return None
    # The gradient of sum_i i logit_i is, at each position of the output, the index i of its logit.
    index = torch.autograd.grad(logit @ rows.to(logit.dtype), output, allow_unused=True)[0]
    if index is None or not torch.equal(index.reshape(-1).sort().values, rows.to(index.dtype)):
        return None
    order = index.reshape(-1).argsort()
    return order if torch.allclose(flat[order], logit.detach(), atol=1e-6) else None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Record no gradients of the model's parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _last_inputs(
    model: Any, layer: nn.Linear, loader: Any, title: str, verbose: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the last layer's inputs ``(B, D)`` and the labels ``(B,)`` of each batch."""
    with progress_bar(loader, title, verbose) as bar:
        for batch in bar:
            inputs = last_layer_inputs(model, layer, batch)
            if inputs is None:
                raise ConfigError(f"{model.model_id}: the output of its last layer is not always its logit")
            yield inputs, model.get_labels(batch).reshape(-1).to(inputs.dtype)


def _best_shift(logits: Tensor, labels: Tensor, slope: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the intercept that, added to all logits ``(V,)``, gives the lowest loss: a bisection of its slope."""
    logits, labels = logits.double(), labels.double()
    high = float(logits.abs().max() + labels.abs().max()) + math.log(len(logits)) + 1
    low = -high
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(logits + middle, labels).sum() > 0 else (middle, high)
    return (low + high) / 2


def rank_by_influence(
    experiment: Experiment,
    dataset: Dataset,
    checkpoints: Sequence[Checkpoint],
    layer: str | None = None,
    recalibrate: bool = True,
) -> np.ndarray:
    """Return the influence ``(R,)`` of every training example, in the order of the file; in float32, without dropout.

    See ``influence_on_validation``.
    """
    # Indices pass through the model's logits, and bf16 holds none above 256 exactly.
    settings = experiment.config.to_dict()
    plain = {key: value for key, value in {"precision": "fp32", "compile": False}.items() if key in settings}
    experiment = experiment.with_settings(**plain)
    model = _build(experiment, dataset)
    train, valid = (experiment.make_loader(dataset.splits[split], model) for split in ("train", "valid"))
    return influence_on_validation(model, checkpoints, train, valid, layer, recalibrate, experiment.config.verbose)


def train_keeping_checkpoints(
    experiment: Experiment, dataset: Dataset, folder: Path
) -> tuple[list[Checkpoint], dict[str, dict[str, float]]]:
    """Train an experiment as ``Experiment.fit`` does, but keep the weights of every evaluation in a folder.

    Parameters
    ----------
    experiment : Experiment
        The experiment.
    dataset : Dataset
        With ``train`` and ``valid``; ``test`` is evaluated where it has labels.
    folder : Path
        Nothing is written elsewhere.

    Returns
    -------
    checkpoints : list of Checkpoint
        One per evaluation up to the best, with the learning rate until then.
    metrics : dict
        Of the best weights, ``valid`` and ``test``.
    """
    from fuxictr_mm.training import loop

    experiment = experiment.with_settings(model_root=str(folder))
    config, splits = experiment.config, dataset.splits
    model = _build(experiment, dataset)
    train = experiment.make_loader(splits["train"], model, shuffle=config.shuffle, training=True)
    valid = experiment.make_loader(splits["valid"], model)
    keeper = _CheckpointKeeper(model, valid, folder)
    history = loop.fit(model, train, config.epochs, keeper, config.max_gradient_norm)
    if config.save_best_only:
        # Steps after the best weights have no part in the model.
        values = [model._monitor.get_value(entry) for entry in history]
        del keeper.kept[values.index(model._best_metric) + 1 :]
    metrics = {"valid": loop.evaluate(model, valid, config.metrics)}
    # A label of one value is a placeholder.
    if "test" in splits and any(len(values) > 1 for values in dataset.summaries["test"].labels):
        metrics["test"] = loop.evaluate(model, experiment.make_loader(splits["test"], model), config.metrics)
    return keeper.kept, metrics


class _CheckpointKeeper:
    """The validation loader; every pass over it first saves the weights that it evaluates."""

    def __init__(self, model: Any, valid: Any, folder: Path) -> None:
        self.model = model
        self.valid = valid
        self.folder = folder
        self.kept: list[Checkpoint] = []

    def __len__(self) -> int:
        return len(self.valid)

    def __iter__(self) -> Iterator[Any]:
        path = self.folder / f"{len(self.kept)}.checkpoint"
        self.model.save_weights(path)
        self.kept.append(Checkpoint(path, float(self.model.optimizer.param_groups[0]["lr"])))
        return iter(self.valid)


def _build(experiment: Experiment, dataset: Dataset) -> Any:
    """Build the model with its own copy of the feature map, so that one dataset serves several models."""
    from fuxictr.pytorch.torch_utils import seed_everything

    seed_everything(experiment.config.seed)
    return experiment.build_model(replace(dataset, feature_map=copy.deepcopy(dataset.feature_map)))


def number_of_worst(dataset: Dataset, percent: float) -> int:
    """Return how many training examples a percentage is.

    Raises
    ------
    ConfigError
        None, or the split is streamed from disk.
    """
    from fuxictr_mm.data.interactions import InteractionTable

    table = dataset.splits["train"]
    if not isinstance(table, InteractionTable):
        raise ConfigError("--drop-worst: train is streamed from disk; set resident: True in dataset_config.yaml")
    number = int(len(table) * percent / 100)
    if number < 1:
        raise ConfigError(f"--drop-worst {percent:g}: is less than one of {len(table)} examples; raise it")
    return number


def without(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """Return a dataset without the training examples of these indices; ``train`` is in memory.

    Raises
    ------
    DataError
        Only one class is left.
    """
    import torch

    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.data.loaders import gather

    table = dataset.splits["train"]
    assert isinstance(table, InteractionTable)
    kept = torch.ones(len(table), dtype=torch.bool)
    kept[torch.from_numpy(rows)] = False
    batch = gather(table, kept.nonzero().squeeze(1).to(table.target.device))
    assert batch.label is not None
    if len(batch.label.unique()) < 2:
        raise DataError(f"--drop-worst: label is {batch.label[0]:g} in all {len(batch)} examples left; drop fewer")
    history = batch.history
    smaller = InteractionTable(
        batch.context, batch.target, history.values, history.offsets, batch.label, batch.group, table.source
    )
    return replace(dataset, splits={**dataset.splits, "train": smaller})


def make_ranking(
    path: str | os.PathLike[str],
    label: str,
    influence: np.ndarray,
    roles: Roles | None = None,
    separator: str | None = None,
) -> pa.Table:
    """Return ``row``, ``user_id`` (if the file has it), ``item_id``, ``label``, ``influence`` and ``rank``, by row.

    User and item are named as ``roles`` say, and are as in the file: Parquet or, with a ``separator``, CSV. Rank 1 has
    the lowest influence; of equals the first example.
    """
    import pyarrow as pa

    from fuxictr_mm.data import parquet

    roles = roles or Roles()
    wanted = [roles.user, roles.target, label]
    if separator is not None:
        rows = _read_csv(parquet.part_files(path, ".csv"), wanted, label, separator)
    else:
        parts = []
        for file in parquet.part_files(path):
            present = parquet.open_parquet(file).schema_arrow.names
            columns = [name for name in wanted if name != roles.user or name in present]
            parts += [pa.Table.from_batches([batch]).select(columns) for _, batch in parquet.read_chunks(file, columns)]
        rows = pa.concat_tables(parts, promote_options="permissive")
    rows = rows.rename_columns(["label" if name == label else name for name in rows.column_names])
    rank = np.empty(len(influence), dtype=np.int64)
    rank[np.argsort(influence, kind="stable")] = np.arange(1, len(influence) + 1)
    rows = rows.add_column(0, "row", pa.array(np.arange(rows.num_rows)))
    return rows.append_column("influence", pa.array(influence)).append_column("rank", pa.array(rank))


def _read_csv(files: Sequence[Path], wanted: Sequence[str], label: str, separator: str) -> pa.Table:
    """Return those of the columns that the files have, as texts, and the label as a number."""
    import polars as pl

    frames = [pl.scan_csv(file, separator=separator, infer_schema=False) for file in files]
    columns = [name for name in wanted if name in frames[0].collect_schema()]
    return (
        pl.concat(frame.select(columns) for frame in frames)
        .with_columns(pl.col(label).cast(pl.Float64))
        .collect()
        .to_arrow()
    )


def summarize(ranking: pa.Table, item_column: str = "item_id") -> list[dict[str, Any]]:
    """Summarize all examples, those of each label, and quarters by how often their item occurs.

    Returns
    -------
    list of dict
        ``name``, ``rows`` (how many), ``mean`` influence, ``negative`` (fraction below 0), and ``among_worst``
        (fraction among the worst 1 % of all; 0.01 if they were spread evenly).
    """
    influence, rank = ranking["influence"].to_numpy(), ranking["rank"].to_numpy()
    label, item = ranking["label"].to_numpy(), ranking[item_column].combine_chunks().dictionary_encode().indices
    worst = rank <= max(1, len(rank) // 100)
    members = {"all rows": np.ones(len(rank), dtype=bool)}
    values = np.unique(label)
    if len(values) <= 2:
        members |= {f"label {value:g}": label == value for value in values}
    _, index, counts = np.unique(item, return_inverse=True, return_counts=True)
    popularity = counts[index]
    bounds = np.unique(np.quantile(popularity, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    for position, (low, high) in enumerate(pairwise(bounds)):
        first = low + (position > 0)
        name = f"item in {first} to {high} rows" if first < high else f"item in {high} rows"
        members[name] = (popularity >= first) & (popularity <= high)
    return [
        {
            "name": name,
            "rows": int(chosen.sum()),
            "mean": float(influence[chosen].mean()),
            "negative": float((influence[chosen] < 0).mean()),
            "among_worst": float(worst[chosen].mean()),
        }
        for name, chosen in members.items()
    ]


def extremes(ranking: pa.Table, best: bool) -> list[dict[str, Any]]:
    """Return the ``SHOWN`` examples of lowest influence, or of highest, the most extreme first."""
    rank = ranking["rank"].to_numpy()
    return ranking.take(np.argsort(-rank if best else rank)[:SHOWN]).to_pylist()


def as_text(document: Mapping[str, Any]) -> str:
    """Return the JSON document for a terminal."""
    header = ["", "rows", "mean influence", "negative", "in worst 1 %"]
    groups = [
        [g["name"], g["rows"], f"{g['mean']:.3e}", f"{g['negative']:.1%}", f"{g['among_worst']:.2%}"]
        for g in document["groups"]
    ]
    parts = [
        f"\n{format_table(header, groups, right=header[1:])}",
        f"worst rows, which raise the validation loss most:\n{_examples_table(document['worst'])}",
        f"best rows, which lower it most:\n{_examples_table(document['best'])}",
        f"all {document['rows']} rows: {document['out']}",
    ]
    if "metrics" in document:
        parts.append(_metrics_text(document["metrics"], document["dropped"], document["rows"]))
    return "\n\n".join(parts)


def _examples_table(examples: Sequence[Mapping[str, Any]]) -> str:
    header = list(examples[0])
    formats = {"influence": ".3e", "label": "g"}
    rows = [[format(example[name], formats.get(name, "")) for name in header] for example in examples]
    return format_table(header, rows, right=header)


def _metrics_text(metrics: Mapping[str, Any], dropped: int, rows: int) -> str:
    """Return the metrics before and after as a table, and how to read them."""
    header = ["", "before", "after", "change"]
    cells = []
    for split, before in metrics["before"].items():
        for name, value in before.items():
            after = metrics["after"][split][name]
            cells.append([f"{split} {name}", f"{value:.6f}", f"{after:.6f}", f"{after - value:+.6f}"])
    lines = [
        format_table(header, cells, right=header[1:]),
        f"trained without the worst {dropped} of {rows} rows; no file of the dataset was changed",
        "valid is optimistic afterwards, because its rows selected what was dropped; use test and several seeds",
    ]
    if "test" not in metrics["before"]:
        lines.append("test has no labels: give a file with labels by --test_data FILE")
    return "\n".join(lines)
