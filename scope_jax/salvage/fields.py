"""Rollouts as other programs log them: which field holds what, and one line read by it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.data.fields import answer_text, check_characters, id_text, is_number, text_of
from scope_jax.salvage import traces
from scope_jax.salvage.settings import Settings

# What a line may hold. A name with dots goes into objects and lists: outputs.0.text.
ROLES = (
    "problem",  # the question alone
    "prompt",  # what the policy was shown: a text, or chat messages
    "prompt_ids",
    "completion",  # a text, or one message of the assistant
    "completion_ids",
    "reward",
    "answer",
    "solution",  # a whole reference solution
    "id",
    "group",
    "cut_off",  # true, or a reason of CUT: the rollout was stopped before its end
    "error",  # the rollout failed before it was judged: its reward says nothing
)
CUT = ("length", "abort")
# The most telling come first: a line is read by the first layout of which it has a completion and
# a prompt.
LAYOUTS: dict[str, dict[str, str]] = {
    "traces": {"error": "error"},  # once `traces.flat` has read them
    "vllm": {
        "prompt": "prompt",
        "prompt_ids": "prompt_token_ids",
        "completion": "outputs.0.text",
        "completion_ids": "outputs.0.token_ids",
        "cut_off": "outputs.0.finish_reason",
        "id": "request_id",
    },
    "verl": {"prompt": "input", "completion": "output", "reward": "score", "answer": "gts"},
    "prime-rl": {
        "prompt": "prompt",
        "completion": "completion",
        "group": "example_id",
        "cut_off": "is_truncated",
        "error": "error",
    },
    "trl": {"prompt": "prompt", "completion": "completion"},
    "plain": {},
}
# The field that a line of a layout has and those of the others lack.
_TELLING = {
    "traces": "nodes",
    "vllm": "outputs",
    "verl": "output",
    "prime-rl": "example_id",
    "trl": "advantage",
}
_NOWHERE = object()
# The field of each role where a layout does not name it. Of others than those that say so, a field
# "error" may hold anything.
_OWN = {role: role for role in ROLES} | {"error": ""}
# Beside the text of a message: what a model wrote too, and what is not in its text.
_APART = ("reasoning_content", "reasoning", "tool_calls", "function_call")


@dataclasses.dataclass(frozen=True)
class Logged:
    """One rollout of a log. Of prompt and completion there is a text, or ids, or both."""

    line: int
    id: str
    group: str | None
    problem: str | None
    prompt: str | None
    system: str | None  # of a prompt that was chat messages, and is put into the template anew
    prompt_ids: list[int] | None
    completion: str | None
    completion_ids: list[int] | None
    reward: float | None  # None: to be judged
    answer: str
    solution: str | None
    cut_off: bool
    messages: bool  # the prompt was chat messages: `prompt` is the user's turn


def layout_of(settings: Settings, row: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """(name, field of each role) of the layout that `--fields` names, or by which `row` can be
    read. Roles that a layout does not name have their own names. Raises ValueError."""
    changes = dict(word.split("=", 1) for word in settings.fields if "=" in word)
    named = [word for word in settings.fields if "=" not in word]
    if unknown := sorted(set(changes) - set(ROLES)):
        raise ValueError(f"--fields: {unknown[0]!r} is unknown; one of {', '.join(ROLES)}")
    if len(named) > 1 or not set(named) <= set(LAYOUTS):
        raise ValueError(
            f"--fields={','.join(settings.fields)}: one of {', '.join(LAYOUTS)}, and role=field"
        )
    for name in named or LAYOUTS:
        names = _OWN | LAYOUTS[name] | changes
        telling = _TELLING.get(name)
        seen = traces.flat(row) if name == "traces" and (named or telling in row) else row
        there = [role for role in ROLES if _find(seen, names[role]) is not _NOWHERE]
        whole = {"completion", "completion_ids"} & {*there}
        whole_prompt = {"problem", "prompt", "prompt_ids"} & {*there}
        if whole and whole_prompt and (named or telling is None or telling in row):
            return name, names
    raise ValueError(
        f"no fields of a prompt and a completion among {', '.join(map(str, row)) or 'none'}; name"
        " them, as in --fields=prompt=question,completion=response,reward=score"
    )


def read_row(row: Any, names: Mapping[str, str], line: int, *, needs_answer: bool = True) -> Logged:
    """The rollout in the object of one line. Raises ValueError that says what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    _check_one(row, names)
    found = {role: _value(row, names[role]) for role in ROLES}
    if found["error"]:
        raise ValueError(f"field {names['error']!r}: {found['error']!r:.80}: it was not judged")
    prompt, system = _prompt(found["prompt"], names["prompt"])
    problem = found["problem"]
    if problem is not None:
        problem = text_of(problem, f"field {names['problem']!r}")
    completion = _completion(found["completion"], names["completion"])
    ids = {role: _ids(found[role], names[role]) for role in ("prompt_ids", "completion_ids")}
    if completion is None and ids["completion_ids"] is None:
        raise ValueError(f"field {names['completion']!r} is missing")
    if problem is None and prompt is None and ids["prompt_ids"] is None:
        raise ValueError(f"field {names['prompt']!r} is missing")
    reward = _reward(found["reward"], names["reward"])
    answer = found["answer"]
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if answer is None and needs_answer:
        raise ValueError(f"field {names['answer']!r} is missing: the verifier needs it")
    solution = found["solution"]
    return Logged(
        line=line,
        id=id_text(found["id"], f"field {names['id']!r}", str(line)),
        group=id_text(found["group"], f"field {names['group']!r}", "") or None,
        problem=problem if problem is not None else prompt,
        prompt=prompt,
        system=system,
        completion=completion,
        reward=reward,
        answer="" if answer is None else answer_text(answer, f"field {names['answer']!r}"),
        solution=solution if isinstance(solution, str) and solution.strip() else None,
        cut_off=_cut_off(found["cut_off"], names["cut_off"]),
        messages=isinstance(found["prompt"], list),
        **ids,
    )


