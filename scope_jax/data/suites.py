"""Suites: published problems on disk, ten data sets with their graders and the field's settings.

Nothing is downloaded. Under one directory each suite has a folder (or a file) of its name, with the
files as they were published: `DATA/aime24/data/train-00000-of-00001.parquet`,
`DATA/math500/test.jsonl`, `DATA/gpqa_diamond/gpqa_diamond.csv`. A name that is not in `SUITES` is
read from its folder too: fields problem (or question, prompt) and answer.
"""

import csv
import dataclasses
import hashlib
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from scope_jax.data.fields import answer_text, is_number, number_text, text_of
from scope_jax.data.problems import Distinct
from scope_jax.data.rows import rows
from scope_jax.tasks.answers import last_boxed
from scope_jax.tasks.domain import Problem

Row = Mapping[str, Any]

BOXED = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTER = (
    "{problem}\n\nPlease reason step by step, and put the letter of your choice within \\boxed{}."
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
IDS = ("id", "ID", "unique_id", "Record ID", "question_id")
# Leaving out a line changes the figure, so only few may be malformed.
MAX_MALFORMED = 10


@dataclasses.dataclass(frozen=True)
class Suite:
    """How one data set is read and judged."""

    title: str
    read: Callable[[Row, str], tuple[str, str]]
    """(question, reference answer) of a row and its id; ValueError for a malformed row."""
    grader: str = "math"
    template: str = BOXED
    part: str = ""
    """Only files with this in their path are taken, where there are any."""
    samples: int = 1
    """Per problem, as the field does it."""
    size: int | None = None
    """Number of problems as published."""


@dataclasses.dataclass(frozen=True)
class SuiteData:
    """A suite that was read."""

    name: str
    suite: Suite
    problems: tuple[Problem, ...]
    """Their prompts are the template filled with `questions`."""
    questions: tuple[str, ...]
    rows: tuple[Row, ...]
    """The columns of the file."""
    files: tuple[str, ...]
    digest: str
    """sha256 over the bytes of `files`."""
    skipped: int
    """Malformed rows that were left out."""


def read_suite(name: str, data: str | pathlib.Path, *, template: str | None = None) -> SuiteData:
    """The suite `name` under the directory `data`, in the order of its files.

    `template` replaces the suite's own; it holds `{problem}`. Problems have the ids of the
    data set, else "<name>-<n>". Raises FileNotFoundError where there are no files, ValueError for
    a template without its place, more than `MAX_MALFORMED` malformed rows, an id that occurs
    twice, and no problem at all.
    """
    suite = SUITES.get(name) or Suite(name, _open)
    template = suite.template if template is None else template
    if "{problem}" not in template:
        raise ValueError(f"template {template[:60]!r}: expected the place {{problem}} in it")
    root, files = _files(name, suite, pathlib.Path(data))
    problems = Distinct()
    questions: list[str] = []
    found: list[Row] = []
    skipped = seen = 0
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
        for line, row in _rows(path):
            seen += 1
            try:
                if isinstance(row, Exception):
                    raise row
                if not isinstance(row, Mapping):
                    raise ValueError(f"expected an object, found {type(row).__name__}")
                identity = _identity(row, f"{name}-{seen - 1}")
                question, answer = suite.read(row, identity)
                question = text_of(question, "the question")
            except ValueError as error:
                skipped += 1
                if skipped > MAX_MALFORMED:
                    raise ValueError(
                        f"{path}: line {line}: {error}; more than {MAX_MALFORMED} malformed lines"
                    ) from error
                warnings.warn(f"{path}: line {line}: {error}; skipped", stacklevel=2)
                continue
            problem = Problem(identity, template.replace("{problem}", question), answer)
            if problems.add(problem, f"{path}: line {line}"):
                questions.append(question)
                found.append(row)
    if not problems.found:
        raise ValueError(
            f"{root}: no problem in {len(files)} files ({skipped} malformed lines skipped)"
        )
    problems.say_repeats(str(root))
    return SuiteData(
        name,
        suite,
        tuple(problems.found),
        tuple(questions),
        tuple(found),
        _names(root, files),
        digest.hexdigest(),
        skipped,
    )


# ---- rows of the data sets


def _open(row: Row, identity: str) -> tuple[str, str]:
    """A problem and its answer, by the names that the mirrors of these data sets use; the last box
    of the solution where there is no answer."""
    question = _text(row, "problem", "question", "Problem", "prompt")
    answer = next(
        (row[name] for name in ("answer", "Answer", "final_answer") if row.get(name) is not None),
        None,
    )
    if answer is None:
        answer = last_boxed(_text(row, "solution", "Solution"))
        if answer is None:
            raise ValueError("no field 'answer' and no \\boxed{} in 'solution'")
    return question, _answer_text(answer)


def _gsm8k(row: Row, identity: str) -> tuple[str, str]:
    solution = _text(row, "answer")
    if "####" not in solution:
        raise ValueError("field 'answer' has no '####' before its number")
    return _text(row, "question"), _answer_text(solution.rsplit("####", 1)[1].replace(",", ""))


def _olympiad(row: Row, identity: str) -> tuple[str, str]:
    """`final_answer` is a list, mostly of one text that holds all values; dollar signs around it
    go."""
    context, answers = row.get("context"), row.get("final_answer")
    question = _text(row, "question")
    if isinstance(context, str) and context.strip():
        question = f"{context.strip()}\n\n{question}"
    if answers is None:
        raise ValueError("no field 'final_answer'")
    answers = answers if isinstance(answers, (list, tuple)) else [answers]
    return question, _answer_text(
        [str(answer).replace("$", "") if isinstance(answer, str) else answer for answer in answers]
    )


def _arc(row: Row, identity: str) -> tuple[str, str]:
    """Choices beside the question (parquet) or within it (the first release). Some keys are 1 to
    4: all become letters."""
    question: Any = row.get("question")
    choices: Any = row.get("choices")
    if isinstance(question, Mapping):
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, Mapping):
        labels, texts = choices.get("label"), choices.get("text")
    else:
        if not isinstance(choices or [], list | tuple) or not all(
            isinstance(choice, Mapping) for choice in choices or ()
        ):
            raise ValueError("expected choices with a label and a text each")
        labels = [choice.get("label") for choice in choices or ()]
        texts = [choice.get("text") for choice in choices or ()]
    key = _text(row, "answerKey")
    if not isinstance(question, str) or not labels or not texts or len(labels) != len(texts):
        raise ValueError("expected question and choices with as many labels as texts")
    if key not in labels:
        raise ValueError(f"answerKey {key!r} is not among the labels {list(labels)}")
    return _choices(question, texts), LETTERS[list(labels).index(key)]


