"""Recurrent layers over jagged rows.

Shape letters: B rows, R rows that are not empty, N history items of a batch, T steps (the longest row), D dim,
E dim of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fuxictr_mm.jagged import Jagged, is_exporting


@dataclass(frozen=True)
class Steps:
    """Order in which a recurrent layer reads jagged rows: by step, and in each step the longest row first.

    Rows are sorted by length, so that the active rows are the first ones and no step works on padding.
    """

    order: Tensor  #: ``(N,)`` index of the entry at each position.
    sizes: Tensor  #: ``(T,)`` active rows of each step, on the CPU as ``PackedSequence`` requires.
    rows: Tensor  #: ``(R,)`` rows that are not empty, the longest one first.

    @classmethod
    def of(cls, history: Jagged) -> Steps:
        """Return the steps of jagged rows.

        Examples
        --------
        >>> steps = Steps.of(Jagged(torch.arange(5), torch.tensor([0, 2, 2, 5])))
        >>> steps.order.tolist(), steps.sizes.tolist(), steps.rows.tolist()
        ([2, 0, 3, 1, 4], [2, 2, 1], [2, 0])
        """
        rows = history.lengths.argsort(descending=True, stable=True)
        rank = torch.empty_like(rows)
        rank[rows] = torch.arange(rows.numel(), device=rows.device)
        order = (history.positions * history.num_rows + rank[history.rows]).argsort()
        sizes = history.positions.bincount().cpu()
        return cls(order, sizes, rows[: int(sizes[0]) if sizes.numel() else 0])

    def pack(self, values: Tensor) -> PackedSequence:
        """Return entries ``(N, ..)`` in this order."""
        return PackedSequence(values.index_select(0, self.order), self.sizes)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return packed entries ``(N, ..)`` in the order of the rows."""
        return packed.index_select(0, self.order.argsort())


class AUGRU(nn.Module):
    r"""Gated recurrent unit whose update gate is scaled by an attention weight.

    Zhou et al., "Deep Interest Evolution Network for Click-Through Rate Prediction", AAAI 2019,
    https://arxiv.org/abs/1809.03672

    .. math::
        u_t = a_t \, \sigma(W_u x_t + b_u + U_u h_{t-1}), \qquad r_t = \sigma(W_r x_t + b_r + U_r h_{t-1})

        h_t = (1 - u_t) \odot h_{t-1} + u_t \odot \tanh(W_h x_t + b_h + r_t \odot U_h h_{t-1}), \qquad h_0 = 0

    An entry of weight 0 does not change the state.

    Parameters
    ----------
    input_dim : int
        D.
    hidden_dim : int
        E.
    """

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.input_map = nn.Linear(input_dim, 3 * hidden_dim)
        self.state_map = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)

    def forward(self, inputs: PackedSequence, weights: PackedSequence) -> Tensor:
        """Return the last state of each row.

        Parameters
        ----------
        inputs : PackedSequence
            Data ``(N, D)``, one or more entries.
        weights : PackedSequence
            Data ``(N,)``, the attention weight of each entry.

        Returns
        -------
        Tensor
            ``(R, E)``, the longest row first.
        """
        sizes = inputs.batch_sizes.tolist()
        gates_NE3 = self.input_map(inputs.data)
        state = gates_NE3.new_zeros(sizes[0], gates_NE3.shape[1] // 3)
        ended = []
        for gates, weight in zip(gates_NE3.split(sizes), weights.data.unsqueeze(1).split(sizes), strict=True):
            running = gates.shape[0]
            ended.append(state[running:])
            state = self._next(state[:running], gates, weight)
        return torch.cat([state, *reversed(ended)])

    def _next(self, state: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
        """Return the states ``(n, E)`` after another entry, of which ``gates`` ``(n, 3 E)`` and weight ``(n, 1)``."""
        update, reset, new = gates.chunk(3, dim=1)
        update_state, reset_state, new_state = self.state_map(state).chunk(3, dim=1)
        update = weight * torch.sigmoid(update + update_state)
        candidate = torch.tanh(new + torch.sigmoid(reset + reset_state) * new_state)
        return (1 - update) * state + update * candidate

    def scan(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Return the last states ``(B, E)`` of padded rows, as one loop that an export keeps.

        Parameters
        ----------
        inputs : Tensor
            ``(T, B, D)``, or ``(T, 1, D)`` where all rows share them; T is 1 or more.
        weights : Tensor
            ``(T, B)``, 0 at padding.
        """

        def step(state: Tensor, gates_and_weight: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            gates, weight = gates_and_weight
            state = self._next(state, gates, weight.unsqueeze(1))
            return state, state.clone()

        gates_T = self.input_map(inputs)
        start = gates_T.new_zeros(weights.shape[1], gates_T.shape[2] // 3)
        return _scan(step, start, (gates_T, weights))[1][-1]


def scan_gru(gru: nn.GRU, inputs: Tensor) -> Tensor:
    """Return the states ``(T, B, E)`` of a GRU of one layer over padded rows ``(T, B, D)``, T of 1 or more."""
    # Torch takes no module of this kind into a loop.
    of_inputs, weight, of_bias, bias = (p for p in gru.parameters())

    def step(state: Tensor, gates: tuple[Tensor]) -> tuple[Tensor, Tensor]:
        reset, update, new = gates[0].chunk(3, dim=1)
        reset_state, update_state, new_state = F.linear(state, weight, bias).chunk(3, dim=1)
        candidate = torch.tanh(new + torch.sigmoid(reset + reset_state) * new_state)
        gate = torch.sigmoid(update + update_state)
        state = (1 - gate) * candidate + gate * state
        return state, state.clone()

    gates_T = F.linear(inputs, of_inputs, of_bias)
    return _scan(step, gates_T.new_zeros(inputs.shape[1], gru.hidden_size), (gates_T,))[1]


def padded_steps(history: Jagged) -> tuple[Tensor, Tensor]:
    """Return the entry at each step of each row ``(T, B)``, N at padding, and each entry's position in it ``(N,)``.

    Examples
    --------
    >>> index, place = padded_steps(Jagged(torch.arange(3), torch.tensor([0, 2, 3])))
    >>> index.tolist(), place.tolist()
    ([[0, 2], [1, 3]], [0, 2, 1])
    """
    steps = torch.arange(history.longest, device=history.offsets.device).unsqueeze(1)
    index = torch.where(steps < history.lengths, history.offsets[:-1] + steps, history.num_values)
    return index, history.positions * history.num_rows + history.rows


def _scan(
    step: Callable[..., tuple[Tensor, Tensor]], start: Tensor, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return the last state and all states ``(T, ..)``; in an export by torch's operator, which is not public yet."""
    if is_exporting():
        from torch._higher_order_ops.scan import scan

        return scan(step, start, tuple(x.clone() for x in inputs), dim=0)  # it takes no views
    states = []
    for one in zip(*inputs, strict=True):
        start, output = step(start, one)
        states.append(output)
    return start, torch.stack(states)
