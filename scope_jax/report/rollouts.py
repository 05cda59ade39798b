"""Ordinary rollouts as they are shown: the problem, what the policy wrote, what became of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from scope_jax.report.wording import is_prose, number, plain_text


@dataclasses.dataclass(frozen=True)
class ShownRollout:
    """A rollout for the template; all texts are still to be escaped."""

    problem: str
    answer: str  # the reference
    prompt: str  # as the policy was shown it; empty where that is the problem itself
    text: str  # what the policy wrote
    verdict: bool | None  # None: not judged
    facts: list[str]  # how it ended, reward, length
    prose: bool  # sentences, not code


def rollout_of(item: Mapping[str, Any]) -> ShownRollout:
    """An item of a samples file: problem, answer, prompt, text, verdict, reward, tokens,
    finished. Raises KeyError where its text, verdict or `finished` is missing."""
    problem, text = plain_text(item.get("problem")), plain_text(item["text"])
    prompt = plain_text(item.get("prompt"))
    tokens, reward = item.get("tokens"), number(item.get("reward"))
    facts = ["ended by itself" if item["finished"] else "cut off"]
    if tokens is not None:
        facts.append(f"{tokens} {'token' if tokens == 1 else 'tokens'}")
    if reward is not None:
        facts.append(f"reward {reward:g}")
    verdict = item["verdict"]
    return ShownRollout(
        problem=problem or prompt,
        answer=plain_text(item.get("answer")),
        prompt="" if prompt.strip() == problem.strip() else prompt,
        text=text,
        verdict=None if verdict is None else bool(verdict),
        facts=facts,
        prose=is_prose(problem, text),
    )
