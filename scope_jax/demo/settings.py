"""The two demonstrations: what is trained on what, and what their reports say of it."""

import dataclasses
from pathlib import Path
from typing import Any

from scope_jax.configs.checkpoints import get_config as checkpoint_config
from scope_jax.configs.run import get_config as run_config
from scope_jax.configs.tasks import TASKS, change

# Methods of configs/methods.py, and what they are called. SCOPE's own objective with nothing
# corrected tells what the correction adds and what the objective.
ARMS = {"grpo": "GRPO", "policy_gradient": "correction off", "scope": "SCOPE"}
# Who finds first errors, by `localiser.kind`.
FINDERS = {
    "prm": "a process reward model",
    "likelihood": "the teacher, which would hardly have written that step,",
}


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """GRPO and SCOPE on one task, beside a control where `arms` has it."""

    task: str  # of configs/run.py
    title: str
    intro: str  # what is rescued, in a sentence or two; {finder}: one of `FINDERS`
    seeds: tuple[str, ...]
    workdir: str
    steps: int  # batches of each run
    checkpoints: str = ""  # folder in the cache's
    arms: tuple[str, ...] = ("grpo", "scope")
    localiser: str = "prm"  # who finds SCOPE's first errors, one of `FINDERS`

    @property
    def made(self) -> tuple[str, ...]:
        """The checkpoints that it needs, in order."""
        return ("base", "teacher", "prm") if self.localiser == "prm" else ("base", "teacher")

    def folder(self, cache: Path) -> Path:
        """Where its checkpoints are."""
        return cache / "checkpoints" / self.checkpoints

    def checkpoint_config(self, name: str, folder: Path, model: Path | None = None) -> Any:
        """How one of `made` is made; the base starts from `model`, where there is one."""
        config = checkpoint_config(f"{name},{self.task}")
        if name == "base" and model is not None:
            config.start = str(model)
        if name == "teacher":
            config.start = str(folder / "base")
        if name == "prm":
            config.start = str(folder / "teacher")
            config.target.rollouts.policy = str(folder / "base")
        return config

    def arm_config(self, arm: str, seed: int, cache: Path, steps: int | None) -> Any:
        """The config of one run."""
        config, folder = run_config(f"{arm},{self.task}"), self.folder(cache)
        config.seed = seed
        config.task.data = str(cache / "tfds")
        config.models.policy = str(folder / "base")
        if arm == "scope":
            config.models.teacher = str(folder / "teacher")
            config.localiser.kind = self.localiser
            if self.localiser == "prm":
                change(config, TASKS[self.task].prm)
                config.models.prm = str(folder / "prm")
        config.steps = steps or self.steps
        config.evaluation.more_temperatures = (0.6,)
        return config


_RESCUE = (
    "Failed rollouts are rescued at their first wrong step: {finder} finds it, a teacher corrects"
    " that one step, the policy goes on from there. All runs start from the same base, with equal"
    " rollouts and updates (two for each batch)."
)

EMBEDDED = Demonstration(
    task="arithmetic",
    title="SCOPE on signed terms",
    intro=_RESCUE
    + " 'Correction off' is SCOPE's objective with nothing rescued: what SCOPE has beyond it is the"
    " correction's worth, what it has beyond GRPO itself is the objective's.",
    seeds=("0", "1", "2"),
    workdir="runs/demo",
    steps=25,
    arms=("grpo", "policy_gradient", "scope"),
)

REAL = Demonstration(
    task="word_problems",
    title="SCOPE on word problems, with a language model",
    intro=(
        "A small language model solves word problems step by step, and makes mistakes. "
        + _RESCUE
        + " The base is SmolLM2-135M-Instruct (or the model that was given) after a short"
        " supervised start, which taught it how a solution is laid out; the teacher is that base"
        " trained further. Both were made by this command."
    ),
    seeds=("0",),
    workdir="runs/real",
    steps=16,
    checkpoints="word_problems",
    localiser="likelihood",
)
