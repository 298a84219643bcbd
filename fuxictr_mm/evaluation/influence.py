"""Influence of training rows on the validation loss, by the gradients of the model's last layer.

Shape letters: B rows of a batch, R training rows, V validation rows, D inputs of the last layer, the constant input of
its bias among them.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from fuxictr_mm import experiment
from fuxictr_mm.cli import add_examples, add_output_options, show
from fuxictr_mm.config import nearest
from fuxictr_mm.data import parquet
from fuxictr_mm.data.batch import num_rows
from fuxictr_mm.data.dataset import Dataset
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.data.loaders import gather
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.files import write_beside
from fuxictr_mm.model import LOSSES
from fuxictr_mm.runtime import is_one_of_several
from fuxictr_mm.terminal import progress_bar
from fuxictr_mm.training import loop


@dataclass(frozen=True)
class Checkpoint:
    """Weights along training.

    Parameters
    ----------
    path : Path
        State dict.
    learning_rate : float
        Of the steps before it; it weighs what this checkpoint contributes.
    """

    path: Path
    learning_rate: float


def influence_on_validation(
    model: Any,
    checkpoints: Sequence[Checkpoint],
    train: Any,
    valid: Any,
    layer: str | None = None,
    recalibrate: bool = True,
    verbose: int = 1,
) -> np.ndarray:
    r"""Return by how much each training row lowers the mean validation loss: TracInCP on the last layer.

    For training row :math:`t`, checkpoints :math:`c` with learning rates :math:`\eta_c`, validation rows :math:`V`::

        influence(t) = sum_c eta_c <grad loss_c(t), grad mean_{v in V} loss_c(v)>

    with gradients by weight and bias of the last layer: what one step of gradient descent on row :math:`t` would take
    off the validation loss, to first order. The last layer is linear, so a row's gradient is its loss's derivative by
    the logit times the layer's inputs; captum's ``TracInCPFast`` multiplies these. The validation rows enter as the one
    vector that their gradients add up to, so a checkpoint costs one pass over the training rows and 4 bytes a row.

    Where training and validation rows differ in their share of clicks, the mean gradient is little but the way to the
    other share: every click is then harmful, or every one useful, and ranks say no more. With ``recalibrate`` the
    validation loss is :math:`\min_a mean_v loss(logit_v + a)`, as if the intercept were fitted to the validation rows;
    its gradient is that of the loss at the best :math:`a`. AUC and gAUC do not depend on an intercept either.

    Parameters
    ----------
    model : BaseModel
        Ends in an ``nn.Linear`` whose output is the logit. It is left in eval mode, with the last checkpoint's weights.
    checkpoints : sequence of Checkpoint
        At least one.
    train, valid : loader
        Batches with labels, in the order of the rows.
    layer : str, optional
        Name of the last layer; found by itself by default.
    recalibrate : bool
        False for the loss as it is.
    verbose : int
        0 turns progress bars off.

    Returns
    -------
    ndarray
        ``(R,)`` float32 in the order of ``train``, in units of the loss. Positive: the row lowers the validation loss
        (a proponent); negative: it raises it (an opponent).

    Raises
    ------
    ConfigError
        The model has no such layer, or a loss other than cross-entropy or squared error.
    DataError
        An influence is not finite.

    References
    ----------
    Pruthi, Liu, Kale, Sundararajan: Estimating Training Data Influence by Tracing Gradient Descent. NeurIPS 2020,
    https://arxiv.org/abs/2002.08484
    """
    loss = last_layer_loss(model)
    model.eval()
    total: Tensor | None = None
    with _frozen(model):
        for number, checkpoint in enumerate(checkpoints, start=1):
            model.load_weights(checkpoint.path)
            if total is None:
                layer = find_last_layer(model, next(iter(valid)), layer)
            last = model.get_submodule(str(layer))
            title = f"checkpoint {number}/{len(checkpoints)}"
            head = _head(last)
            validation = _LastInputs(model, last, valid, f"{title}: validation", verbose)
            shift = _best_shift(head, loss, validation) if recalibrate else 0.0
            gradient = _mean_gradient(head, loss, validation, shift)
            rows = _LastInputs(model, last, train, f"{title}: training rows", verbose)
            scores = _captum_influence(head, loss, rows, gradient, checkpoint.learning_rate)
            total = scores if total is None else total + scores
    if total is None:
        raise ConfigError("no checkpoints; influence needs at least one")
    if not bool(total.isfinite().all()):
        row = int((~total.isfinite()).nonzero()[0])
        raise DataError(f"the influence of training row {row} is {float(total[row])}; the checkpoints are damaged")
    return total.cpu().numpy()


def last_layer_loss(model: Any) -> nn.Module:
    """Return the loss of the logits, summed over rows.

    Raises
    ------
    ConfigError
        The model trains on another loss.
    """
    regression = isinstance(model.output_activation, nn.Identity)
    known = LOSSES["regression" if regression else "binary_classification"]
    function = getattr(model, "loss_fn", None)  # a MultimodalModel has none, and trains on no other loss
    name = known[0] if function is None else getattr(function, "__name__", type(function).__name__)
    if name not in known:
        raise ConfigError(f"{model.model_id}: loss is {name}; influence is computed for loss: {known[0]}")
    return nn.MSELoss(reduction="sum") if regression else nn.BCEWithLogitsLoss(reduction="sum")


def find_last_layer(model: Any, batch: Any, name: str | None = None) -> str:
    """Return the name of the ``nn.Linear`` whose output is the logit, or check the one that is named.

    Parameters
    ----------
    model : BaseModel
        In eval mode.
    batch : Any
        What the model takes; B rows.
    name : str, optional
        The layer to check.

    Raises
    ------
    ConfigError
        There is none.
    """
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
    tried = f"the output of --layer {name}" if name is not None else f"that of no nn.Linear (tried: {there})"
    raise ConfigError(f"{model.model_id}: {tried} is the model's logit; influence needs a model that ends in one")


def last_layer_inputs(model: Any, layer: nn.Linear, batch: Any) -> Tensor | None:
    """Return what goes into the last layer, a row of it for each row of the batch.

    A model may compute its rows in another order than the batch's; where it returns its logits, the order is told by
    what each logit depends on.

    Parameters
    ----------
    model : BaseModel
        In eval mode, its parameters frozen: nothing is remembered for gradients but what follows the layer.
    layer : nn.Linear
        One output.
    batch : Any
        What the model takes; B rows.

    Returns
    -------
    Tensor or None
        ``(B, D)``, the last column 1 where the layer has a bias; None if the layer's output is not the logit.
    """
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
    order = _order_of_rows(model, answer, output)
    if order is None:
        return None
    inputs = inputs.reshape(rows, -1).index_select(0, order)
    return inputs if layer.bias is None else torch.cat([inputs, inputs.new_ones(rows, 1)], dim=1)


def _order_of_rows(model: Any, answer: Mapping[str, Tensor], output: Tensor) -> Tensor | None:
    """Return where each row of the batch stands in the layer's output ``(B,)``, None if that is not the logit."""
    flat = output.detach().reshape(-1)
    rows = torch.arange(flat.numel(), device=flat.device)
    if "logit" not in answer:
        same = torch.allclose(model.output_activation(flat), answer["y_pred"].detach().reshape(-1), atol=1e-6)
        return rows if same else None
    logit = answer["logit"].reshape(-1)
    if not logit.requires_grad:
        return None
    # d/d output of sum_i i logit_i is, at each place of the output, the number of the row that it is the logit of.
    number_of = torch.autograd.grad(logit @ rows.to(logit.dtype), output, allow_unused=True)[0]
    if number_of is None or not torch.equal(number_of.reshape(-1).sort().values, rows.to(number_of.dtype)):
        return None
    order = number_of.reshape(-1).argsort()
    return order if torch.allclose(flat[order], logit.detach(), atol=1e-6) else None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Take gradients by no parameter of the model."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _LastInputs(IterableDataset):
    """Batches of the last layer's inputs ``(B, D)`` and labels ``(B, 1)``, made as they are asked for."""

    def __init__(self, model: Any, layer: nn.Linear, loader: Any, title: str, verbose: int) -> None:
        self.model = model
        self.layer = layer
        self.loader = loader
        self.title = title
        self.verbose = verbose

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with progress_bar(self.loader, self.title, self.verbose) as bar:
            for batch in bar:
                inputs = last_layer_inputs(self.model, self.layer, batch)
                if inputs is None:
                    raise ConfigError(f"{self.model.model_id}: the output of its last layer is not always its logit")
                yield inputs, self.model.get_labels(batch).reshape(-1, 1).to(inputs.dtype)


