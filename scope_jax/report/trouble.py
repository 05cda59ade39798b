"""What keeps a run from learning, read from its metrics step by step: for the terminal while it
goes, and for its report."""

import collections
from collections.abc import Mapping
from typing import Any

WINDOW = 10  # steps with rollouts that a trouble has to last
_NAMES = (
    "reward/mean",
    "completion/truncated_share",
    "advantage/zero_group_share_after",
)


class Watch:
    """Sees the metrics of a run's steps in order; says each trouble once."""

    def __init__(self) -> None:
        self._latest: collections.deque[tuple[int, dict[str, float]]] = collections.deque(
            maxlen=WINDOW
        )
        self._seen, self._said = 0, set[str]()

    def see(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """The troubles, a line each, that are clear now and were not before. Steps without
        rollouts (supervised ones) do not count."""
        if any(metrics.get(name) is None for name in _NAMES):
            return []
        self._latest.append((step, {name: float(metrics[name]) for name in _NAMES}))
        self._seen += 1
        if len(self._latest) < WINDOW:
            return []
        when = f"steps {self._latest[0][0]}-{step}"
        reward, cut_off, silent = ([values[name] for _, values in self._latest] for name in _NAMES)
        found = {}
        mean = sum(cut_off) / WINDOW
        if mean > 0.5:
            found["cut off"] = (
                f"most rollouts are cut off: {mean:.0%} of those of {when} reached"
                " rollout.new_tokens and count as wrong; raise it, or see in samples/ whether the"
                " policy ends its answers at all"
            )
        nothing_right = not any(reward)
        if min(silent) == 1.0:
            found["silent"] = f"nothing to learn from: in {when} {_why_silent(reward)}"
        elif nothing_right and self._seen == WINDOW:
            found["never right"] = (
                f"no rollout was right in {when}, the first ones: see in samples/ what the policy"
                " writes, and whether prompt (rollout.chat) and verifier fit it"
            )
        new = [line for kind, line in found.items() if kind not in self._said]
        self._said |= found.keys()
        return new


def _why_silent(reward: list[float]) -> str:
    if not any(reward):
        return (
            "no rollout was right, so no group has an advantage; see in samples/ what the policy"
            " writes, whether prompt (rollout.chat) and verifier fit it, or give easier problems"
        )
    if min(reward) == max(reward):
        return (
            f"every rollout had the reward {reward[0]:g}, so no group has an advantage; give harder"
            " problems"
        )
    return (
        "all rollouts of each group had the same reward, so none has an advantage; give problems"
        " that the policy solves now and then, more rollouts each (rollout.group), or set"
        " method.resample where the method has it"
    )
