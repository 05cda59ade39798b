"""Sources of problems by config: what a `Source` says, and how its rows become problems.

A source is a TFDS directory (array_record, read without TensorFlow), a data set repository, or a
single file; see `scope_jax.data.files` for the layouts. Fields are named by dotted paths, rows may
be filtered, and an answer that a data set has only inside of its solution is taken out of it.
docs/data.md has the settings of published data sets.
"""

import collections
import contextlib
import dataclasses
import difflib
import pathlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from scope_jax import hub
from scope_jax.data import files
from scope_jax.data.fields import answer_text, id_text, shortest, text_of
from scope_jax.data.problems import Distinct, Problems
from scope_jax.data.rows import SUFFIXES, columns, rows
from scope_jax.tasks.answers import hash_answer, last_boxed
from scope_jax.tasks.domain import Problem
from scope_jax.tasks.visible import is_visible

FIELDS = ("id", "prompt", "answer", "solution")
KINDS = ("auto", "tfds", "repository", "jsonl", "json", "parquet")
# Where the answer is: in a field of its own, in the solution's last \boxed{}, after the solution's
# "####".
ANSWERS = {"field": None, "boxed": last_boxed, "hash": hash_answer}
LIMITS = ("prompt_characters", "prompt_tokens", "solution_characters", "solution_tokens")
_NOWHERE = object()


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of problems, checked when it is made; every field can be set in a config."""

    path: str
    """A file or a directory, local or gs://, or the name of a data set of the Hugging Face hub."""
    kind: str = "auto"
    """One of KINDS; `auto` looks at what is there."""
    split: str = "train"
    config: str | None = None
    """Of a data set repository; None: its default, "*": all of them."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The data set's names for id, prompt, answer and solution, as dotted paths. A list of chat
    messages stands for its last user turn, as a solution for its last assistant turn."""
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Only rows whose field has the value, or one of the values, are kept."""
    answer_from: str = "field"
    """One of ANSWERS: a field, the last box of the solution, the solution's "####" line."""
    weight: float = 1.0
    """Of this source in a mixture."""
    limit: int | None = None
    """Only the first problems; None: all."""
    # Longer ones are left out; None: no limit.
    prompt_characters: int | None = None
    prompt_tokens: int | None = None
    solution_characters: int | None = None
    solution_tokens: int | None = None
    max_malformed: int = 100
    """More rows without the fields or the answer are an error."""

    def __post_init__(self):
        if not self.path:
            raise ValueError("path is empty; give a file or directory of problems")
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("answer_from", self.answer_from, tuple(ANSWERS)),
        ):
            if value not in known:
                raise ValueError(f"{name} = {value!r} is unknown; one of {', '.join(known)}")
        for name in self.fields:
            if name not in FIELDS:
                raise ValueError(f"fields names {name!r}: expected only {', '.join(FIELDS)}")
            if not isinstance(self.fields[name], str) or not self.fields[name]:
                raise ValueError(
                    f"fields.{name} = {self.fields[name]!r:.60}: expected the data set's name of"
                    " the field"
                )
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight = {self.weight}; expected a positive number")
        for name in ("limit", *LIMITS):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} = {value!r}; expected a whole number from 1 up, or None")
        if not isinstance(self.max_malformed, int) or self.max_malformed < 0:
            raise ValueError(
                f"max_malformed = {self.max_malformed!r}; expected a whole number from 0 up"
            )


