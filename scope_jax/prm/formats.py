"""The input formats of published process reward models: problem and steps -> token ids and the
positions to score at.

Text only, no model. Steps are texts, whatever tokenizer wrote them; where a step ends in the PRM's
own ids is known from how the ids were put together, never by decoding.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from scope_jax.text.chat import chat_text
from scope_jax.text.tokenizers import STEP_MARK

# The system turn that Qwen2.5-Math-PRM was trained with.
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
TAG, GOOD, BAD = "ки", "+", "-"

# (ids, position of the mark of each step); no ids where a row cannot be scored.
Row = tuple[list[int], list[int]]


@dataclasses.dataclass(frozen=True)
class Format:
    """How a solution is written down for a process reward model."""

    head: str  # what must stand on top of the decoder
    # encode(tokenizer, prompts, steps): one Row per prompt.
    encode: Callable[[Any, Sequence[str], Sequence[Sequence[str]]], list[Row]]
    # check(tokenizer): raises ValueError where a token that the format needs is missing.
    check: Callable[[Any], Any]


def recognise(head: str, model_type: str, tokenizer: Any) -> str:
    """The name of the format of a checkpoint, from what its directory says.

    A causal LM is taken for Math-Shepherd only if it is a Mistral with that format's tag: any
    other must be named. Raises ValueError where it is none of the known formats.
    """
    for name in ("qwen", "skywork"):
        if FORMATS[name].head == head:
            return name
    if head == "lm" and model_type == "mistral" and _word_id(tokenizer, TAG) is not None:
        return "math_shepherd"
    raise ValueError(
        f"a {model_type} model with head {head!r} is no known process reward model: expected"
        " score.0 and score.2 (Qwen2.5-Math-PRM), a value head (Skywork-o1-Open-PRM), or a mistral"
        " causal LM with the tag of Math-Shepherd; for another causal LM that is used like the"
        " last set models.prm_format to math_shepherd"
    )


# ---- Qwen2.5-Math-PRM: chat template, every step followed by <extra_0>


def qwen_mark(tokenizer: Any) -> int:
    """Id of the step mark. Raises ValueError where the tokenizer has none."""
    mark = tokenizer.convert_tokens_to_ids(STEP_MARK)
    if mark is None or mark == tokenizer.unk_token_id:
        raise ValueError(
            f"the PRM's tokenizer has no {STEP_MARK!r} token; it marks the end of each step"
        )
    return int(mark)


def _encode_qwen(
    tokenizer: Any, prompts: Sequence[str], steps: Sequence[Sequence[str]]
) -> list[Row]:
    before, after = _frame(tokenizer)
    rows = []
    for prompt, row in zip(prompts, steps, strict=True):
        body = "".join(step.strip() + STEP_MARK for step in row)
        rows.append(
            before.replace(_USER, prompt) + body + after if _clean(STEP_MARK, prompt, row) else ""
        )
    return [_find_marks(ids, qwen_mark(tokenizer)) for ids in _ids(tokenizer, rows)]


_USER = "\x00user\x00"
_ASSISTANT = "\x00assistant\x00"


@functools.lru_cache(maxsize=8)
def _frame(tokenizer: Any) -> tuple[str, str]:
    """The chat template around the steps: text before (with a placeholder for the problem) and
    after."""
    messages = [
        {"role": "system", "content": QWEN_SYSTEM},
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": _ASSISTANT},
    ]
    text = chat_text(tokenizer, messages)
    if text.count(_ASSISTANT) != 1 or text.count(_USER) != 1:
        raise ValueError(
            f"{tokenizer.name_or_path}: the PRM's chat template must show the user's and the"
            " assistant's turn once each"
        )
    before, after = text.split(_ASSISTANT)
    return before, after


# ---- Math-Shepherd: "{problem} {step} ки\n{step} ки", the good and the bad token compared at each
# tag


def shepherd_ids(tokenizer: Any) -> tuple[int, int, int]:
    """Ids of tag, good and bad token, as words of their own after other text. Raises ValueError
    where one is missing."""
    found = []
    for word in (TAG, GOOD, BAD):
        token = _word_id(tokenizer, word)
        if token is None:
            raise ValueError(
                f"the PRM's tokenizer has no single token for {' ' + word!r}; a Math-Shepherd PRM"
                " needs it"
            )
        found.append(token)
    return found[0], found[1], found[2]


def _encode_shepherd(
    tokenizer: Any, prompts: Sequence[str], steps: Sequence[Sequence[str]]
) -> list[Row]:
    rows = []
    for prompt, row in zip(prompts, steps, strict=True):
        body = "\n".join(f"{step.strip()} {TAG}" for step in row)
        rows.append(f"{prompt} {body}" if _clean(TAG, prompt, row) else "")
    tag, begin = shepherd_ids(tokenizer)[0], _begin(tokenizer)
    return [_find_marks(begin + ids if ids else [], tag) for ids in _ids(tokenizer, rows)]


def _word_id(tokenizer: Any, word: str) -> int | None:
    """The one id that " word" adds to the text before it; None where it is not one token of its
    own.

    Looked up after another word, because sentencepiece puts a space of its own in front of a text.
    """
    alone, both = (
        tokenizer.encode("1", add_special_tokens=False),
        tokenizer.encode(f"1 {word}", add_special_tokens=False),
    )
    if both[:-1] != alone or both[-1] == tokenizer.unk_token_id:
        return None
    return int(both[-1])


# ---- Skywork-o1-Open-PRM: "{problem}\n", every line encoded by itself and followed by the newline
# token


def newline_id(tokenizer: Any) -> int:
    """Id of the newline token. Raises ValueError where the tokenizer has none."""
    ids = tokenizer.encode("\n", add_special_tokens=False)
    if not ids or ids[-1] == tokenizer.unk_token_id:
        raise ValueError(
            "the PRM's tokenizer has no newline token; it marks the end of each step of a"
            " Skywork PRM"
        )
    return int(ids[-1])


def _encode_skywork(
    tokenizer: Any, prompts: Sequence[str], steps: Sequence[Sequence[str]]
) -> list[Row]:
    # The lines of a step one by one: encoded together, a newline would merge with the text or the
    # newline beside it.
    lines = [[[line for line in step.split("\n") if line.strip()] for step in row] for row in steps]
    texts = [f"{prompt}\n" for prompt in prompts] + [
        line for row in lines for step in row for line in step
    ]
    encoded = iter(_ids(tokenizer, texts))
    begin, newline = _begin(tokenizer), newline_id(tokenizer)
    rows: list[Row] = [(begin + next(encoded), []) for _ in prompts]
    for (ids, marks), row in zip(rows, lines, strict=True):
        for step in row:
            for _ in step:
                ids += [*next(encoded), newline]
            if not step:
                ids.append(newline)
            marks.append(len(ids) - 1)
    return rows


FORMATS = {
    "qwen": Format("prm", _encode_qwen, qwen_mark),
    "math_shepherd": Format("lm", _encode_shepherd, shepherd_ids),
    "skywork": Format("value", _encode_skywork, newline_id),
}


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many texts in one call, which is several times faster; no special tokens."""
    return (
        [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        if texts
        else []
    )


def _begin(tokenizer: Any) -> list[int]:
    """The beginning-of-text token, exactly once; nothing where the tokenizer has none."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def _clean(mark: str, prompt: str, steps: Sequence[str]) -> bool:
    """Whether the texts themselves hold no mark, which could not be told from the marks that are
    put in."""
    return not any(mark in text for text in (prompt, *steps))


def _find_marks(ids: list[int], mark: int) -> Row:
    return ids, [place for place, token in enumerate(ids) if token == mark]
