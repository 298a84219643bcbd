"""Several interests of one history, found by dynamic routing.

Shape letters: B rows, N history items of a batch, U distinct items, D dim, K capsules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fuxictr_mm.jagged import Jagged, weighted_sum


def squash(capsules: Tensor) -> Tensor:
    r"""Scale vectors ``(.., D)`` to a norm below 1, :math:`\frac{|z|^2}{1 + |z|^2} \frac{z}{|z|}`; zero stays zero.

    Sabour et al., "Dynamic Routing Between Capsules", NeurIPS 2017, https://arxiv.org/abs/1710.09829

    Examples
    --------
    >>> squash(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [[0.0, 0.800000011920929], [0.0, 0.0]]
    """
    norm = torch.linalg.vector_norm(capsules, dim=-1, keepdim=True)
    return capsules * (norm / (1 + norm.square()))


class InterestCapsules(nn.Module):
    r"""Dynamic routing of history items to interests.

    Li et al., "Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM 2019,
    https://arxiv.org/abs/1904.08030

    .. math::
        w_{n, \cdot} = \mathrm{softmax}_{k \le K_b}(\beta_{n, \cdot}), \qquad
        u_{b, k} = \mathrm{squash} \sum_{n \in b} w_{n, k} S s_n, \qquad
        \beta_{n, k} \leftarrow \beta_{n, k} + u_{b, k} \cdot S s_n

    for some rounds, with :math:`K_b = \max(1, \min(K, \lfloor \log_2 L_b \rfloor))` interests for a history of
    :math:`L_b` items. The weights are detached: the gradient flows through the sum of the last round.
    :math:`S s_n` is computed once per distinct item.

    Parameters
    ----------
    dim : int
        D, of items and capsules.
    num_capsules : int
        K.
    num_rounds : int
        Sums made; the weights are updated between them.

    Examples
    --------
    >>> history = Jagged(torch.randn(5, 4), torch.tensor([0, 4, 4, 5]))
    >>> capsules, present = InterestCapsules(4, num_capsules=3)(history, torch.randn(5, 3))
    >>> capsules.shape, present.tolist()
    (torch.Size([3, 3, 4]), [[True, True, False], [True, False, False], [True, False, False]])
    """

    def __init__(self, dim: int, num_capsules: int = 4, num_rounds: int = 3) -> None:
        super().__init__()
        self.num_capsules = num_capsules
        self.num_rounds = num_rounds
        self.item_map = nn.Linear(dim, dim, bias=False)

    def forward(self, history: Jagged, initial: Tensor) -> tuple[Tensor, Tensor]:
        """Route the history.

        Parameters
        ----------
        history : Jagged
            Entries of shape ``(.., D)``.
        initial : Tensor
            ``(N, K)`` initial routing logits; equal values would keep all capsules equal.

        Returns
        -------
        capsules : Tensor
            ``(B, K, D)``, zero where a row has no such capsule.
        present : Tensor
            ``(B, K)`` bool, whether it has; the first capsule always is, and zero for an empty history.
        """
        projected = history.map(self.item_map)
        capsule = torch.arange(self.num_capsules, device=history.offsets.device)
        present = capsule < history.lengths.clamp(min=2).log2().floor().unsqueeze(1)
        logits_NK = initial.masked_fill(~present.index_select(0, history.rows), -torch.inf)
        with torch.no_grad():
            for _ in range(self.num_rounds - 1):
                capsules = squash(weighted_sum(projected, logits_NK.softmax(dim=1)))
                logits_NK = logits_NK + self._agreement(projected, capsules)
        return squash(weighted_sum(projected, logits_NK.softmax(dim=1))), present

    @staticmethod
    def _agreement(projected: Jagged, capsules_BKD: Tensor) -> Tensor:
        values_ND = projected.values
        # One capsule at a time, so that no (N, K, D) tensor is made.
        products = [
            (capsule_BD.index_select(0, projected.rows) * values_ND).sum(dim=1) for capsule_BD in capsules_BKD.unbind(1)
        ]
        return torch.stack(products, dim=1)
