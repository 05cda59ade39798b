"""Hand-made models as Hugging Face directories, files of hand-written rollouts, and teachers that a
salvage imports by name."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scope_jax import models
from scope_jax.salvage.settings import Settings
from scope_jax.teachers import ProgramTeacher
from scope_jax.text import save_tokenizer
from support.hand_made import (
    IDLE,
    LAST,
    LINE2,
    PROBLEM,
    RIGHT,
    TOKENIZER,
    WITH_4,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    bigram,
    fours_are_wrong,
)

# Completion, reward, and what the exact check of the task says is the first wrong step.
WRITTEN = (
    (RIGHT, 1, None),
    (WRONG_2, 0, 1),
    (WITH_4, 0, 1),
    (WRONG_3, 0, 2),
    (WRONG_1, 0, 0),
    ("+777\n-987\n+199", 0, 2),
)


def write_models(folder: Path) -> Path:
    """`folder` with a policy, teachers and a process reward model, all of them certain of what they
    write: policy, teacher, idle (writes no end), stubborn (writes the wrong step again), prm; and
    unmarked, a process reward model whose tokenizer lacks the step mark."""
    prm = fours_are_wrong()
    made: dict[str, Any] = {
        "policy": LAST,
        "teacher": LINE2,
        "idle": IDLE,
        "stubborn": bigram("\n-984\n"),
        "prm": prm,
    }
    for name, model in made.items():
        models.save(folder / name, model.config, model.params)
        save_tokenizer(TOKENIZER, folder / name)
    models.save(folder / "unmarked", prm.config, prm.params)
    save_tokenizer(TOKENIZER, folder / "unmarked")
    for file in (folder / "unmarked").glob("tokenizer*.json"):
        file.write_text(file.read_text().replace("<extra_0>", "<none>"))
    return folder


def logged(completion: str, reward: float | None, number: int, **more: Any) -> dict[str, Any]:
    """A line of a log."""
    row = {
        "id": f"r{number}",
        "problem": PROBLEM.prompt,
        "completion": completion,
        "reward": reward,
        "answer": PROBLEM.answer,
    }
    return {**row, **more}


def write_rollouts(path: Path, rows: Sequence[Any], after: str = "") -> str:
    """A file of JSON lines; rows that are texts stand there as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines) + after)
    return str(path)


def settings_of(folder: Path, rollouts: str, out: Path, **more: Any) -> Settings:
    """A salvage of signed terms with the hand-made policy, the exact check of steps and the
    program as teacher."""
    usual: dict[str, Any] = {
        "rollouts": rollouts,
        "out": str(out),
        "teacher": "program",
        "style": "same_term",
        "policy": str(folder / "policy"),
        "localiser": "oracle",
        "task": "arithmetic",
        "chat": "off",
        "prompt_tokens": 8,
        "new_tokens": 16,
        "step_tokens": 8,
        "rows": 4,
    }
    return Settings(**{**usual, **more})


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Interrupted(BaseException):
    """What ends a process in the middle of a chunk."""


@dataclasses.dataclass(frozen=True)
class EndsTheProcess:
    """The program as teacher, which does not come back from its call number `FAILS_AT`."""

    spec: Any
    generator: None = None

    def correct(self, job: Any) -> Any:
        global CALLS
        CALLS += 1
        if CALLS == FAILS_AT:
            raise Interrupted
        return ProgramTeacher(dataclasses.replace(self.spec, style="same_term")).correct(job)


CALLS, FAILS_AT = 0, 0


def reward_of(problem: dict[str, Any], completion: str, token_ids: list[int]) -> float:
    """A reward function of the user: the last line is looked at."""
    del token_ids
    return float(completion.rsplit("\n", 1)[-1].endswith(problem["answer"]))
