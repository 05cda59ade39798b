"""From the text of a teacher to one step in the policy's ids."""

import functools
import re
from collections.abc import Sequence
from typing import Any

from scope_jax.tasks import Domain
from scope_jax.tasks.answers import CLOSING
from scope_jax.tasks.rules.spelling import normal_answer
from scope_jax.tasks.visible import BLANKS, is_visible
from scope_jax.text.boundaries import SENTENCES, Separator, places, split_steps
from scope_jax.text.steps import token_bytes

# A tag has nothing but its name, or attributes: "if x<think and y>z" is a comparison.
_ATTRIBUTES = (
    r"(?:\s{1,9}[\w:-]{1,40}\s{0,9}=\s{0,9}"
    r"""(?:"[^"<>]{0,99}"|'[^'<>]{0,99}'|[^\s<>"']{1,99})){0,9}"""
)
# Marks around what a model thinks before it answers; those with a group of the name "end" close.
_THOUGHTS = re.compile(
    rf"""
    <(?P<end1>/?)(?i:think|thinking|thought|thoughts|reasoning|analysis|scratchpad|seed:think)
        {_ATTRIBUTES}\s{{0,9}}>
    | \u25c1(?P<end2>/?)think\u25b7
    | \[(?P<end3>/?)THINK\]
    | <\|(?:begin|(?P<end4>end))_of_thought\|>
    | <\|channel\|>(?:(?:analysis|commentary)[^<>|]{{0,99}}(?:<\|constrain\|>[^<>|]{{0,99}})?
        |(?P<end5>final)\s{{0,9}})<\|message\|>
    """,
    re.VERBOSE,
)
# Marks around what it answers.
_ANSWER = re.compile(
    r"<(?P<end1>/?)(?i:answer)\s{0,9}>|<\|(?:begin|(?P<end2>end))_of_solution\|>"
    r"|(?P<end3><\|return\|>)"
)
_BOXES = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
# What sets an answer off: of LaTeX and of Markdown.
_MARKS = re.compile(r"[$*]|\\[()\[\]]")
_CONCLUDES = re.compile(r"\b(?:is|are|be|equals)\b|[=:]")
_WINDOW = 200  # characters of a sentence's end that are read for an answer in another spelling
_BLANK_LINES = re.compile(rf"(?:[{BLANKS}]*\n)*")
# A text up to this long is read and encoded whatever a step may hold, so that its failure has its
# own name.
_SHORT = 1 << 14


def read_reply(
    reply: str,
    complete: bool,
    last: bool,
    domain: Domain,
    *,
    most: int | None = None,
    continued: bool = False,
) -> tuple[str, bool] | str:
    """(step, whether it ends the solution) out of a reply, or why there is none: "empty",
    "incomplete", "thinking" (its thoughts have no end), "too_long" (past `most` characters).

    Thoughts (`<think>...</think>`, and other marks of them) are taken out, and marks around the
    answer (`<answer>`) are taken off, unless the reply goes on (`continued`) inside of those of the
    text before it. The step is what stands before the first match of the domain's divider; blank
    lines before it are dropped, further steps are cut. It ends the solution exactly where the wrong
    step was the rollout's last (`last`) and the step carries the domain's answer marker; it then
    stands without a separator. In all other cases it closes as it was written (of a boundary
    without the blanks before the next word, which belong to that word), or with the separator
    where the reply lacks an end: that a reply is over (`complete`: by an end token or a stop text)
    does not tell the end of a step from that of a solution. Takes time in proportion to the reply.
    """
    answer = reply if continued else without_thoughts(reply)
    if answer is None:
        return "thinking"
    if not continued:
        answer = _without_answer_marks(answer)
    text = _from_the_first_line(unix_newlines(answer))
    cut = most is not None and len(text) > most
    text = text[:most]
    divider = domain.divider
    step, found = _first_step(text, divider)
    if not is_visible(step):
        return "empty"
    if found is None and cut:
        return "too_long"
    if found is None and not complete:
        return "incomplete"
    if found is None:
        step = step.rstrip()
    end = found.group() if found else ""
    if last and domain.answer_marker(step + end):
        # A pattern's match may hold the full stop too.
        return step if isinstance(divider, str) else step + end.rstrip(), True
    closed = end or (found and step[-1].isspace())
    if not closed:
        return step + domain.separator, False
    return step + end if isinstance(divider, str) else _without_last_blanks(step + end), False


