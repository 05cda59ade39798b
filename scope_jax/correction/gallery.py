"""What happened to each attempted row, for the samples and the report."""

from typing import Any

from scope_jax.correction.finish import Attempts
from scope_jax.devices.mesh import to_host
from scope_jax.rollout import completion_ids, texts
from scope_jax.text import split_steps


def gallery_items(attempts: Attempts) -> list[dict[str, Any]]:
    """One JSON object per attempted row: its problem, its steps and who wrote them, their scores,
    the verdict; of a row that was not accepted why (`not_rescued`, a word of `Attempts.failed`),
    and what the teacher wrote where that was refused (`refused`)."""
    corrected = attempts.corrected
    job, located = corrected.job, corrected.chosen.located
    start = to_host(attempts.rows.prompt_length_B)
    final = texts(
        [
            row[max(job.kept_B[n] - start[n], 0) :]
            for n, row in enumerate(completion_ids(attempts.rows))
        ],
        job.policy.tokenizer,
    )
    owner = "teacher" if attempts.spec.tail == "teacher" else "policy"
    items = []
    for n, (ask, r) in enumerate(zip(job.asks, corrected.chosen.position_N, strict=True)):
        verdict = bool(attempts.accepted_R[n]) if attempts.spec.tail != "none" else None
        steps = _parent_steps(attempts, n)
        own = attempts.own_R is not None and attempts.own_R[n]
        if own:
            tail = split_steps(final[n], job.domain.divider)
            steps += [_step(text, "policy", "tail") for text in tail if text.strip()]
        elif corrected.usable_R[n]:
            step = corrected.steps[n]
            steps.append(_step(step, "teacher", "corrected"))
            tail = split_steps(final[n][len(step) :], job.domain.divider)
            steps += [_step(text, owner, "tail") for text in tail if text.strip()]
        reason = attempts.failed[n]
        items.append(
            {
                "prompt": ask.problem.prompt,
                "answer": ask.problem.answer,
                "steps": steps,
                "first_error": int(located.error_R[r]),
                "threshold": located.threshold,
                "verdict_before": False,
                "verdict_after": verdict,
                "not_rescued": reason,
                "refused": None if own or corrected.usable_R[n] else corrected.steps[n] or None,
            }
        )
    return items


def _parent_steps(attempts: Attempts, number: int) -> list[dict[str, Any]]:
    """The steps of the failed row itself."""
    corrected = attempts.corrected
    located, r = corrected.chosen.located, corrected.chosen.position_N[number]
    texts_, error = located.rows.steps[r], int(located.error_R[r])
    oracle = corrected.job.domain.check_steps(corrected.job.asks[number].problem, texts_)
    steps = []
    for j, text in enumerate(texts_):
        status = "kept" if j < error else "wrong" if j == error else "discarded"
        score = float(located.score_RJ[r, j]) if located.valid_RJ[r, j] else None
        correct = None if oracle is None else bool(oracle[j])
        steps.append(_step(text, "policy", status, score, correct))
    return steps


def _step(
    text: str, owner: str, status: str, score: float | None = None, correct: bool | None = None
) -> dict[str, Any]:
    return {"text": text, "score": score, "owner": owner, "status": status, "correct": correct}