class _Weighted(nn.Module):
    """The output times a number: a loss whose derivative by the output is that number."""

    reduction = "sum"

    def forward(self, output: Tensor, number: Tensor) -> Tensor:
        return (output * number).sum()


def _head(layer: nn.Linear) -> nn.Linear:
    """Return the layer with its bias as one more weight, which TracInCPFast would leave out otherwise."""
    weight = layer.weight.detach()
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.detach().reshape(1, 1)], dim=1)
    head = nn.Linear(weight.shape[1], 1, bias=False, device=weight.device, dtype=weight.dtype)
    head.load_state_dict({"weight": weight})
    return head


def _best_shift(head: nn.Linear, loss: nn.Module, batches: _LastInputs) -> float:
    """Return what to add to all logits for the lowest loss; the loss is convex, its slope is bisected."""
    pairs = [(head(inputs).detach().double(), labels.double()) for inputs, labels in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    high = float(logits.abs().max() + labels.abs().max()) + math.log(len(logits)) + 1
    low = -high
    for _ in range(64):
        middle = (low + high) / 2
        shift = torch.tensor(middle, dtype=torch.float64, device=logits.device, requires_grad=True)
        slope = torch.autograd.grad(loss(logits + shift, labels), shift)[0]
        low, high = (low, middle) if slope > 0 else (middle, high)
    return (low + high) / 2


def _mean_gradient(head: nn.Linear, loss: nn.Module, batches: _LastInputs, shift: float) -> Tensor:
    """Return the gradient ``(1, D)`` of the mean loss, its logits shifted, by the head's weights; summed in float64."""
    total = torch.zeros_like(head.weight, dtype=torch.float64)
    rows = 0
    for inputs, labels in batches:
        total += torch.autograd.grad(loss(head(inputs) + shift, labels), head.weight)[0]
        rows += len(inputs)
    if rows == 0:
        raise DataError("validation: no rows")
    return (total / rows).to(head.weight.dtype)


def _captum_influence(
    head: nn.Linear, loss: nn.Module, batches: _LastInputs, gradient: Tensor, learning_rate: float
) -> Tensor:
    """Return ``(R,)`` what a checkpoint contributes.

    To captum, which multiplies every training row with every validation row, all validation rows are one: an imagined
    row with their mean gradient for inputs and a loss of derivative 1. All pairs would take R numbers per validation
    row, and as many passes over the validation rows as there are training batches.
    """
    try:
        from captum.influence import TracInCPFast
    except ImportError:
        raise UserError('influence is computed by captum: pip install "fuxictr-mm[influence]"') from None
    tracin = TracInCPFast(
        head,
        head,
        DataLoader(batches, batch_size=None),
        checkpoints=[learning_rate],
        checkpoints_load_func=lambda _, rate: rate,  # the head holds the checkpoint's weights already
        loss_fn=loss,
        test_loss_fn=_Weighted(),
    )
    return tracin.influence((gradient, torch.ones_like(gradient[:, :1])))[0].detach()


logger = logging.getLogger(__name__)


SHOWN = 10


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
    parser.add_argument("--data_root", metavar="DIR", help="take the place of the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--seed", type=int, help="take the place of the experiment's seed")
    parser.add_argument("--test_data", metavar="FILE", help="take the place of the dataset's test_data")
    parser.add_argument(
        "--checkpoints",
        "--weights",
        nargs="+",
        metavar="FILE",
        help="weights to compute influence with, as run_expid.py leaves them (default: train, keep every epoch's)",
    )
    parser.add_argument(
        "--plain-loss", action="store_true", help="take the validation loss as it is, its intercept not fitted anew"
    )
    parser.add_argument("--layer", metavar="NAME", help="the model's last nn.Linear (default: found by itself)")
    parser.add_argument("--out", metavar="FILE", help="Parquet file of all rows (default: beside the experiment's log)")
    parser.add_argument(
        "--drop-worst", type=float, metavar="P", help="train again without the worst P percent, and compare"
    )
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Rank the rows, write and print them, train without the worst if asked to."""
    import numpy as np
    import pyarrow as pa

    from fuxictr_mm import experiment
    from fuxictr_mm.data.dataset import load_dataset
    from fuxictr_mm.files import check_outputs
    from fuxictr_mm.runtime import device_of, set_precision

    if is_one_of_several():
        raise ConfigError("influence runs in one process; start it without torchrun")
    for path in args.checkpoints or []:
        if not Path(path).is_file():
            raise MissingFileError(f"--checkpoints {path}: no such file; give files that run_expid.py wrote")
    if args.drop_worst is not None and not 0 < args.drop_worst < 100:
        raise ConfigError(f"--drop-worst is {args.drop_worst:g}, expected percents above 0 and below 100")
    if not args.quiet:
        experiment.set_up_logging()
    overrides = {"seed": args.seed, "test_data": args.test_data, "verbose": 0 if args.quiet else None}
    params, model_class = experiment.read_params(
        args.config,
        args.expid,
        gpu=args.gpu,
        data_root=args.data_root,
        model_zoo=args.model_zoo,
        overrides={key: value for key, value in overrides.items() if value is not None},
    )
    out = Path(args.out) if args.out else experiment.log_path(params).with_suffix(".influence.parquet")
    data = [params.get(f"{split}_data") for split in ("train", "valid", "test")]
    items = [params["item_info"]] if isinstance(params["item_info"], str) else params["item_info"]
    check_outputs([out], [*data, *items, *(args.checkpoints or [])], overwrite=True)
    set_precision(params.get("precision", "fp32"), device_of(params["gpu"]))
    splits = {"train": True, "valid": True, **({"test": False} if params.get("test_data") else {})}
    dataset = load_dataset(params, splits)
    if args.drop_worst is not None:
        number_of_worst(dataset, args.drop_worst)
    with tempfile.TemporaryDirectory(prefix="fuxictr-mm-influence-") as folder:
        metrics: dict[str, Any] = {}
        if args.checkpoints:
            checkpoints = [Checkpoint(Path(path), params["learning_rate"]) for path in args.checkpoints]
        else:
            checkpoints, metrics["before"] = train_keeping_checkpoints(params, model_class, dataset, Path(folder))
        influence = rank_by_influence(params, model_class, dataset, checkpoints, args.layer, not args.plain_loss)
        ranking = read_rows(params["train_data"], params["label_col"]["name"])
        ranking = ranking.append_column("influence", pa.array(influence))
        ranking = ranking.append_column("rank", pa.array(rank_rows(influence)))
        write_ranking(out, ranking)
        groups = summarize(ranking)
        worst, best = (extremes(ranking, SHOWN, best) for best in (False, True))
        summary = [
            f"\n{format_groups(groups)}",
            f"worst rows, which raise the validation loss most:\n{format_rows(worst)}",
            f"best rows, which lower it most:\n{format_rows(best)}",
            f"all {ranking.num_rows} rows: {out}",
        ]
        answer = {"expid": args.expid, "rows": ranking.num_rows, "checkpoints": len(checkpoints), "out": str(out)}
        answer |= {"groups": to_dict(groups), "worst": worst, "best": best}
        if args.drop_worst is not None:
            if "before" not in metrics:
                _, metrics["before"] = train_keeping_checkpoints(params, model_class, dataset, Path(folder))
            dropped = np.argsort(ranking["rank"].to_numpy())[: number_of_worst(dataset, args.drop_worst)]
            metrics["after"] = train_without(params, model_class, dataset, dropped, Path(folder))
            answer |= {"dropped": len(dropped), "metrics": metrics}
            summary.append(_format_comparison(metrics, len(dropped), ranking.num_rows))
    show(args, answer, "\n\n".join(summary))


def _format_comparison(metrics: Mapping[str, Any], dropped: int, rows: int) -> str:
    """Return the metrics before and after as a table, with what they are worth."""
    lines = [f"{'':24}{'before':>10}{'after':>10}{'change':>10}"]
    for split, before in metrics["before"].items():
        for name, value in before.items():
            after = metrics["after"][split][name]
            lines.append(f"{f'{split} {name}':24}{value:10.6f}{after:10.6f}{after - value:+10.6f}")
    lines.append(f"trained without the worst {dropped} of {rows} rows; no file of the dataset was changed")
    lines.append("valid is optimistic after: its rows chose what was dropped; judge by test, and by several seeds")
    if "test" not in metrics["before"]:
        lines.append("test has no labels: name a file that has by --test_data FILE")
    return "\n".join(lines)


USER_ID = "user_id"


@dataclass(frozen=True)
class Group:
    """Training rows that have something in common.

    Parameters
    ----------
    name : str
        What they have in common.
    rows : int
        How many there are.
    mean : float
        Mean influence.
    negative : float
        Share with a negative influence.
    among_worst : float
        Share that is among the worst 1 % of all rows; 0.01 if they were spread evenly.
    """

    name: str
    rows: int
    mean: float
    negative: float
    among_worst: float


def rank_rows(influence: np.ndarray) -> np.ndarray:
    """Return the rank of each row, ``(R,)`` int64: 1 has the lowest influence, of equals the first row.

    >>> rank_rows(np.array([0.5, -2.0, 0.0])).tolist()
    [3, 1, 2]
    """
    ranks = np.empty(len(influence), dtype=np.int64)
    ranks[np.argsort(influence, kind="stable")] = np.arange(1, len(influence) + 1)
    return ranks


def read_rows(path: str | os.PathLike[str], label: str) -> pa.Table:
    """Return ``row``, ``user_id`` (if the file has it), ``item_id`` and ``label`` of all training rows."""
    pieces = []
    for file in parquet.part_files(path):
        present = parquet.open_parquet(file).schema_arrow.names
        columns = [*([USER_ID] if USER_ID in present else []), ITEM_ID, label]
        pieces += [pa.Table.from_batches([batch]).select(columns) for _, batch in parquet.read_chunks(file, columns)]
    rows = pa.concat_tables(pieces, promote_options="permissive")
    rows = rows.rename_columns(["label" if name == label else name for name in rows.column_names])
    return rows.add_column(0, "row", pa.array(np.arange(rows.num_rows)))


def write_ranking(path: str | os.PathLike[str], ranking: pa.Table) -> None:
    """Write the rows with ``influence`` and ``rank`` as Parquet."""
    write_beside(path, lambda stream: pq.write_table(ranking, stream))


def summarize(ranking: pa.Table) -> list[Group]:
    """Return all rows, the rows of each label, and the rows by how often their item occurs among them (quarters)."""
    influence, rank = ranking["influence"].to_numpy(), ranking["rank"].to_numpy()
    label, item = ranking["label"].to_numpy(), ranking[ITEM_ID].to_numpy()
    worst = rank <= max(1, len(rank) // 100)

    def group(name: str, members: np.ndarray) -> Group:
        chosen = influence[members]
        return Group(name, len(chosen), float(chosen.mean()), float((chosen < 0).mean()), float(worst[members].mean()))

    groups = [group("all rows", np.ones(len(rank), dtype=bool))]
    values = np.unique(label)
    if len(values) <= 2:
        groups += [group(f"label {value:g}", label == value) for value in values]
    _, place, counts = np.unique(item, return_inverse=True, return_counts=True)
    popularity = counts[place]
    bounds = np.unique(np.quantile(popularity, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    for position, (low, high) in enumerate(pairwise(bounds)):
        first = low + (position > 0)
        name = f"item in {first} to {high} rows" if first < high else f"item in {high} rows"
        groups.append(group(name, (popularity >= first) & (popularity <= high)))
    return groups


def format_groups(groups: Sequence[Group]) -> str:
    """Return the groups as a table."""
    width = max(len(g.name) for g in groups)
    lines = [f"{'':{width}}  {'rows':>9}  {'mean influence':>14}  {'negative':>8}  {'in worst 1 %':>12}"]
    lines += [
        f"{g.name:{width}}  {g.rows:9d}  {g.mean:14.3e}  {g.negative:8.1%}  {g.among_worst:12.2%}" for g in groups
    ]
    return "\n".join(lines)


def extremes(ranking: pa.Table, number: int, best: bool) -> list[dict[str, Any]]:
    """Return the ``number`` rows of lowest influence, or of highest, the most extreme first."""
    rank = ranking["rank"].to_numpy()
    places = np.argsort(-rank if best else rank)[:number]
    return ranking.take(pa.array(places)).to_pylist()


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table."""
    names = list(rows[0])
    cells = [[f"{row[n]:.3e}" if n == "influence" else f"{row[n]:g}" if n == "label" else str(row[n]) for n in names]
             for row in rows]  # fmt: skip
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in [names, *cells])


