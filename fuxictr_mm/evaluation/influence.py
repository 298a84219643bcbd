"""Influence of training rows on the validation loss, by the gradients of the model's last layer.

Shape letters: B rows of a batch, R training rows, V validation rows, D inputs of the last layer, the constant input of
its bias among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from fuxictr_mm.checking import nearest
from fuxictr_mm.data.views import num_rows
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.model import LOSSES
from fuxictr_mm.training.progress import progress_bar


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
