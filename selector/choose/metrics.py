"""How metrics are called where people read them."""

from __future__ import annotations

from decimal import Decimal

_NAMES = {
    "mean_iou": "mean IoU",
    "r2": "R²",
    "f1": "F1",
    "map": "mAP",
    "entity_f1": "entity F1",
    "token_accuracy": "token accuracy",
    "token_probability": "token probability",
}


def metric_name(metric: str) -> str:
    """Such as "mean IoU" for `mean_iou`; of one that is not known its own name, with spaces."""
    return _NAMES.get(metric, metric.replace("_", " "))


def shown(quality: float | None) -> str:
    """A quality as people read it, and as limits are given: 0 to 1, whatever the metric. Empty where it is not known."""
    if quality is None:
        return ""
    return f"{quality:.4f}" if quality >= 0.01 or not quality else f"{Decimal(f'{quality:.3g}'):f}"
