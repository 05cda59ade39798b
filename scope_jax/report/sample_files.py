"""The files of `samples/` of a run, read again."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from scope_jax.report.gallery import rescue_of
from scope_jax.report.rollouts import rollout_of

Item = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SampleFile:
    """What one file shows."""

    step: int | None  # None: the file does not say
    rescues: list[Item]  # as `gallery.rescue_of` takes them
    rollouts: list[Item]  # as `rollouts.rollout_of` takes them


def read_sample_file(path: pathlib.Path) -> SampleFile:
    """A file {step, rescues, rollouts}, or a list of rescues, as earlier versions wrote it. Raises
    ValueError for what is neither and for an item that cannot be shown."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, list):
            number = re.search(r"(\d+)$", path.stem)
            found = {"step": int(number[1]) if number else None, "rescues": found}
        rescues, rollouts = list(found.get("rescues", ())), list(found.get("rollouts", ()))
        for item in rescues:
            rescue_of(item)
        for item in rollouts:
            rollout_of(item)
        step = found.get("step")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"could not be read ({type(error).__name__}: {error})") from None
    return SampleFile(step if isinstance(step, int) else None, rescues, rollouts)
