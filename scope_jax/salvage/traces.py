"""Traces of verifiers, as prime-rl logs its rollouts: a graph of messages, each with the tokens
that it added to the sequence. What is read is one question and one answer."""

from collections.abc import Mapping
from typing import Any

# Why verifiers stops a rollout before its end.
_LIMITS = ("max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens")


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The trace with the fields that other logs have beside its own. Of a trace with token ids the
    answer is its ids: a message's text may lack thoughts. Raises ValueError for a trace of several
    answers, or of none."""
    nodes = row.get("nodes")
    if not isinstance(nodes, list) or not all(_is_node(node) for node in nodes):
        raise ValueError("field 'nodes': expected a list of messages")
    sampled = [n for n, node in enumerate(nodes) if node.get("sampled")]
    in_line = [node.get("parent") for node in nodes] == [None, *range(len(nodes) - 1)]
    if sampled != [len(nodes) - 1] or not in_line:
        raise ValueError(
            f"field 'nodes': {len(sampled)} answers among {len(nodes)} messages: expected one, the"
            " last of one conversation"
        )
    ids, written = _ids(nodes)
    task = _mapping(row.get("task"))
    failed = row.get("ok") is False and row.get("errors")
    return {
        **row,
        "prompt": [node["message"] for node in nodes[:-1]],
        "prompt_ids": ids[: len(ids) - written] or None,
        "completion": None if written else [nodes[-1]["message"]],
        "completion_ids": ids[len(ids) - written :] or None,
        "reward": _reward(row.get("rewards")),
        "answer": _mapping(task.get("data")).get("answer"),
        "group": task.get("key") or task.get("hash"),
        "cut_off": _is_cut_off(row, nodes[-1]),
        "error": failed[-1] if isinstance(failed, list) else failed,
    }


def _is_node(node: Any) -> bool:
    return isinstance(node, Mapping) and isinstance(node.get("message"), Mapping)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _ids(nodes: list[Mapping[str, Any]]) -> tuple[list[int], int]:
    """(the ids of the sequence, how many at its end were sampled); none where not all were kept."""
    kept = [(node.get("token_ids") or [], node.get("mask") or []) for node in nodes]
    if not all(ids and len(ids) == len(mask) for ids, mask in kept):
        return [], 0
    ids = [i for part, _ in kept for i in part]
    mask = [bool(m) for _, part in kept for m in part]
    written = sum(mask)
    if not written or not all(mask[len(mask) - written :]):
        raise ValueError("field 'nodes': the sampled tokens are not the last ones")
    return ids, written


def _reward(rewards: Any) -> float | None:
    """The weighted sum, None where a score is missing, or all. Raises ValueError."""
    total: float | None = None
    for name, reward in _mapping(rewards).items():
        score, weight = reward, 1.0
        if isinstance(reward, Mapping):
            score, weight = reward.get("score"), reward.get("weight", 1.0)
        if score is None:
            return None
        try:
            total = (total or 0.0) + float(score) * float(weight)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"field 'rewards': {name!r}: expected a score and a weight") from None
    return total


def _is_cut_off(row: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    calls = row.get("calls") if isinstance(row.get("calls"), list) else []
    done = [call for call in calls or [] if isinstance(call, Mapping) and not call.get("error")]
    reasons = [done[-1].get("finish_reason")] if done else []
    return "length" in (*reasons, last.get("finish_reason")) or row.get("stop_condition") in _LIMITS