def source_of(settings: Mapping[str, Any], where: str, data: str | None = None) -> Source:
    """The Source that a config's settings describe; `where` (such as "config.task.train.math")
    goes before the message of an error. A relative path is one below `data`, where that is
    given."""
    known = [field.name for field in dataclasses.fields(Source)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ValueError(
                f"{where}.{key}: unknown key; the nearest known one is {where}.{near[0]}"
            )
    values = {"path": "", **settings}
    path = str(values["path"])
    if data and path and "://" not in path and not pathlib.PurePath(path).is_absolute():
        below = f"{data.rstrip('/')}/{path}"
        if not _is_name(path) or "://" in data or pathlib.Path(below).exists():
            path = below
    try:
        # Pairs stand for a mapping too: a key of a config cannot hold the dots of a path.
        tables = {name: dict(values.get(name, {})) for name in ("fields", "where")}
        return Source(**{**values, **tables, "path": path})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def read_source(source: Source, tokenizer: Any = None) -> Problems:
    """The problems of a source, in the order of its files, in memory.

    `tokenizer` is needed for limits in tokens. A malformed row (not JSON, a field missing or
    empty, no answer) is skipped with a warning that names file and line, and counted in `skipped`.
    Rows that are equal in id, prompt and answer count once, and a warning says how many were left
    out. Raises FileNotFoundError if nothing is at the path, ValueError for an unknown split, a
    missing column, more than `max_malformed` malformed rows, two different problems with one id,
    and if no problem is left.
    """
    names = {field: source.fields.get(field, field) for field in FIELDS}
    fits = _limits(source, tokenizer)
    problems = Distinct()
    counts: collections.Counter[str] = collections.Counter()
    place = source.path
    for place, default_id, row in _rows(source, names):
        counts["rows"] += 1
        try:
            if isinstance(row, Exception):
                raise row
            if not all(
                _is_among(_find(row, field), allowed) for field, allowed in source.where.items()
            ):
                counts["filtered"] += 1
                continue
            problem = problem_of(row, names, default_id, source.answer_from, required=source.fields)
        except ValueError as error:
            counts["malformed"] += 1
            if counts["malformed"] > source.max_malformed:
                raise ValueError(
                    f"{place}: {error}; more than {source.max_malformed} malformed lines: are"
                    " `fields` and `answer_from` right?"
                ) from error
            warnings.warn(f"{place}: {error}; skipped", stacklevel=2)
            continue
        if not fits(problem):
            counts["filtered"] += 1
            continue
        problems.add(problem, place)
        if len(problems.found) == source.limit:
            break
    if not problems.found:
        raise ValueError(
            f"{source.path}: no problem in it: of {counts['rows']} rows {counts['malformed']} were"
            f" malformed, {counts['filtered']} left out by `where` and limits of length"
        )
    problems.say_repeats(source.path)
    return Problems.from_list(problems.found, source.path, counts["malformed"])


def read_file(path: str | pathlib.Path, **settings: Any) -> Problems:
    """The problems of one file, such as a .jsonl (one object a line) or a .parquet file.
    `settings` are fields of `Source`; errors are those of `read_source`."""
    return read_source(Source(path=str(path), **settings))


def read_tfds(
    directory: Any, split: str = "train", fields: Mapping[str, str] | None = None
) -> Problems:
    """A split of a prepared TFDS data set in array_record format, such as
    `data_dir/signed_terms/<config>/1.0.0`, each problem read when it is asked for.

    `fields` names the data set's features for "id", "prompt", "answer" and "solution" where they
    differ; a data set without an id gets "split-index". TensorFlow is not used. Raises
    FileNotFoundError and ValueError.
    """
    source = Source(path=str(directory), split=split, fields=dict(fields or {}))
    names = {field: source.fields.get(field, field) for field in FIELDS}
    data, features = _tfds(files.any_path(directory), split)
    _check_columns(str(directory), "feature", features, source, names)

    def get(i: int) -> Problem:
        place = f"{directory}: {split} record {i}"
        row = _record(data, i, place)
        try:
            return problem_of(row, names, f"{split}-{i}", "field", required=source.fields)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

    with tfds_errors(directory):
        return Problems(f"{directory}:{split}", len(data), get)


def problem_of(
    row: Any,
    names: Mapping[str, str],
    default_id: str,
    answer_from: str = "field",
    required: Collection[str] = (),
) -> Problem:
    """The problem that a row holds. `names`: the row's field for each of FIELDS. A solution must
    be there if it is among `required` or holds the answer; otherwise it is taken where there is a
    text of that name. Raises ValueError that says what the row lacks."""
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    prompt = _text(row, names["prompt"], role="user")
    solution = None
    if "solution" in required or answer_from != "field":
        solution = _text(row, names["solution"], role="assistant")
    elif (
        names["answer"] != "solution"
        and isinstance(found := _find(row, "solution"), str)
        and is_visible(found)
    ):
        solution = text_of(found, "field 'solution'")
    extract = ANSWERS[answer_from]
    if extract is None:
        answer = answer_text(_value(row, names["answer"]), f"field {names['answer']!r}")
    else:
        extracted = extract(solution or "")
        if extracted is None:
            mark = {"boxed": "\\boxed{...}", "hash": "line that starts with '####'"}[answer_from]
            raise ValueError(f"field {names['solution']!r} has no {mark}: no answer in it")
        answer = answer_text(extracted, f"the answer in field {names['solution']!r}")
    found = _find(row, names["id"])
    identity = id_text(None if found is _NOWHERE else found, f"field {names['id']!r}", default_id)
    return Problem(identity, prompt, answer, solution)


# ---- rows


def _local(path: str) -> str:
    """Where a name of the hub is cached (`scope_jax.hub`); any other path as it is."""
    return str(hub.local(path, "dataset")) if _is_name(path) else path


def _is_name(path: str) -> bool:
    """Whether it can only be a name of the hub; `folder/file.jsonl` is a file that is missing."""
    return "://" not in path and not path.endswith(SUFFIXES) and hub.is_name(path)


def _rows(source: Source, names: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    """(place for messages, default id, row) of a source."""
    path = files.any_path(_local(source.path))
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
    except ImportError as error:
        raise ValueError(
            f"{source.path}: cannot be reached: {error}; gs:// paths need gcsfs"
        ) from error
    if is_file:
        found, root = [path], None
    elif is_directory:
        directory = _tfds_directory(path) if source.kind in ("auto", "tfds") else None
        if directory is not None:
            data, features = _tfds(directory, source.split)
            _check_columns(str(directory), "feature", features, source, names)
            for i in range(len(data)):
                place = f"{directory}: {source.split} record {i}"
                yield place, f"{source.split}-{i}", _record(data, i, place)
            return
        if source.kind == "tfds":
            raise FileNotFoundError(
                f"{path}: no TFDS data set: expected the directory that holds dataset_info.json"
            )
        found, root = files.split_files(path, source.split, source.config), path
    else:
        raise FileNotFoundError(
            f"{source.path}: no such file or directory: expected a file or directory of problems"
        )
    kind = source.kind if source.kind in ("jsonl", "json", "parquet") else "auto"
    fields = [*names.values(), "solution", *source.where]
    for file in found:
        _check_columns(str(file), "column", columns(file), source, names)
        stem = file.name.split(".")[0]
        if root is not None:  # shards of several configs have the same names
            stem = "/".join((*file.relative_to(root).parts[:-1], stem))
        for number, row in rows(file, kind, fields):
            yield f"{file}: line {number}", f"{stem}-{number}", row


def _tfds_directory(path: Any) -> Any | None:
    """The directory of a TFDS data set's files, where `path` is it or one above (the newest
    version, the only config)."""
    for _ in range(3):
        if (path / "dataset_info.json").is_file() and (path / "features.json").is_file():
            return path
        below = [
            child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
        ]
        versions = [child for child in below if re.fullmatch(r"\d+\.\d+\.\d+", child.name)]
        if versions:
            path = max(versions, key=lambda child: tuple(map(int, child.name.split("."))))
        elif len(below) == 1:
            path = below[0]
        else:
            return None
    return None


def _tfds(path: Any, split: str) -> tuple[Any, list[str]]:
    """(records by index, names of features) of a split."""
    if not (path / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"{path}: no TFDS data set: expected the directory that holds dataset_info.json"
        )
    import tensorflow_datasets as tfds

    with tfds_errors(path):
        builder = tfds.builder_from_directory(str(path))
        splits, found = list(builder.info.splits), builder.info.file_format.value
    if split not in splits:
        raise ValueError(f"{path}: no split {split!r}: it has {', '.join(splits)}")
    if found != "array_record":
        raise ValueError(
            f"{path}: files in the format {found}: expected array_record, which is read without"
            " TensorFlow"
        )
    with tfds_errors(path):
        return builder.as_data_source(split=split), list(builder.info.features)


@contextlib.contextmanager
def tfds_errors(place: Any) -> Iterator[None]:
    """Turn what is raised about damaged files of a TFDS data set, which has many types, into one
    ValueError that names `place`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            f"{place}: damaged TFDS data set: {type(error).__name__}: {reason}; bring its files"
            " back, or, where they were generated, delete the folder"
        ) from error


def _record(data: Any, number: int, place: str) -> Any:
    with tfds_errors(place):
        return _plain(data[number])


def _check_columns(
    where: str, what: str, there: Sequence[str] | None, source: Source, names: Mapping[str, str]
) -> None:
    """Raise ValueError for a field that a file with fixed columns does not have."""
    if there is None:
        return
    needed = ["prompt"] + (["answer"] if source.answer_from == "field" else ["solution"])
    wanted = [names[field] for field in dict.fromkeys([*needed, *source.fields])]
    for field in [*wanted, *source.where]:
        if field not in there and field.split(".")[0] not in there:
            raise ValueError(f"{where}: no {what} {field!r}: it has {', '.join(there)}; set fields")


def _plain(value: Any) -> Any:
    """A TFDS record as plain Python: text instead of bytes, lists instead of arrays."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if getattr(value, "dtype", None) in ("float32", "float16"):
        return shortest(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
        return _plain(value) if isinstance(value, (list, bytes)) else value
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# ---- fields


def _find(row: Any, path: str) -> Any:
    """What is at a dotted path ("extra.answer", "target.0.content"), or `_NOWHERE`. A name with
    dots in it wins."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    head, _, rest = path.partition(".")
    if isinstance(row, Mapping) and head in row:
        inner = row[head]
    elif isinstance(row, list) and head.isdecimal() and int(head) < len(row):
        inner = row[int(head)]
    else:
        return _NOWHERE
    return _find(inner, rest) if rest else inner


def _text(row: Mapping[str, Any], path: str, role: str | None = None) -> str:
    return text_of(_value(row, path, role), f"field {path!r}")


def _value(row: Mapping[str, Any], path: str, role: str | None = None) -> Any:
    """What a field holds: of chat messages the last turn of `role`, of a list of one its entry."""
    value = _find(row, path)
    if value is _NOWHERE or value is None:
        raise ValueError(
            f"no field {path!r}"
            + (f" (it has {', '.join(map(str, row))})" if value is _NOWHERE else "")
        )
    if (
        isinstance(value, list)
        and role
        and value
        and all(isinstance(m, Mapping) and "content" in m for m in value)
    ):
        turns = [message["content"] for message in value if message.get("role") == role]
        if not turns:
            raise ValueError(f"field {path!r}: no message of the role {role!r}")
        value = turns[-1]
    elif isinstance(value, list) and len(value) == 1:
        value = value[0]  # some data sets list the answers that are right
    return value


def _is_among(value: Any, allowed: Any) -> bool:
    if value is _NOWHERE:
        return False
    if isinstance(allowed, (list, tuple, set, frozenset)):
        return any(value == one for one in allowed)  # a list may not be looked up in a set
    return bool(value == allowed)


def _limits(source: Source, tokenizer: Any) -> Any:
    """A function that says whether a problem is within the source's limits of length."""
    if tokenizer is None and (source.prompt_tokens, source.solution_tokens) != (None, None):
        raise ValueError(
            f"{source.path}: a limit in tokens needs a tokenizer; use a limit in characters"
        )

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    checks = [
        (limit, measure, field)
        for limit, measure, field in (
            (source.prompt_characters, len, "prompt"),
            (source.solution_characters, len, "solution"),
            (source.prompt_tokens, tokens, "prompt"),
            (source.solution_tokens, tokens, "solution"),
        )
        if limit is not None
    ]
    return lambda problem: all(
        measure(getattr(problem, field) or "") <= limit for limit, measure, field in checks
    )
