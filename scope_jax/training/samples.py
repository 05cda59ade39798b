"""What a run shows of its steps: a few rollouts as the policy wrote them, and rows that were
attempted to be rescued, in files of `samples/`; a rescue on the terminal."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from scope_jax.configuration import TrainConfig
from scope_jax.correction import Groups
from scope_jax.devices.mesh import to_host
from scope_jax.report.terminal import rescue_text
from scope_jax.rollout import completion_ids, texts
from scope_jax.run import write_atomically
from scope_jax.run.metrics import in_colour, say_beside_bars
from scope_jax.training.actors import Actors

KINDS = ("right", "wrong", "cut_off", "not_judged")


@dataclasses.dataclass
class Samples:
    """What is kept of one step."""

    due: bool = False  # whether this step has a file
    shown: bool = False  # whether a rescue of this step is shown on the terminal
    rescues: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # attempted rows
    rollouts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def of_step(cls, number: int, config: TrainConfig) -> "Samples":
        """Nothing yet, of step `number`: due every `samples.every` steps and at the last one, shown
        every `samples.show_every` ones."""
        due = number % config.samples.every == 0 or number + 1 == config.steps
        show_every = config.samples.show_every
        return cls(due, show_every is not None and number % show_every == 0)

    @property
    def wants_rescues(self) -> bool:
        """Whether somebody will look at the rows that are attempted in this step."""
        return self.due or self.shown

    def keep(self, groups: Groups, actors: Actors, config: TrainConfig) -> None:
        """Take `samples.rollouts` rows of each of KINDS, where this step is due. All processes
        call it."""
        if self.due and config.samples.rollouts:
            self.rollouts = rollout_items(groups, actors, config.samples.rollouts)

    def write(self, workdir: Path, number: int, config: TrainConfig) -> None:
        """The file of the step, of at most `samples.per_file` rescues, the accepted ones first;
        none where there is nothing to show."""
        if not self.due or not (self.rescues or self.rollouts):
            return
        first = sorted(self.rescues, key=lambda item: not item["verdict_after"])
        content = {
            "step": number,
            "rescues": first[: config.samples.per_file],
            "rollouts": self.rollouts,
        }
        text = json.dumps(content, indent=1)
        write_atomically(workdir / "samples" / f"step_{number:06d}.json", text)

    def show(self, number: int) -> None:
        """Print a rescue of step `number` on stderr where one is to be shown: the first that was
        accepted, or else the first attempt."""
        if not self.shown:
            return
        if not self.rescues:
            say_beside_bars(f"step {number}: no failure was attempted, so there is none to show")
            return
        item = min(self.rescues, key=lambda item: not item["verdict_after"])
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        say_beside_bars(rescue_text(item, f"step {number}", width=width, colour=in_colour()))


def rollout_items(groups: Groups, actors: Actors, most: int) -> list[dict[str, Any]]:
    """One JSON object for each of at most `most` rows of each of KINDS, in that order: the problem,
    the prompt as the policy was shown it, the completion, its verdict (None: not judged) and
    reward, its length in tokens, and whether it ended by itself."""
    tokens, prompt_length, finished = to_host(
        (groups.rollout.tokens_BT, groups.rollout.prompt_length_B, groups.rollout.finished_B)
    )
    kinds = kinds_of(groups, finished)
    rows = [(kind, row) for kind in KINDS for row in first_rows(kinds, kind, groups.group, most)]
    written = completion_ids(groups.rollout)
    completions = texts([written[row] for _, row in rows], actors.tokenizer)
    items = []
    for (kind, row), completion in zip(rows, completions, strict=True):
        problem, reward = groups.problems[row], float(groups.reward_B[row])
        prompt = tokens[row, : prompt_length[row]].tolist()
        items.append(
            {
                "kind": kind,
                "problem": problem.prompt,
                "answer": problem.answer,
                "prompt": actors.tokenizer.decode(prompt, clean_up_tokenization_spaces=False),
                "text": completion,
                "verdict": None if np.isnan(reward) else not bool(groups.failed_B[row]),
                "reward": None if np.isnan(reward) else reward,
                "tokens": len(written[row]),
                "finished": bool(finished[row]),
            }
        )
    return items


def kinds_of(groups: Groups, finished_B: np.ndarray) -> list[str]:
    """Which of KINDS each row is. A row that was cut off is that, whatever it would have said."""
    return [
        "cut_off" if not done else "not_judged" if np.isnan(r) else "wrong" if bad else "right"
        for r, bad, done in zip(groups.reward_B, groups.failed_B, finished_B, strict=True)
    ]


def first_rows(kinds: list[str], kind: str, group: int, most: int) -> list[int]:
    """At most `most` rows of a kind: the first of each group before the second of any."""
    seen: dict[int, int] = {}
    ranked = []
    for row in (row for row, found in enumerate(kinds) if found == kind):
        turn = seen[row // group] = seen.get(row // group, -1) + 1
        ranked.append((turn, row))
    return [row for _, row in sorted(ranked)[:most]]
