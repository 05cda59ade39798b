"""The settings of the reward: its parts, their weights and ranges, and from where on a row is
accepted."""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

Steps = Literal["mean", "min", "last"]
BUILT_IN = ("outcome", "format", "prm")
TOTAL = "total"  # the weighted sum, where a part could be named
# Metrics `reward/<name>` that are of no part.
RESERVED = (TOTAL, "mean", "unscored", "accepted_share", "overlong_penalty")
# A sum of weighted parts that falls short of the threshold by rounding alone reaches it.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the reward."""

    name: str
    function: str  # outcome | format | prm | module:function
    weight: float = 1.0  # 0: a metric only
    range: tuple[float, float] = (0.0, 1.0)  # of its values; others are not taken
    pattern: str | None = None  # of format
    steps: Steps = "mean"  # of prm: what is made of the scores of a row's steps

    @property
    def is_function(self) -> bool:
        """Whether it is a function of the user."""
        return self.function not in BUILT_IN

    @property
    def worst(self) -> float:
        """The value that adds least to the sum."""
        return self.range[0] if self.weight >= 0 else self.range[1]

    @property
    def best(self) -> float:
        """The value that adds most to the sum."""
        return self.range[1] if self.weight >= 0 else self.range[0]


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """What a row is worth. Without a function: the verdict of the task's own verifier.

    `ValueError` (one line) on a part that makes no sense, or a threshold that no row, or every row,
    would reach.
    """

    # One function alone, module:function, with weight 1 and values in [0, 1]; None: see below.
    function: str | None = None
    # Parts by name, each the settings of a `Part`, or the name of its function alone. Empty, and no
    # function: the task's verifier.
    functions: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Rows whose value is at or above it are right, others that were judged have failed; None: the
    # highest value there is (1 of the task's verifier).
    accept: float | None = None
    # The part whose value that is, or `total`; None: the task's verifier where it is a part, else
    # the total.
    accept_by: str | None = None
    seconds: float = 5.0  # deadline of one call of a function
    memory_mb: int = 4096  # that a function's process may take beyond what its imports took
    workers: int | None = None  # processes of each function at most; None: by the machine's cores

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"reward.seconds = {self.seconds} must be a number above 0")
        for name in ("memory_mb", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"reward.{name} = {value} must be at least 1")
        parts = self.parts  # refuses what makes no sense
        if not any(part.weight for part in parts):
            raise ValueError(
                "reward.functions: every weight is 0, so all rows would be worth the same; give one"
                " part a weight"
            )
        names = [part.name for part in parts]
        if self.accept_by is not None and self.accept_by not in (TOTAL, *names):
            raise ValueError(
                f"reward.accept_by = {self.accept_by!r} is no part of the reward; one of"
                f" {', '.join((TOTAL, *names))}"
            )
        low, high = self.verdict_range
        if not low < self.threshold <= high + ROUNDING:
            raise ValueError(
                f"reward.accept = {self.threshold:g}: {self.verdict_by!r} has values from {low:g}"
                f" to {high:g}; expected a number above the first and up to the second"
            )

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the sum, by name: a config knows no other order."""
        if self.function is not None and self.functions:
            raise ValueError(
                "reward.function and reward.functions: one of them; put the function among the"
                " others"
            )
        if self.function is not None:
            name = re.split(r"[:.]", _function(self.function, "reward.function"))[-1]
            name = "function" if name in RESERVED else name
            return (_part(name, self.function, "reward.function"),)
        if not self.functions:
            return (Part("outcome", "outcome"),)
        return tuple(
            _part(name, settings, f"reward.functions.{name}")
            for name, settings in sorted(self.functions.items())
        )

    @property
    def is_default(self) -> bool:
        """Whether it is the task's verifier and nothing else."""
        return self == RewardSpec()

    @property
    def uses_prm(self) -> bool:
        """Whether a part needs the process reward model."""
        return any(part.function == "prm" for part in self.parts)

    @property
    def verdict_by(self) -> str:
        """The part that decides whether a row is accepted, or `total`."""
        if self.accept_by is not None:
            return self.accept_by
        found = [part.name for part in self.parts if part.function == "outcome"]
        return found[0] if found else TOTAL

    @property
    def verdict_range(self) -> tuple[float, float]:
        """The lowest and the highest value of what decides."""
        if self.verdict_by != TOTAL:
            [part] = [part for part in self.parts if part.name == self.verdict_by]
            return part.range
        weighed = [(part.weight, part) for part in self.parts if part.weight]
        return (
            sum(weight * part.worst for weight, part in weighed),
            sum(weight * part.best for weight, part in weighed),
        )

    @property
    def threshold(self) -> float:
        """From where on a row is accepted."""
        return self.verdict_range[1] if self.accept is None else self.accept


