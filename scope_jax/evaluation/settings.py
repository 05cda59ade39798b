"""What a suite is evaluated with: the field's settings, unless others are given."""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.data.suites import SUITES
from scope_jax.rollout import SampleSpec
from scope_jax.tasks.graders import check_grader

# Row ids are problem x STRIDE + sample: a sample's tokens depend neither on the number of samples
# nor on other problems.
STRIDE = 4096


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one suite is evaluated with. Raises ValueError for a value out of range."""

    samples: int = 1
    """Per problem."""
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int | None = None
    new_tokens: int = 8192
    """Limit of a completion; fewer where the model has fewer positions."""
    prompt_tokens: int = 2048
    """Longer prompts are left out and counted."""
    seed: int = 0
    grader: str | None = None
    """None: the suite's own."""
    template: str | None = None
    """Of the prompt, with the place {problem}; None: the suite's own."""
    system: str | None = None
    """System turn of the chat template."""
    limit: int | None = None
    """Only the first problems; None: all."""

    def __post_init__(self) -> None:
        # It checks its own numbers.
        SampleSpec(self.temperature, self.top_p, self.top_k, self.new_tokens)
        if not 1 <= self.samples <= STRIDE:
            raise ValueError(f"samples {self.samples}: expected 1 to {STRIDE}")
        for name in ("prompt_tokens", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value}: expected at least 1")
        if self.grader is not None:
            check_grader(self.grader)


# The type of each setting where it is given.
KINDS: dict[str, type] = {
    name: next(kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None))
    for name, hint in typing.get_type_hints(Settings).items()
}


def settings_for(
    name: str,
    given: Mapping[str, Any],
    overrides: Sequence[str] = (),
    suites: Sequence[str] | None = None,
) -> Settings:
    """The settings of suite `name`: the field's, then `given` (for all suites), then `overrides`
    ("name.key=value"). Raises ValueError for an override of a suite that is not evaluated, of an
    unknown key, and for a value of the wrong type."""
    suites = suites or (name,)
    values: dict[str, Any] = {"samples": SUITES[name].samples if name in SUITES else 1, **given}
    for override in overrides:
        path, equals, text = override.partition("=")
        target, _, key = path.rpartition(".")
        if not equals or not target:
            raise ValueError(
                f"--override={override}: expected suite.key=value, such as aime24.samples=8"
            )
        if target not in suites:
            raise ValueError(
                f"--override={override}: {target!r} is not among --suites={','.join(suites)}"
            )
        if key not in KINDS:
            near = difflib.get_close_matches(key, list(KINDS), n=1, cutoff=0.0)[0]
            raise ValueError(
                f"--override={override}: unknown key {key!r}; the nearest known one is {near}"
            )
        if target == name:
            try:
                values[key] = KINDS[key](text)
            except ValueError:
                raise ValueError(
                    f"--override={override}: {text!r} is not of type {KINDS[key].__name__}"
                ) from None
    return Settings(**values)
