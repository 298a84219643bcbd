"""Metrics within groups of examples, of all groups at once, as sums over segments of the sorted examples.

Shape letters: n examples, G groups, T runs of tied scores.
"""

from functools import cached_property

import torch

from fuxictr_mm.errors import DataError
from fuxictr_mm.metric_names import Metric


class SortedGroups:
    """Examples sorted by group and by falling score, with the bounds of groups and of tied scores.

    Two groups, the second with a tie::

        group     0    0    1    1    1
        score     0.9  0.1  0.7  0.7  0.2
        position  0    1    0    1    2
        tie       0    1    2    2    3

    Parameters
    ----------
    label, score : torch.Tensor
        ``(n,)`` float64.
    group : torch.Tensor
        ``(n,)`` int64, from 0 to G - 1 without gaps.
    """

    def __init__(self, label: torch.Tensor, score: torch.Tensor, group: torch.Tensor) -> None:
        order = torch.argsort(score, descending=True, stable=True)
        order = order[torch.argsort(group[order], stable=True)]
        score, group = score[order], group[order]
        self.label = label[order]
        self.rows = torch.bincount(group)
        first = self.rows.cumsum(0) - self.rows
        self.position = torch.arange(len(group), device=group.device) - first[group]
        starts = torch.ones_like(group, dtype=torch.bool)
        starts[1:] = (score[1:] != score[:-1]) | (group[1:] != group[:-1])
        self.tie = starts.cumsum(0) - 1
        self.tie_rows = torch.bincount(self.tie)
        self.positives = self._sum_by_group(self.label)

    def _sum_by_group(self, values: torch.Tensor) -> torch.Tensor:
        # Not index_add: its sums on a GPU depend on the order in which threads finish.
        return torch.segment_reduce(values, "sum", lengths=self.rows, unsafe=True)

    def _gain_by_group(self, gain: torch.Tensor) -> torch.Tensor:
        """Return the sum over positives of the gain of their positions ``(n,)``, shared in each tie, ``(G,)``."""
        shared = torch.segment_reduce(gain, "mean", lengths=self.tie_rows, unsafe=True)
        return self._sum_by_group(self.label * shared[self.tie])

    def value(self, metric: Metric) -> float:
        """Return a metric that is computed within groups."""
        if metric.kind == "MRR":
            return self.mrr()
        if metric.k is not None:
            return self.ndcg(metric.k)
        return self.mean_auc(metric.kind)

    @cached_property
    def auc(self) -> tuple[torch.Tensor, torch.Tensor]:
        """AUC of the groups with both classes, and which groups these are ``(G,)`` bool.

        From rank sums, with ranks r by rising score: (sum of r over positives - P (P + 1) / 2) / (P N).
        """
        negatives = self.rows - self.positives
        both = (self.positives > 0) & (negatives > 0)
        falling = self._gain_by_group((self.position + 1).double())
        above = self.positives * (self.rows + 1) - falling - self.positives * (self.positives + 1) / 2
        return (above / (self.positives * negatives))[both], both

    def mean_auc(self, kind: str) -> float:
        """Return the mean AUC of the groups: weighted by examples (gAUC), by positives (gAUC_pos), or unweighted.

        Raises
        ------
        DataError
            No group has both classes.
        """
        auc, both = self.auc
        if len(auc) == 0:
            raise DataError(
                f"group AUC is undefined: none of the {len(both)} groups has rows of both classes; "
                "score more rows per group or set group_id to a coarser column"
            )
        weights = {"gAUC": self.rows, "gAUC_pos": self.positives.long()}
        if kind not in weights:
            return auc.mean().item()
        weight = weights[kind][both]
        return ((auc * weight).sum() / weight.sum()).item()

    def mrr(self) -> float:
        """Return the mean over groups of the mean reciprocal rank of their positives, 0 without positives."""
        gain = self._gain_by_group(1 / (self.position + 1).double())
        return (gain / self.positives.clamp(min=1)).mean().item()

    def ndcg(self, k: int) -> float:
        """Return the mean over groups of DCG over the best DCG, both of ``k`` positions, 0 without positives."""
        discount = torch.where(self.position < k, 1 / torch.log2((self.position + 2).double()), 0.0)
        best = (1 / torch.log2(torch.arange(2, k + 2, device=discount.device, dtype=torch.float64))).cumsum(0)
        within = self.positives.clamp(min=1, max=k).long()
        return (self._gain_by_group(discount) / best[within - 1]).mean().item()
