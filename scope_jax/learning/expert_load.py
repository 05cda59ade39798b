"""How evenly a mixture of experts is used."""

from typing import Any

import numpy as np


def expert_metrics(load_LE: Any) -> dict[str, float]:
    """Metrics of how many tokens each expert of each layer had. `experts/load_max`: those of a
    layer's busiest expert over the mean of its experts, in the most uneven layer (1: even; experts
    over experts per token: no more are used than a token has); `experts/load_mean`: the same, mean
    over layers. `experts/unused`: share of all experts that had none. 1, 1 and 0 where there were
    no tokens."""
    load_LE = np.asarray(load_LE, np.float64)
    mean_L = load_LE.mean(axis=1)
    counted = mean_L > 0
    if not counted.any():
        return {"experts/load_max": 1.0, "experts/load_mean": 1.0, "experts/unused": 0.0}
    uneven = load_LE.max(axis=1)[counted] / mean_L[counted]
    return {
        "experts/load_max": float(uneven.max()),
        "experts/load_mean": float(uneven.mean()),
        "experts/unused": float(np.mean(load_LE == 0)),
    }
