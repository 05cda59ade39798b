"""From the text of a teacher to one step in the policy's ids."""

import functools
import re
from typing import Any

from scope_jax.tasks import Domain
from scope_jax.text import split_steps
from scope_jax.text.steps import Separator, token_bytes


def read_reply(reply: str, complete: bool, last: bool, domain: Domain) -> tuple[str, bool] | str:
    """(step, whether it ends the solution) out of a reply, or why there is none: "empty",
    "incomplete".

    The step is what stands before the first separator (or match of the domain's `boundary`); blank
    lines before it are dropped, further steps are cut. It ends the solution exactly where the
    wrong step was the rollout's last (`last`) and the step carries the domain's answer marker; it
    then stands without a separator. In all other cases it closes as it was written, or with the
    separator where the reply lacks an end: that a reply is over (`complete`: by an end token or a
    stop text) does not tell the end of a step from that of a solution.
    """
    pattern = re.compile(domain.boundary or re.escape(domain.separator))
    step, rest, found = "", reply, None
    while rest and not step.strip():
        rest = rest.lstrip("\r\n")
        found = next((match for match in pattern.finditer(rest) if match.end() > 0), None)
        step, rest = (rest[: found.start()], rest[found.end() :]) if found else (rest, "")
    if not step.strip():
        return "empty"
    if found is None and not complete:
        return "incomplete"
    if found is None:
        step = step.rstrip()
    end = found.group() if found else ""
    if last and domain.answer_marker(step + end):
        return step, True
    closed = end or (found and step[-1].isspace())
    return step + (end if closed else domain.separator), False


def gives_answer_away(step: str, answer: str) -> bool:
    """Whether a step states `answer` as the final one: the step is the answer and nothing else, or
    its last sentence ends with it and either says "answer" or begins with a word of conclusion
    (so, thus, hence, therefore, finally)."""
    target = _bare(answer)
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", step) if part.strip()]
    if not target or not sentences:
        return False
    if _bare(step) == target:
        return True
    ends_with = re.search(rf"(?<![\w.,-]){re.escape(target)}$", _bare(sentences[-1]))
    says_so = re.search(
        r"\banswer\b|^(so|thus|hence|therefore|finally)\b", sentences[-1], re.IGNORECASE
    )
    return bool(ends_with and says_so)


def _bare(text: str) -> str:
    return re.sub(r"\\boxed\s*\{(.*)\}", r"\1", text).replace("$", "").strip().rstrip(".!:").strip()


def reference_steps(solution: str, separator: str, divider: Separator | None = None) -> list[str]:
    """The steps of a reference solution: the parts between separators (or where `divider` divides
    it); where there is one part its lines, and where there is one line its sentences. Each but the
    last closes with the separator."""
    parts: list[str] = []
    for pattern in (divider or separator, "\n", re.compile(r"(?<=[.!?])\s")):
        parts = [part.strip() for part in split_steps(solution, pattern) if part.strip()]
        if len(parts) > 1:
            break
    return [part + separator for part in parts[:-1]] + parts[-1:]


def encode_step(step: str, tokenizer: Any, separator: str = "\n") -> list[int] | None:
    """Ids whose text is exactly `step`, None where the tokenizer has none.

    Some tokenizers put a blank before the first word of any text. Then the step is encoded behind
    a separator, whose ids are taken off again. The bytes of the ids decide, so nothing is lost or
    added beside the steps that are kept.
    """
    pieces, wanted = token_bytes(tokenizer), step.encode()
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
