"""The influence of training examples on the validation loss: TracInCP on the last layer.

Shape letters: B examples of a batch, R training examples, V validation examples, D inputs of the last layer, the
constant input of its bias included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.errors import ConfigError, DataError, nearest
from fuxictr_mm.terminal import progress_bar

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Checkpoint:
    """Weights saved during training."""

    path: Path  #: State dict.
    learning_rate: float  #: Of the steps before it: the weight of this checkpoint's contribution.


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
        Its logit is the output of an ``nn.Linear``, perhaps scaled and with other terms. It is left in eval mode,
        with the last checkpoint's weights.
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
    with frozen(model):
        for number, checkpoint in enumerate(checkpoints, start=1):
            model.load_weights(checkpoint.path)
            if number == 1:
                layer = find_last_layer(model, next(iter(valid)), layer)
            last = model.get_submodule(str(layer))
            title = f"checkpoint {number}/{len(checkpoints)}"
            inputs, logits, labels = map(torch.cat, zip(*_last_inputs(model, last, valid, title, verbose), strict=True))
            shift = _best_shift(logits, labels, slope) if recalibrate else 0.0
            slopes = slope(logits + shift, labels)
            gradient = (slopes.double() @ inputs.double() / len(labels)).to(inputs.dtype)
            scores = [
                slope(logits, labels) * (inputs @ gradient)
                for inputs, logits, labels in _last_inputs(model, last, train, title, verbose)
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

    from fuxictr_mm.config.model import LOSSES

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
    """Return the name of the last ``nn.Linear`` whose output is the logit or a term of it, or check the one named.

    Raises
    ------
    ConfigError
        The model has no such layer.
    """
    from torch import nn

    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 1}
    there = ", ".join(linears) or "none"
    if name is not None and name not in linears:
        raise ConfigError(
            f"--layer {name}: {model.model_id} has no such nn.Linear with one output{nearest(name, linears)} "
            f"(there are: {there})"
        )
    for candidate in [name] if name is not None else reversed(linears):
        if inputs_and_logits(model, linears[candidate], batch) is not None:
            return candidate
    tried = f"the output of --layer {name}" if name is not None else f"the output of no nn.Linear (tried: {there})"
    raise ConfigError(f"{model.model_id}: {tried} is the model's logit or a term of it; influence needs such a layer")


def inputs_and_logits(model: Any, layer: nn.Linear, batch: Any) -> tuple[Tensor, Tensor] | None:
    """Return the gradients of the logits of a batch by the last layer ``(B, D)``, and the logits ``(B,)``.

    The gradients are the inputs of the layer, the last column 1 for a bias, times the factor of its output in the
    logit. None if the logit is not linear in its output. The parameters of the model, in eval mode, are frozen: only
    what follows the layer is recorded for autograd.
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
    found = _order_in_batch(model, answer, output)
    if found is None:
        return None
    order, factor = found
    inputs = inputs.reshape(rows, -1).index_select(0, order)
    if layer.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(rows, 1)], dim=1)
    return factor * inputs, answer.get("logit", output).detach().reshape(-1)


def _order_in_batch(model: Any, answer: Mapping[str, Tensor], output: Tensor) -> tuple[Tensor, float] | None:
    """Return the index in the layer's output of each example of the batch ``(B,)``, and its factor in the logit.

    None if it is not a term of the logit. A model may compute a batch in another order, and add to the output or scale
    it; the gradients of the logits by the output tell which.
    """
    import torch

    flat = output.detach().reshape(-1)
    rows = torch.arange(flat.numel(), device=flat.device)
    if "logit" not in answer:
        same = torch.allclose(model.output_activation(flat), answer["y_pred"].detach().reshape(-1), atol=1e-6)
        return (rows, 1.0) if same else None
    logit = answer["logit"].reshape(-1)
    if not logit.requires_grad:
        return None
    factors = torch.autograd.grad(logit.sum(), output, allow_unused=True, retain_graph=True)[0]
    if factors is None or not (factors.any() and torch.equal(factors, factors.flatten()[0].expand_as(factors))):
        return None
    factor = float(factors.flatten()[0])
    # The gradient of sum_i i logit_i is, at each position of the output, the factor times the index i of its logit.
    index = torch.autograd.grad(logit @ rows.to(logit.dtype), output)[0].reshape(-1) / factor
    is_permutation = torch.allclose(index.sort().values, rows.to(index.dtype), rtol=0, atol=0.1)
    return (index.argsort(), factor) if is_permutation else None


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
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
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the last layer's inputs ``(B, D)``, the logits ``(B,)`` and the labels ``(B,)`` of each batch."""
    with progress_bar(loader, title, verbose) as bar:
        for batch in bar:
            found = inputs_and_logits(model, layer, batch)
            if found is None:
                raise ConfigError(f"{model.model_id}: the output of its last layer is not always a term of its logit")
            inputs, logits = found
            yield inputs, logits, model.get_labels(batch).reshape(-1).to(inputs.dtype)


def _best_shift(logits: Tensor, labels: Tensor, slope: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the intercept that, added to all logits ``(V,)``, gives the lowest loss: a bisection of its slope."""
    logits, labels = logits.double(), labels.double()
    high = float(logits.abs().max() + labels.abs().max()) + math.log(len(logits)) + 1
    low = -high
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(logits + middle, labels).sum() > 0 else (middle, high)
    return (low + high) / 2
