"""Do training problems show up in the evaluation sets? Overlap of word n-grams between problem
texts.

Texts are compared after `words`: lower case, compatibility forms of Unicode unified, formatting
dropped. Two problems overlap where they share a run of `n` words (13, the field's habit since
GPT-3); a problem with fewer words than that is compared as a whole.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scope_jax.data.problems import Problems
from scope_jax.tasks.domain import Problem

# Signs stay words of their own: "1 + 2" is another problem than "1 - 2", "5!" than "5" (but "Find
# it!" is "find it"). Dollars, braces and full stops are formatting.
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[-+*/=<>^%|]|(?<=[\d)])!|(?<=\b[a-z])!")
_FORMATTING = re.compile(r"\\(?:left|right|[dt]?frac|text|mathrm|displaystyle|[,;:! ])(?![a-zA-Z])")


@dataclasses.dataclass(frozen=True)
class Overlap:
    """A training problem that shares text with a problem of an evaluation set."""

    train: str  # ids
    set: str
    evaluation: str
    text: str  # the words that both have


def words(text: str) -> list[str]:
    """The words that are compared: runs of letters, numbers, and single signs."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2212", "-")
    return _WORD.findall(_FORMATTING.sub(" ", plain))


def find_overlaps(
    train: Sequence[Problem], evaluation: Mapping[str, Sequence[Problem]], n: int = 13
) -> dict[int, Overlap]:
    """Index in `train` -> its first overlap, for each training problem that has one. Raises
    ValueError for n < 1."""
    if n < 1:
        raise ValueError(f"decontaminate: n-grams of {n} words: expected at least 1")
    known: dict[tuple[str, ...], tuple[str, str]] = {}
    for name in sorted(evaluation):
        for problem in evaluation[name]:
            for gram in _grams(words(problem.prompt), n):
                known.setdefault(gram, (name, problem.id))
    found = {}
    for index, problem in enumerate(train):
        for gram in _grams(words(problem.prompt), n):
            if gram in known:
                found[index] = Overlap(problem.id, *known[gram], " ".join(gram))
                break
    return found


def decontaminated(
    train: Problems,
    evaluation: Mapping[str, Sequence[Problem]],
    n: int = 13,
    *,
    remove: bool = True,
) -> tuple[Problems, dict[str, Any]]:
    """(training problems, without those that overlap where `remove`; a record for a JSON file: the
    counts, in all and by evaluation set, and every overlap). Raises ValueError where nothing would
    be left."""
    found = find_overlaps(train, evaluation, n)
    record = {
        "source": train.name,
        "words": n,
        "checked": len(train),
        "overlapping": len(found),
        "removed": len(found) if remove else 0,
        "by_set": dict(sorted(Counter(overlap.set for overlap in found.values()).items())),
        "overlaps": [dataclasses.asdict(overlap) for overlap in found.values()],
    }
    if not (remove and found):
        return train, record
    kept = [problem for index, problem in enumerate(train) if index not in found]
    if not kept:
        raise ValueError(
            f"{train.name}: every training problem overlaps with an evaluation set: are they the"
            " same files?"
        )
    return Problems.from_list(kept, train.name, train.skipped), record


def _grams(text: list[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of n words; of a shorter text the whole (a shorter tuple, so that it equals only
    another whole text)."""
    if len(text) < n:
        if text:
            yield tuple(text)
        return
    for start in range(len(text) - n + 1):
        yield tuple(text[start : start + n])
