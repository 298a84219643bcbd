"""What a prediction is worth: metrics over all rows and within groups."""

from fuxictr_mm.evaluation.metrics import (
    GroupAUC,
    Metric,
    auc_by_group,
    check_metrics,
    evaluate_metrics,
    parse_metric,
)

__all__ = ["GroupAUC", "Metric", "auc_by_group", "check_metrics", "evaluate_metrics", "parse_metric"]
