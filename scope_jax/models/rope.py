"""Rotary positions: the scalings that `config.json` may name, and the frequencies that follow from
them.

Linear: Chen et al., arXiv 2306.15595. YaRN: Peng et al., arXiv 2309.00071. `llama3`: the piecewise
rule of Llama 3.1.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from scope_jax.models.kinds import is_number

# Published key -> field of RopeScaling, for each kind.
_COMMON = {"factor": "factor"}
_KEYS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": _COMMON,
    "llama3": (
        _COMMON
        | {
            "original_max_position_embeddings": "original_positions",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
        }
    ),
    "yarn": (
        _COMMON
        | {
            "original_max_position_embeddings": "original_positions",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "attention_factor": "attention_factor",
            "truncate": "truncate",
        }
    ),
}

KINDS = tuple(_KEYS)

# Whatever the kind; "truncate" is a switch.
_NUMBERS = {
    *(key for keys in _KEYS.values() for key in keys if key != "truncate"),
    *("partial_rotary_factor", "mscale", "mscale_all_dim"),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of a longer context follow from the plain ones. Only the fields of its
    `kind` matter."""

    kind: str = "default"  # default | linear | llama3 | yarn
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0  # cos and sin are multiplied by it
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _KEYS:
            raise ValueError(
                f"rotary scaling {self.kind!r} is not supported; known: {', '.join(_KEYS)}"
            )
        if self.factor < 1:
            raise ValueError(
                f"rotary scaling {self.kind!r}: factor {self.factor} must be at least 1"
            )
        if self.kind in ("llama3", "yarn") and self.original_positions < 1:
            raise ValueError(f"rotary scaling {self.kind!r} needs original_max_position_embeddings")
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"rotary scaling: low_freq_factor {self.low_freq_factor} must be below"
                " high_freq_factor"
            )


PLAIN = RopeScaling()


def read_rope(
    raw: dict[str, Any], max_positions: int, original_positions: int | None = None
) -> RopeScaling:
    """RopeScaling of one `rope_scaling` or `rope_parameters` dict. `original_positions`: what
    stands outside it.

    Raises ValueError for a kind or a key that is not known.
    """
    kind = raw.get("rope_type", raw.get("type")) or "default"
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ValueError(f"rotary scaling {kind!r} is not supported; known: {', '.join(_KEYS)}")
    keys = _KEYS[kind]
    given = {
        key: value
        for key, value in raw.items()
        if key not in ("rope_type", "type", "rope_theta") and value is not None
    }
    for key, value in given.items():
        if key in _NUMBERS and not is_number(value):
            raise ValueError(f"rotary scaling: {key} is {value!r:.60}, a number is needed")
    if float(given.pop("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError(
            "rotary scaling: partial_rotary_factor is not supported; whole heads are rotated"
        )
    magnitudes = (
        [float(given.pop(key, 0.0)) for key in ("mscale", "mscale_all_dim")]
        if kind == "yarn"
        else []
    )
    unknown = sorted(given.keys() - keys.keys())
    if unknown:
        raise ValueError(
            f"rotary scaling {kind!r}: {unknown[0]} is not supported; known:"
            f" {', '.join(keys) or 'rope_theta alone'}"
        )
    if "original_max_position_embeddings" in keys:
        outside = (
            original_positions or given.get("original_max_position_embeddings") or max_positions
        )
        given["original_max_position_embeddings"] = int(outside)
    if kind == "yarn":
        given.setdefault("factor", max_positions / given["original_max_position_embeddings"])
        given.setdefault(
            "attention_factor", _yarn_attention_factor(float(given["factor"]), *magnitudes)
        )
    elif "factor" in keys and "factor" not in given:
        raise ValueError(f"rotary scaling {kind!r} needs a factor")
    default = dataclasses.asdict(PLAIN)
    return RopeScaling(
        kind=kind, **{keys[key]: type(default[keys[key]])(value) for key, value in given.items()}
    )


def read_theta(*values: Any) -> float:
    """The first of the values of `rope_theta` that is there. Raises ValueError where it is no
    number above 0."""
    value = next((value for value in values if value), 10000.0)
    if not is_number(value) or value <= 0:
        raise ValueError(f"rope_theta is {value!r:.60}, a number above 0 is needed")
    return float(value)


def write_rope(scaling: RopeScaling) -> dict[str, Any] | None:
    """The `rope_scaling` dict that `read_rope` reads back; None for plain rotary positions."""
    if scaling.kind == "default":
        return None
    return {"rope_type": scaling.kind} | {
        key: getattr(scaling, field) for key, field in _KEYS[scaling.kind].items()
    }


def frequencies(theta: float, head_size: int, scaling: RopeScaling = PLAIN) -> np.ndarray:
    """Radians per position, float32[H/2]."""
    plain = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    return _scaled(plain, theta, head_size, scaling).astype(np.float32)


def _scaled(plain: np.ndarray, theta: float, head_size: int, scaling: RopeScaling) -> np.ndarray:
    if scaling.kind == "default":
        return plain
    slow = plain / scaling.factor
    if scaling.kind == "linear":
        return slow
    keep: np.ndarray
    if scaling.kind == "llama3":
        # Turns within the original context: few of them are slowed down, many are kept, a ramp in
        # between.
        turns = scaling.original_positions * plain / (2 * math.pi)
        keep = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
    else:
        low, high = (
            _yarn_dimension(beta, theta, head_size, scaling)
            for beta in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_size - 1)
        keep = 1 - (np.arange(head_size // 2) - low) / (high - low or 0.001)
    share = np.clip(keep, 0, 1)
    return plain * share + slow * (1 - share)


def _yarn_dimension(turns: float, theta: float, head_size: int, scaling: RopeScaling) -> float:
    """The (fractional) frequency index that makes `turns` turns within the original context."""
    return (
        head_size
        * math.log(scaling.original_positions / (turns * 2 * math.pi))
        / (2 * math.log(theta))
    )


def _yarn_attention_factor(factor: float, magnitude: float, magnitude_all: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(magnitude) / scale(magnitude_all) if magnitude and magnitude_all else scale(1.0)
