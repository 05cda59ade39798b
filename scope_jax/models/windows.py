"""Which layers see only the last positions, and which have no positions at all: read from and
written to `config.json`."""

from typing import Any

LAYER_TYPES = ("full_attention", "sliding_attention")


def read_windows(
    raw: dict[str, Any], model_type: str, layers: int, unrotated: tuple[bool, ...] = ()
) -> tuple[int, tuple[bool, ...]]:
    """(window, which layers are local), (0, ()) where none is. Raises ValueError for `layer_types`
    that do not fit, or that need a window where there is none."""
    without = ("llama", "smollm3", "olmo2", "phi3")
    window = raw.get("sliding_window", None if model_type in without else 4096)
    types = raw.get("layer_types")
    if model_type.startswith("qwen"):
        window = window if raw.get("use_sliding_window") else None
        first = raw.get("max_window_layers")
        local = [number >= (28 if first is None else first) for number in range(layers)]
    elif model_type.startswith("gemma"):
        period = (
            raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
            if model_type == "gemma3_text"
            else 2
        )
        local = [bool((number + 1) % period) for number in range(layers)]
    elif model_type == "smollm3":
        window = window if raw.get("use_sliding_window") else None
        local = list(unrotated or (False,) * layers)
    elif model_type == "olmo3":
        local = [bool((number + 1) % 4) for number in range(layers)]
        types = types or [LAYER_TYPES[is_local] for is_local in local]
    else:
        window = None if model_type in ("llama", "olmo2") else window
        local = [True] * layers
    if model_type == "phi3" and window and window >= raw.get("max_position_embeddings", 4096):
        window = None  # no position is ever outside of it
    if types is None:
        return (int(window), tuple(local)) if window and any(local) else (0, ())
    if len(types) != layers or set(types) - set(LAYER_TYPES):
        raise ValueError(
            f"layer_types must name {LAYER_TYPES[0]} or {LAYER_TYPES[1]} for each of {layers}"
            " layers"
        )
    listed = [kind == LAYER_TYPES[1] for kind in types]
    if model_type in ("mistral", "phi3") and listed != [bool(window)] * layers:
        raise ValueError(
            f"layer_types that differ from sliding_window are not supported for {model_type}; all"
            " its layers are alike"
        )
    if any(listed) and not window:
        raise ValueError("layer_types has sliding_attention, but no sliding_window is in force")
    return (int(window or 0), tuple(listed)) if any(listed) else (0, ())


def write_windows(
    model_type: str, window: int, local: tuple[bool, ...], max_positions: int
) -> dict[str, Any]:
    """The keys that `read_windows` reads back; `local`: of each layer."""
    types = {"layer_types": [LAYER_TYPES[is_local] for is_local in local]}
    if model_type in ("mistral", "phi3"):
        return {"sliding_window": window or None}
    if model_type.startswith("qwen") or model_type == "smollm3":
        if not window:
            return {"use_sliding_window": False}
        first = {} if model_type == "smollm3" else {"max_window_layers": local.index(True)}
        return {"use_sliding_window": True, "sliding_window": window} | first | types
    if model_type == "olmo3":
        # transformers makes the mask of a window even where no layer uses it.
        return {"sliding_window": window or max_positions} | types
    if model_type.startswith("gemma"):
        # transformers makes the mask of a window for every gemma, so it needs a number.
        number = {"sliding_window": window or max_positions} | types
        periods = [
            p
            for p in range(1, len(local) + 2)
            if local == tuple(bool((n + 1) % p) for n in range(len(local)))
        ]
        return number | (
            {"sliding_window_pattern": periods[0]}
            if periods and model_type == "gemma3_text"
            else {}
        )
    return {}


def read_unrotated(raw: dict[str, Any], layers: int) -> tuple[bool, ...]:
    """Which layers have no positions, by `no_rope_layers` (1: with, 0: without) or, where that is
    missing, every `no_rope_layer_interval`-th; () where all have. Raises ValueError for a list that
    does not name each layer."""
    rotated = raw.get("no_rope_layers")
    if rotated is None:
        interval = raw.get("no_rope_layer_interval") or 4
        rotated = [int((number + 1) % interval != 0) for number in range(layers)]
    if len(rotated) != layers:
        raise ValueError(
            f"no_rope_layers has {len(rotated)} entries, 1 (with positions) or 0 for each of"
            f" {layers} layers is needed"
        )
    return tuple(not one for one in rotated) if not all(rotated) else ()


def write_unrotated(unrotated: tuple[bool, ...], layers: int) -> dict[str, Any]:
    """The key that `read_unrotated` reads back."""
    return {"no_rope_layers": [int(not one) for one in unrotated or (False,) * layers]}