def without_thoughts(text: str) -> str | None:
    """A reply without the thoughts before or within it; None where they have no end. Thoughts
    whose beginning was part of the prompt reach from the start to the first closing tag."""
    kept: list[str] = []
    start, inside = 0, False
    for tag in _THOUGHTS.finditer(text):
        closes = _is_end(tag)
        if closes and not inside:
            kept.clear()
        elif not closes and not inside:
            kept.append(text[start : tag.start()])
        start, inside = tag.end(), not closes
    return None if inside else "".join([*kept, text[start:]])


def _is_end(mark: re.Match[str]) -> bool:
    return any(mark.groupdict().values())


def _without_answer_marks(text: str) -> str:
    """A text without a mark of the answer's beginning at its start, and without the end of it (or
    of one whose beginning was part of the prompt)."""
    mark = _ANSWER.search(text)
    if mark is not None and not _is_end(mark):
        if is_visible(text[: mark.start()]):
            return text
        text = text[mark.end() :]
        mark = _ANSWER.search(text)
    if mark is None or not _is_end(mark):
        return text
    return text[: mark.start()] + text[mark.end() :]


def unix_newlines(text: str) -> str:
    """The text with each end of a line as one "\\n"."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def opening_blanks(kept: Sequence[str], wrong: str, divider: Separator) -> str:
    """The white space that a step needs before it after `kept`: what stands between these steps and
    the boundary, and was cut off with the wrong step because it belongs to its first token
    (" First"). Mostly none."""
    if not kept:
        return ""
    end, before = 0, len(kept[-1])
    for part in split_steps(kept[-1] + wrong, divider):
        end += len(part)
        if end >= before:
            break
    blanks = wrong[: end - before]
    return blanks if end < before + len(wrong) and not blanks.strip() else ""


def _without_last_blanks(step: str) -> str:
    """The step without blanks at its end; with them where an end of a line is among them."""
    bare = step.rstrip()
    return step if "\n" in step[len(bare) :] else bare


def _first_step(text: str, divider: Separator) -> tuple[str, re.Match[str] | None]:
    """(the first part between separators with a visible character, its separator)."""
    start = 0
    for match in places(text, divider):
        if match.end() <= start:
            continue
        if is_visible(text[start : match.start()]):
            return text[start : match.start()], match
        blank = _BLANK_LINES.match(text, match.end())
        start = blank.end() if blank else match.end()
    return text[start:], None


def _from_the_first_line(text: str) -> str:
    """The text without the blank lines before its first visible character."""
    first = len(text) - len(text.lstrip())
    return text[text.rfind("\n", 0, first) + 1 :]


def gives_answer_away(step: str, answer: str) -> bool:
    """Whether a step states `answer` as the final one: the step is the answer and nothing else, or
    its last sentence ends with it and either says "answer" or begins with a word of conclusion
    (so, thus, hence, therefore, finally). Typesetting and thousands do not matter, nor a unit of
    up to two words behind it."""
    target = _bare(answer)
    lines = step.split("\n")
    sentences = [
        part.strip() for line in lines for part in split_steps(line, SENTENCES) if part.strip()
    ]
    if not target or not sentences:
        return False
    if _bare(step) == target or _is(step, target):
        return True
    last = _bare(sentences[-1])
    before = last[: -len(target)][-1:]
    ends_with = last.endswith(target) and not re.match(r"[\w.,-]", before)
    says_so = re.search(
        r"\banswer\b|^(so|thus|hence|therefore|finally)\b", sentences[-1], re.IGNORECASE
    )
    return bool(says_so and (ends_with or _comes_to(last, target)))


def _bare(text: str) -> str:
    plain = _MARKS.sub("", _unboxed(text))
    return plain.strip().rstrip(".!:\u3002\uff0e\uff01").strip()


def _comes_to(sentence: str, answer: str) -> bool:
    """Whether what stands behind the last "is" or sign of a sentence is the answer, with or without
    a unit."""
    words = _CONCLUDES.split(sentence[-_WINDOW:])[-1].split()
    return _is(" ".join(words), answer) or (len(words) in (2, 3) and _is(words[0], answer))


def _is(text: str, answer: str) -> bool:
    """Whether two short texts are one answer in two spellings."""
    if max(len(text), len(answer)) > _WINDOW or not text.strip():
        return False
    return normal_answer(_bare(text)) == normal_answer(answer)


def _unboxed(text: str) -> str:
    """A text with the contents of its boxes in their place. One pass, however many are opened."""
    opened: list[tuple[int, int] | None] = []  # None: a brace of another kind
    gone: list[tuple[int, int]] = []
    for match in _BOXES.finditer(text):
        if match[1] or match[0] == "{":
            opened.append(match.span() if match[1] else None)
        elif match[0] == "}" and opened and (box := opened.pop()) is not None:
            gone += [box, match.span()]
    kept, start = [], 0
    for first, end in sorted(gone):
        kept.append(text[start:first])
        start = end
    return "".join([*kept, text[start:]])


def reference_steps(solution: str, separator: str, divider: Separator | None = None) -> list[str]:
    """The steps of a reference solution: the parts between separators (or where `divider` divides
    it); where there is one part its lines, and where there is one line its sentences. What a domain
    put behind a solution to state its answer (`answers.boxed_solution`) is a step of its own and
    does not count as a part. Each step but the last closes with the separator."""
    body, closing = _without_closing(unix_newlines(solution))
    parts: list[str] = []
    for pattern in (divider or separator, "\n", SENTENCES):
        parts = [part.strip() for part in split_steps(body, pattern) if part.strip()]
        if len(parts) > 1:
            break
    parts += closing
    return [part + separator for part in parts[:-1]] + parts[-1:]


def _without_closing(solution: str) -> tuple[str, list[str]]:
    """(a solution without the step that states its answer, that step where there is one)."""
    body, found, answer = solution.rpartition("\n\n" + CLOSING)
    return (body, [CLOSING + answer.strip()]) if found else (solution, [])


def encode_step(step: str, tokenizer: Any, separator: str = "\n") -> list[int] | None:
    """Ids whose text is exactly `step`, None where the tokenizer has none.

    Some tokenizers put a blank before the first word of any text. Then the step is encoded behind
    a separator, whose ids are taken off again. The bytes of the ids decide, so nothing is lost or
    added beside the steps that are kept.
    """
    try:
        pieces, wanted = token_bytes(tokenizer), step.encode()
    except UnicodeEncodeError:
        return None  # half of a character, which JSON can carry
    for before in ("", separator, "\n"):
        head = tokenizer.encode(before, add_special_tokens=False) if before else []
        ids = tokenizer.encode(before + step, add_special_tokens=False)
        if ids[: len(head)] == head and b"".join(pieces[i] for i in ids[len(head) :]) == wanted:
            return list(ids[len(head) :])
    return None


@functools.lru_cache(maxsize=4)
def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """The texts that a tokenizer reads as special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens)))


def most_characters(tokenizer: Any, tokens: int) -> int:
    """No text longer than this is spelt by so many tokens, and encoding one would be in vain."""
    return max(tokens * _longest_piece(tokenizer), _SHORT)


@functools.lru_cache(maxsize=4)
def _longest_piece(tokenizer: Any) -> int:
    return max(map(len, token_bytes(tokenizer)))