def to_dict(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the groups for JSON."""
    return [asdict(g) for g in groups]


def train_keeping_checkpoints(
    params: Mapping[str, Any], model_class: type, dataset: Dataset, folder: Path
) -> tuple[list[Checkpoint], dict[str, dict[str, float]]]:
    """Train an experiment as ``run_expid.py`` does, but keep the weights of every evaluation in a folder.

    Parameters
    ----------
    params, model_class
        From ``read_params``.
    dataset : Dataset
        With ``train`` and ``valid``; ``test`` is evaluated where it has labels.
    folder : Path
        Nothing is written elsewhere.

    Returns
    -------
    checkpoints : list of Checkpoint
        One per evaluation (per epoch, if ``eval_steps`` is not set) up to the best, with the learning rate until then.
    metrics : dict
        Of the best weights, ``valid`` and ``test``.
    """
    params = {**params, "model_root": str(folder)}
    seed_everything(params["seed"])
    model = _build(params, model_class, dataset)
    train = experiment.make_loader(dataset.splits["train"], model, params, shuffle=params["shuffle"], training=True)
    valid = experiment.make_loader(dataset.splits["valid"], model, params)
    keeper = _CheckpointKeeper(model, valid, folder)
    history = loop.fit(model, train, params["epochs"], keeper, params.get("max_gradient_norm", 10.0))
    if model._save_best_only:
        # Steps after the best weights have no part in the model.
        values = [model._monitor.get_value(entry) for entry in history]
        del keeper.kept[values.index(model._best_metric) + 1 :]
    metrics = {"valid": loop.evaluate(model, valid, params["metrics"])}
    if "test" in dataset.splits and dataset.splits["test"].has_labels:
        test = experiment.make_loader(dataset.splits["test"], model, params)
        metrics["test"] = loop.evaluate(model, test, params["metrics"])
    return keeper.kept, metrics


def rank_by_influence(
    params: Mapping[str, Any],
    model_class: type,
    dataset: Dataset,
    checkpoints: list[Checkpoint],
    layer: str | None = None,
    recalibrate: bool = True,
) -> np.ndarray:
    """Return the influence ``(R,)`` of every training row, in the order of the file; in float32, without dropout.

    See ``fuxictr_mm.evaluation.influence.influence_on_validation``.
    """
    # Numbers of rows pass through the model's logits, and bf16 holds none above 256 exactly.
    plain = {key: value for key, value in {"precision": "fp32", "compile": False}.items() if key in params}
    params = {**params, **plain}
    seed_everything(params["seed"])
    model = _build(params, model_class, dataset)
    train, valid = (experiment.make_loader(dataset.splits[split], model, params) for split in ("train", "valid"))
    return influence_on_validation(model, checkpoints, train, valid, layer, recalibrate, params["verbose"])


def train_without(
    params: Mapping[str, Any], model_class: type, dataset: Dataset, rows: np.ndarray, folder: Path
) -> dict[str, dict[str, float]]:
    """Return the metrics of the experiment trained without some training rows.

    Parameters
    ----------
    params, model_class, dataset, folder
        As in ``train_keeping_checkpoints``; ``train`` is in memory.
    rows : ndarray
        Numbers of the rows to leave out.

    Raises
    ------
    DataError
        One class is all that is left.
    """
    table = dataset.splits["train"]
    assert isinstance(table, InteractionTable)
    assert table.label is not None
    kept = torch.ones(len(table), dtype=torch.bool)
    kept[torch.from_numpy(rows)] = False
    batch = gather(table, kept.nonzero().squeeze(1).to(table.target.device))
    assert batch.label is not None
    if len(batch.label.unique()) < 2:
        raise DataError(f"--drop-worst: label is {batch.label[0]:g} in all {len(batch)} rows that are left; drop fewer")
    history = batch.history
    smaller = InteractionTable(
        batch.context, batch.target, history.values, history.offsets, batch.label, batch.group, table.source
    )
    splits = {**dataset.splits, "train": smaller}
    return train_keeping_checkpoints(params, model_class, replace(dataset, splits=splits), folder)[1]


def number_of_worst(dataset: Dataset, percent: float) -> int:
    """Return how many training rows are so many percent.

    Raises
    ------
    ConfigError
        They are none, or cannot be left out of a split on disk.
    """
    table = dataset.splits["train"]
    if not isinstance(table, InteractionTable):
        raise ConfigError("--drop-worst: train is streamed from disk; set resident: True in dataset_config.yaml")
    number = int(len(table) * percent / 100)
    if number < 1:
        raise ConfigError(f"--drop-worst {percent:g}: is less than one of {len(table)} rows; raise it")
    return number


class _CheckpointKeeper:
    """The validation loader; every pass over it keeps the weights that it is going to be scored with."""

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


def _build(params: Mapping[str, Any], model_class: type, dataset: Dataset) -> Any:
    """Make the model with a feature map of its own, so that one dataset serves several models."""
    return experiment.build_model(model_class, replace(dataset, feature_map=copy.deepcopy(dataset.feature_map)), params)
