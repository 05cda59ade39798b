"""Rotary positions: the scalings that `config.json` may name, and the frequencies that follow from
them.

Linear: Chen et al., arXiv 2306.15595. YaRN: Peng et al., arXiv 2309.00071. `llama3`: the piecewise
rule of Llama 3.1. `longrope`: Ding et al., arXiv 2402.13753, for rows within the original context.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from scope_jax.models.families import Family
from scope_jax.models.kinds import is_number
from scope_jax.models.windows import LAYER_TYPES

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

# Those of every family that does not say otherwise.
KINDS = tuple(_KEYS)
_KEYS["longrope"] = {
    "short_factor": "short_factor",
    "long_factor": "long_factor",
    "factor": "factor",
    "original_max_position_embeddings": "original_positions",
    "attention_factor": "attention_factor",
}
_LISTS = ("short_factor", "long_factor")

# Whatever the kind; "truncate" is a switch.
_NUMBERS = {
    *(key for keys in _KEYS.values() for key in keys if key not in ("truncate", *_LISTS)),
    *("partial_rotary_factor", "mscale", "mscale_all_dim"),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of a longer context follow from the plain ones. Only the fields of its
    `kind` matter."""

    kind: str = "default"  # a key of _KEYS
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0  # cos and sin are multiplied by it
    truncate: bool = True
    # Of longrope, one for each frequency: what divides it in rows up to original_positions, and in
    # longer ones, which are not served.
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _KEYS:
            raise ValueError(
                f"rotary scaling {self.kind!r} is not supported; known: {', '.join(_KEYS)}"
            )
        if self.factor < 1:
            raise ValueError(
                f"rotary scaling {self.kind!r}: factor {self.factor} must be at least 1"
            )
        if self.kind in ("llama3", "yarn", "longrope") and self.original_positions < 1:
            raise ValueError(f"rotary scaling {self.kind!r} needs original_max_position_embeddings")
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"rotary scaling: low_freq_factor {self.low_freq_factor} must be below"
                " high_freq_factor"
            )

    @property
    def longest(self) -> int:
        """Positions of the longest row that is turned as this says; 0: of any row."""
        return self.original_positions if self.kind == "longrope" else 0

    @property
    def reach(self) -> int:
        """Positions that the whole scaling is made for, where `longest` is less; 0 elsewhere."""
        return round(self.factor * self.longest)

    def check_size(self, size: int) -> None:
        """Raise ValueError where the lists of longrope do not fit `size` rotated numbers."""
        for key in _LISTS if self.kind == "longrope" else ():
            if len(getattr(self, key)) != size // 2:
                raise ValueError(
                    f"rotary scaling 'longrope': {key} has {len(getattr(self, key))} numbers,"
                    f" {size // 2} are needed, one for each two rotated numbers of a head"
                )


PLAIN = RopeScaling()


def read_ropes(
    raw: dict[str, Any], family: Family, max_positions: int, window: int
) -> dict[str, Any]:
    """The fields of ModelConfig about rotary positions, by name, from the contents of a
    `config.json`. `window`: of its local layers, 0 where it has none. Raises ValueError."""
    model_type = raw["model_type"]
    scaling, parameters = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    outside = raw.get("original_max_position_embeddings")
    nested = [kind for kind in LAYER_TYPES if kind in parameters]
    partial = raw.get("partial_rotary_factor")
    if not family.local_rope_theta:
        if nested:
            raise ValueError(f"rope_parameters per layer type is not supported for {model_type}")
        given = dict(scaling or parameters)
        if family.partial_rotary and given.get("partial_rotary_factor") is not None:
            partial = given.pop("partial_rotary_factor")
            if not is_number(partial):
                raise ValueError(
                    f"rotary scaling: partial_rotary_factor is {partial!r:.60}, a number is needed"
                )
        if "longrope" in family.rope_kinds:
            outside = outside or 4096  # as in transformers, whatever stands inside
        theta = read_theta(given.get("rope_theta"), raw.get("rope_theta"), family.rope_theta)
        return {
            "rope_theta": theta,
            "rope_scaling": read_rope(given, max_positions, outside, family),
            "partial_rotary_factor": 1.0 if partial is None else float(partial),
        }
    if parameters and not nested:
        raise ValueError(
            f"rope_parameters of {model_type} must hold {LAYER_TYPES[0]} and {LAYER_TYPES[1]}"
        )
    everywhere, local = (parameters.get(kind) or {} for kind in LAYER_TYPES)
    if not isinstance(everywhere, dict) or not isinstance(local, dict):
        raise ValueError("rope_parameters: an object is needed for each type of layer")
    everywhere = everywhere | scaling
    base = raw.get("rope_local_base_freq") if family.gemma else None
    alone = raw.get("rope_theta") if not family.gemma and not local.get("rope_theta") else None
    if alone and alone != family.local_rope_theta:
        # Some versions of transformers take it for the local layers too, some do not.
        raise ValueError(
            f"rope_theta {alone} alone is not supported for {model_type}; rope_parameters must say"
            " it for each type of layer"
        )
    theta = read_theta(everywhere.get("rope_theta"), raw.get("rope_theta"), family.rope_theta)
    fields: dict[str, Any] = {
        "rope_theta": theta,
        "rope_scaling": read_rope(everywhere, max_positions, outside),
        "partial_rotary_factor": 1.0 if partial is None else float(partial),
    }
    local_theta = read_theta(local.get("rope_theta"), base, family.local_rope_theta)
    local_scaling = read_rope(local, max_positions)
    if not window or (local_theta, local_scaling) == (theta, fields["rope_scaling"]):
        return fields
    return fields | {"local_rope_theta": local_theta, "local_rope_scaling": local_scaling}


