"""Solutions with a labelled first error, in the published fields of ProcessBench (arXiv
2412.06559).

One file per subset, such as `gsm8k.json`: a list of objects, one object a line, or parquet. Each
object has `id`, `generator`, `problem`, `steps` (list of texts), `final_answer_correct` and
`label`, the index of the first wrong step or -1 where all are right.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scope_jax.data.fields import check_characters, id_text, text_of
from scope_jax.data.files import any_path
from scope_jax.data.rows import SUFFIXES, AnyPath, rows

SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")
FIELDS = ("id", "generator", "problem", "steps", "final_answer_correct", "label")
# Files that stand beside a data set and hold no items.
BESIDE = ("dataset_info.json", "dataset_infos.json", "state.json")


@dataclasses.dataclass(frozen=True)
class LabelledSolution:
    """A solution of one problem. `label`: index of its first wrong step, -1 where all steps are
    right."""

    id: str
    problem: str
    steps: tuple[str, ...]
    label: int
    generator: str = ""
    final_answer_correct: bool | None = None


@dataclasses.dataclass(frozen=True)
class Subset:
    """The items of one subset; `skipped` counts malformed ones that were left out."""

    name: str
    items: tuple[LabelledSolution, ...]
    skipped: int = 0


def load_processbench(path: str | Path, *, max_malformed: int = 100) -> list[Subset]:
    """The subsets of a directory (its data files, or those in its `data/`), or of one file;
    published subsets first.

    A file's stem names its subset; `gsm8k-00000-of-00002.parquet` is a part of gsm8k. A malformed
    item is skipped with a warning that names file and line; more than `max_malformed` in a file
    raise ValueError, and so does a file without items. Raises FileNotFoundError where there is no
    data file.
    """
    root = any_path(path)
    files = [root] if root.is_file() else _data_files(root) or _data_files(root / "data")
    if not files:
        raise FileNotFoundError(
            f"{path}: no ProcessBench data there: expected gsm8k.json (or .jsonl, .parquet) and the"
            " like"
        )
    parts: dict[str, Subset] = {}
    for file in files:
        name = re.sub(r"-\d+-of-\d+$", "", _stem(file))
        items, skipped = _read_items(file, max_malformed)
        before = parts.get(name, Subset(name, ()))
        parts[name] = Subset(name, before.items + items, before.skipped + skipped)
    return [
        parts[name]
        for name in sorted(
            parts, key=lambda n: (SUBSETS.index(n) if n in SUBSETS else len(SUBSETS), n)
        )
    ]


def _data_files(directory: AnyPath) -> list[AnyPath]:
    if not directory.is_dir():
        return []
    return [
        p
        for p in sorted(directory.iterdir())
        if p.name.endswith(SUFFIXES) and p.is_file() and p.name not in BESIDE
    ]


def _stem(path: AnyPath) -> str:
    return str(path.name).split(".")[0]


def _read_items(path: AnyPath, max_malformed: int) -> tuple[tuple[LabelledSolution, ...], int]:
    unit = "line" if ".jsonl" in path.suffixes else "item"
    items: list[LabelledSolution] = []
    skipped = 0
    for number, row in rows(path, fields=FIELDS):
        try:
            if isinstance(row, Exception):
                raise row
            items.append(_item(row, default_id=f"{_stem(path)}-{number}"))
        except ValueError as error:
            skipped += 1
            if skipped > max_malformed:
                raise ValueError(
                    f"{path}: {unit} {number}: {error}; more than {max_malformed} malformed {unit}s"
                ) from error
            warnings.warn(f"{path}: {unit} {number}: {error}; skipped", stacklevel=3)
    if not items:
        raise ValueError(
            f"{path}: no item in it ({skipped} malformed ones skipped): expected at least one"
        )
    return tuple(items), skipped


def _item(row: Any, default_id: str) -> LabelledSolution:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    missing = [name for name in ("problem", "steps", "label") if row.get(name) is None]
    if missing:
        raise ValueError(f"no field {missing[0]!r}")
    problem, steps, label = row["problem"], row["steps"], row["label"]
    if not isinstance(problem, str):
        raise ValueError("field 'problem': expected text")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise ValueError("field 'steps': expected a list of texts, at least one")
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(steps):
        raise ValueError(
            f"field 'label': expected the index of one of {len(steps)} steps or -1, found {label!r}"
        )
    correct = row.get("final_answer_correct")
    for step in steps:
        check_characters(step, "field 'steps'")
    return LabelledSolution(
        id=id_text(row.get("id"), "field 'id'", default_id),
        problem=text_of(problem, "field 'problem'"),
        steps=tuple(steps),
        label=label,
        generator=str(row.get("generator", "")),
        # (missing in a table: NaN)
        final_answer_correct=None if correct is None or correct != correct else bool(correct),
    )