def _part(name: str, settings: Any, where: str) -> Part:
    """The part of these settings. Raises ValueError."""
    if name in RESERVED or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            f"{where}: {name!r} cannot be the name of a part: letters, digits and _, and none of"
            f" {', '.join(RESERVED)}"
        )
    given = {"function": settings} if isinstance(settings, str) else settings
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{where} = {settings!r}: expected module:function, or the settings of a part, such as"
            " {'function': 'module:function', 'weight': 0.5}"
        )
    known = [field.name for field in dataclasses.fields(Part) if field.name != "name"]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{where}.{key}: unknown key; the nearest known one is {near}")
    function = _function(given.get("function", name if name in BUILT_IN else None), where)
    steps = _check_for(given, function, where)
    weight = given.get("weight", 1.0)
    if not _is_number(weight):
        raise ValueError(f"{where}.weight = {weight!r}: expected a number")
    values: Any = given.get("range", (0.0, 1.0))
    whole = isinstance(values, list | tuple) and len(values) == 2 and all(map(_is_number, values))
    if not whole or not values[0] < values[1]:
        raise ValueError(
            f"{where}.range = {values!r}: expected the lowest and the highest value, two numbers"
        )
    low, high = values
    return Part(
        name,
        function,
        float(weight),
        (float(low), float(high)),
        given.get("pattern"),
        steps,
    )


def _function(function: Any, where: str) -> str:
    """The name of a part's function. Raises ValueError."""
    module, colon, path = str(function).partition(":")
    names = [*module.split("."), *path.split(".")]
    is_mine = bool(colon) and all(map(str.isidentifier, names))
    if isinstance(function, str) and (function in BUILT_IN or is_mine):
        return function
    where = where if where.endswith(".function") else f"{where}.function"
    raise ValueError(
        f"{where} = {function!r}: expected {', '.join(BUILT_IN)}, or a function of yours as"
        " module:function"
    )


def _check_for(given: Mapping[str, Any], function: str, where: str) -> Steps:
    """Raise ValueError for settings that only some functions have; what is made of steps."""
    if "range" in given and function in BUILT_IN:
        raise ValueError(f"{where}.range: the values of {function!r} lie in [0, 1]; leave it out")
    if "steps" in given and function != "prm":
        raise ValueError(f"{where}.steps is for the function 'prm', not {function!r}")
    steps: Any = given.get("steps", "mean")
    if steps not in get_args(Steps):
        raise ValueError(
            f"{where}.steps = {steps!r} is unknown; one of {', '.join(get_args(Steps))}"
        )
    if function != "format":
        if "pattern" in given:
            raise ValueError(f"{where}.pattern is for the function 'format', not {function!r}")
        return steps
    pattern = given.get("pattern")
    if not isinstance(pattern, str) or "\0" in pattern:
        raise ValueError(
            f"{where}.pattern = {pattern!r}: expected a pattern of re that the whole completion has"
            " to match, as a text"
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{where}.pattern = {pattern!r}: not a pattern of re ({error})") from None
    return steps


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