def _prompt(value: Any, name: str) -> tuple[str | None, str | None]:
    """(text of the prompt, or of its one user's turn; the system's turn before that)."""
    if value is None:
        return None, None
    if not isinstance(value, list):
        return text_of(value, f"field {name!r}"), None
    roles, contents = _turns(value, name)
    if roles == ["system", "user"]:
        return contents[1], contents[0]
    if roles != ["user"]:
        raise ValueError(
            f"field {name!r}: turns of {', '.join(roles) or 'nobody'}; expected one of the user,"
            " and one of the system before it at most"
        )
    return contents[0], None


def _completion(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        roles, contents = _turns(value, name)
        if roles != ["assistant"]:
            raise ValueError(
                f"field {name!r}: turns of {', '.join(roles) or 'nobody'}; expected one of the"
                " assistant"
            )
        value = contents[0]
    return text_of(value, f"field {name!r}")


def _turns(value: Sequence[Any], name: str) -> tuple[list[str], list[str]]:
    """(roles, contents) of chat messages. A content may be a list of parts that are texts."""
    contents = []
    for turn in value:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if isinstance(content, list) and all(
            isinstance(part, Mapping) and part.get("type") == "text" for part in content
        ):
            content = "".join(str(part.get("text")) for part in content)
        if not isinstance(content, str):
            raise ValueError(f"field {name!r}: expected messages with a role and a text as content")
        if apart := [key for key in _APART if turn.get(key)]:
            raise ValueError(
                f"field {name!r}: a message with {apart[0]} beside its text: expected all that was"
                " written in one text, or token ids"
            )
        check_characters(content, f"field {name!r}")
        contents.append(content)
    return [str(turn.get("role")) for turn in value], contents


def _check_one(row: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raise ValueError where a line holds several rollouts, of which the first would be read."""
    outputs = row.get("outputs")
    read = {names["completion"], names["completion_ids"]}
    if isinstance(outputs, list) and len(outputs) > 1 and read & {*_OF_THE_FIRST}:
        raise ValueError(f"field 'outputs' holds {len(outputs)} rollouts: expected a line for each")


_OF_THE_FIRST = (LAYOUTS["vllm"]["completion"], LAYOUTS["vllm"]["completion_ids"])


def _reward(value: Any, name: str) -> float | None:
    if value is None or isinstance(value, bool):
        return None if value is None else float(value)
    try:
        if is_number(value):
            return float(value)
    except OverflowError:
        pass
    raise ValueError(f"field {name!r}: {value!r:.40} is no number")


def _cut_off(value: Any, name: str) -> bool:
    """Whether the rollout was stopped: a yes or no (1 or 0, as tables have it), or a reason."""
    if isinstance(value, str):
        return value in CUT
    if value is None or value != value:  # a table's missing value
        return False
    if value in (0, 1):
        return bool(value)
    raise ValueError(f"field {name!r}: {value!r:.40}: expected true, false or a reason")


def _ids(value: Any, name: str) -> list[int] | None:
    if value is None:
        return None
    whole = isinstance(value, list) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value
    )
    if not whole or not value:
        raise ValueError(f"field {name!r}: expected token ids, whole numbers from 0")
    return value


def _value(row: Mapping[str, Any], name: str) -> Any:
    found = _find(row, name)
    return None if found is _NOWHERE else found


def _find(row: Any, name: str) -> Any:
    """The value of a field, dots leading into objects and lists; _NOWHERE where it is missing."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    for part in name.split("."):
        if isinstance(row, Mapping) and part in row:
            row = row[part]
        elif isinstance(row, list) and part.isdecimal() and int(part) < len(row):
            row = row[int(part)]
        else:
            return _NOWHERE
    return row
