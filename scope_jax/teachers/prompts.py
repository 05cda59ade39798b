"""What a prompted teacher is told about one row."""

import re

from scope_jax.teachers.base import Ask, TeacherSpec

_ORDER = (
    "You correct solutions step by step. Below are a problem and the beginning of a solution, all"
    " of it right so far. Write the one step that comes next, in the notation and style of the"
    " solution, and nothing else: no comment, no title, no second step."
)


def prompt_text(ask: Ask, spec: TeacherSpec) -> str:
    """The prompt that `spec` makes of one row."""
    values = {
        "prompt": ask.problem.prompt,
        "kept": "".join(ask.kept),
        "wrong": ask.wrong,
        "answer": ask.problem.answer,
    }
    if spec.prompt:
        return re.sub(
            r"\{(prompt|kept|wrong|answer)\}", lambda match: values[match[1]], spec.prompt
        )
    parts = [
        _ORDER,
        f"Problem:\n{values['prompt']}",
        f"Solution so far:\n{values['kept'].rstrip()}",
    ]
    if spec.template != "continue":
        parts.append(f"The next step was written like this, and it is wrong:\n{ask.wrong.rstrip()}")
    if spec.template == "wrong_step_and_answer":
        parts.append(f"The final answer, to check your step against: {ask.problem.answer}")
    parts.append(
        "If your step completes the solution, let it state the final answer in the form that the"
        " problem asks for."
        if ask.last
        else "More steps follow after yours: do not state the final answer."
    )
    return "\n\n".join(parts)