def _gpqa(row: Row, identity: str) -> tuple[str, str]:
    """The right answer is published first; the order shown depends on the record's id alone."""
    texts = [
        _text(row, "Correct Answer"),
        *(_text(row, f"Incorrect Answer {n}") for n in (1, 2, 3)),
    ]
    order = sorted(
        range(len(texts)), key=lambda n: hashlib.sha256(f"{identity}/{n}".encode()).digest()
    )
    return _choices(_text(row, "Question"), [texts[n] for n in order]), LETTERS[order.index(0)]


def _mmlu_pro(row: Row, identity: str) -> tuple[str, str]:
    options, index = row.get("options"), row.get("answer_index")
    if (
        not isinstance(options, (list, tuple))
        or not isinstance(index, int)
        or not 0 <= index < len(options)
    ):
        raise ValueError("expected 'options', a list, and 'answer_index' within it")
    letter = row.get("answer")
    if letter is not None and letter != LETTERS[index]:
        raise ValueError(f"answer {letter!r} is not that of answer_index {index}")
    return _choices(_text(row, "question"), options), LETTERS[index]


def _choices(question: str, texts: Sequence[Any]) -> str:
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"{len(texts)} choices: expected 2 to {len(LETTERS)}")
    shown = [text_of(text, "a choice").strip() for text in texts]
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, shown, strict=False)]
    return "\n".join([question.strip(), "", *lines])


def _text(row: Row, *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return text_of(value, f"field {name!r}").strip()
    raise ValueError(f"no text in field {' or '.join(repr(name) for name in names)}")


def _answer_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        value = ", ".join(answer_text(part, "an answer").strip() for part in value)
    return answer_text(value, "the answer").strip()


def _identity(row: Row, default: str) -> str:
    for name in IDS:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return text_of(value, f"field {name!r}")
        if is_number(value):
            return number_text(value)
    return default


SUITES: dict[str, Suite] = {
    "aime24": Suite("AIME24", _open, samples=32, size=30),
    "aime25": Suite("AIME25", _open, samples=32, size=30),
    "amc23": Suite("AMC23", _open, samples=32, size=40),
    "math500": Suite("MATH-500", _open, size=500),
    "minerva": Suite("Minerva", _open, size=272),
    "olympiadbench": Suite("OlympiadBench", _olympiad, part="OE_TO_maths_en_COMP", size=674),
    "arc_c": Suite("ARC-c", _arc, "choice", LETTER, part="ARC-Challenge", size=1172),
    "gpqa_diamond": Suite("GPQA-Diamond", _gpqa, "choice", LETTER, part="gpqa_diamond", size=198),
    "mmlu_pro": Suite("MMLU-Pro", _mmlu_pro, "choice", LETTER, size=12032),
    "gsm8k": Suite("GSM8K", _gsm8k, part="main", size=1319),
}


# ---- files


def _files(name: str, suite: Suite, data: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """(the suite's folder, its files): of one kind, of its part, of the split "test" where the
    names say so."""
    single = [
        data / f"{name}{suffix}" for suffix in SUFFIXES if (data / f"{name}{suffix}").is_file()
    ]
    root = data / name
    if not root.is_dir() and single:
        return data, single[:1]
    if not root.is_dir():
        known = ", ".join(SUITES)
        raise FileNotFoundError(
            f"{root}: no such folder: put the published files of {suite.title} there (known:"
            f" {known})"
        )
    found = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(root).parts)
    )
    for suffix in SUFFIXES:
        files = [
            path for path in found if path.suffix == suffix and path.name != "dataset_infos.json"
        ]
        if suite.part:
            files = [p for p in files if suite.part in str(p.relative_to(root))] or files
        files = [path for path in files if "test" in path.name.lower()] or files
        if files:
            return root, files
    raise FileNotFoundError(
        f"{root}: no {', '.join(SUFFIXES)} file in it: put the published files of {suite.title}"
        " there"
    )


def _names(root: pathlib.Path, files: Sequence[pathlib.Path]) -> tuple[str, ...]:
    return tuple(path.relative_to(root).as_posix() for path in files)


def _rows(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    yield from _csv(path) if path.suffix == ".csv" else rows(path)


def _csv(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8: {error}") from error