def read_rope(
    raw: dict[str, Any],
    max_positions: int,
    original_positions: int | None = None,
    family: Family | None = None,
) -> RopeScaling:
    """RopeScaling of one `rope_scaling` or `rope_parameters` dict. `original_positions`: what
    stands outside it. `family`: its rotary scalings are known (None: those of most).

    Raises ValueError for a kind or a key that is not known.
    """
    kind = raw.get("rope_type", raw.get("type")) or "default"
    if kind == "su" and family is not None and "longrope" in family.rope_kinds:
        kind = "longrope"  # by its first name
    check_kind(kind, family)
    keys = _KEYS[kind]
    given = {
        key: value
        for key, value in raw.items()
        if key not in ("rope_type", "type", "rope_theta") and value is not None
    }
    for key, value in given.items():
        if key in _NUMBERS and not is_number(value):
            raise ValueError(f"rotary scaling: {key} is {value!r:.60}, a number is needed")
        if key in _LISTS and not _are_factors(value):
            raise ValueError(
                f"rotary scaling: {key} is {value!r:.60}, a list of numbers above 0 is needed"
            )
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
    elif kind == "longrope":
        original = given["original_max_position_embeddings"]
        if original < 2:
            raise ValueError(
                f"rotary scaling 'longrope': original_max_position_embeddings is {original}, a"
                " number from 2 on is needed"
            )
        factor = float(given.get("factor", max_positions / original))
        given["factor"] = max_positions / original
        given.setdefault("attention_factor", _longrope_attention_factor(factor, original))
    elif "factor" in keys and "factor" not in given:
        raise ValueError(f"rotary scaling {kind!r} needs a factor")
    default = dataclasses.asdict(PLAIN)
    return RopeScaling(
        kind=kind, **{keys[key]: type(default[keys[key]])(value) for key, value in given.items()}
    )


def check_kind(kind: Any, family: Family | None) -> None:
    """Raise ValueError for a rotary scaling that a family does not know."""
    kinds = (family and family.rope_kinds) or KINDS
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"rotary scaling {kind!r} is not supported; known: {', '.join(kinds)}")


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
    if scaling.kind == "longrope":
        # These three and no other: transformers 4 wants no more. It has the rest from outside.
        written: dict[str, Any] = {"type": "longrope"}
        written |= {key: list(getattr(scaling, key)) for key in _LISTS}
        usual = _longrope_attention_factor(scaling.factor, scaling.original_positions)
        own = scaling.attention_factor
        return written | ({} if own == usual else {"attention_factor": own})
    return {"rope_type": scaling.kind} | {
        key: getattr(scaling, field) for key, field in _KEYS[scaling.kind].items()
    }


def frequencies(theta: float, head_size: int, scaling: RopeScaling = PLAIN) -> np.ndarray:
    """Radians per position, float32[H/2]; H: how many numbers of a head are rotated."""
    plain = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    return _scaled(plain, theta, head_size, scaling).astype(np.float32)


def _scaled(plain: np.ndarray, theta: float, head_size: int, scaling: RopeScaling) -> np.ndarray:
    if scaling.kind == "default":
        return plain
    if scaling.kind == "longrope":
        return plain / np.array(scaling.short_factor, np.float64)
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


def _longrope_attention_factor(factor: float, original_positions: int) -> float:
    """Ding et al., arXiv 2402.13753, as published with Phi-3."""
    return math.sqrt(1 + math.log(factor) / math.log(original_positions)) if factor > 1 else 1.0


def _are_factors(value: Any) -> bool:
    return isinstance(value, list) and all(is_number(each) and each > 0 for each in value)
