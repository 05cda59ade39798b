"""Which files make up a split of a data set directory.

Directories are read in the layout of data set repositories: `configs` in the header of README.md,
else splits told by the names of files and folders (`data/train-00000-of-00002.parquet`,
`test.jsonl`, `train/algebra/1.json`). Paths that hold "://" (gs://bucket/...) go through etils'
epath.
"""

import fnmatch
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from scope_jax.data.rows import SUFFIXES, AnyPath

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SAME_SPLIT = {alias: name for name, aliases in _SPLIT_NAMES.items() for alias in aliases}
# More values than any README.md lists, and more files than any data set has.
_MOST_NODES = 1_000_000
_MOST_FILES = 200_000
_SHARD = re.compile(r"([^/]+?)-\d{5}-of-\d{5}.*")


def any_path(path: str | pathlib.Path) -> AnyPath:
    """A local path, or an epath.Path where `path` names a scheme such as gs://. ValueError for a
    scheme it does not know."""
    if "://" in str(path):
        from etils import epath

        try:
            return epath.Path(str(path))
        except KeyError as error:
            raise ValueError(
                f"{path}: unknown kind of address: expected a local path or gs://bucket/..."
            ) from error
    return pathlib.Path(path)


def split_files(root: AnyPath, split: str = "train", config: str | None = None) -> list[AnyPath]:
    """The files of one split of a data set directory, in a fixed order.

    config: one of the README's configs ("*" for all of them together), or, without them, a folder.
    None: the one marked `default: true`, the one called "default", or the only one. Raises
    FileNotFoundError if there is no file of problems, ValueError for an unknown split or config
    (with those that exist) and for a README that names no file.
    """
    configs = _card(root)
    if configs:
        return _files_of_card(root, configs, split, config)
    folder = root / config if config not in (None, "*") else root
    if not folder.is_dir():
        raise ValueError(
            f"{root}: no config {config!r}: README.md has no `configs`, and there is no such folder"
        )
    groups = _by_names(folder)
    if not groups:
        raise FileNotFoundError(
            f"{folder}: no file of problems in it: expected {', '.join(SUFFIXES)}, or a TFDS"
            " directory"
        )
    return _pick(groups, split, str(folder))


# ---- which files


class _Config(NamedTuple):
    """A config of README.md: patterns by split, or None where the names of files below `folder`
    decide."""

    name: str
    table: dict[str, list[str]] | None
    folder: str
    default: bool


def _card(root: AnyPath) -> list[_Config]:
    """The configs of README.md; none where it has no header that names them."""
    path = root / "README.md"
    if not path.is_file():
        return []
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    marks = [number for number, line in enumerate(lines) if line.strip() == b"---"]
    if len(marks) < 2 or marks[0] != 0:
        return []
    try:
        text = b"\n".join(lines[1 : marks[1]]).decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: header is not UTF-8 at its byte {error.start}: expected YAML in UTF-8"
        ) from None
    header = _yaml(text, path)
    entries = header.get("configs") if isinstance(header, dict) else None
    if not isinstance(entries, list):
        return []
    found = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(
                f"{path}: configs: expected objects with config_name and data_files, found"
                f" {entry!r}"
            )
        table, folder = (
            _patterns(entry.get("data_files"), path),
            str(entry.get("data_dir") or "").removeprefix("./").strip("/"),
        )
        if ".." in folder.split("/"):
            raise ValueError(
                f"{path}: configs: data_dir {folder!r} is outside of the directory; expected a path"
                " within it"
            )
        if table is not None and folder:
            table = {
                split: [f"{folder}/{pattern}" for pattern in patterns]
                for split, patterns in table.items()
            }
        found.append(
            _Config(
                str(entry.get("config_name", "default")), table, folder, bool(entry.get("default"))
            )
        )
    return found


def _yaml(text: str, path: AnyPath) -> Any:
    """The contents of a YAML header. Raises ValueError for what is not YAML, and where aliases,
    which a few lines can nest, stand for more than `_MOST_NODES` values."""
    import yaml

    try:
        if _written_out(yaml.compose(text, yaml.SafeLoader)) > _MOST_NODES:
            raise ValueError(f"its aliases stand for more than {_MOST_NODES} values")
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"{path}: header is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # (a date or a number may be a ValueError)
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path}: header is not YAML that can be read: {reason}") from error


def _written_out(node: Any) -> int:
    """How many nodes a YAML node has, with every alias written out."""
    sizes: dict[int, int] = {}

    def count(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_NODES + 1  # of a node within itself
            value = node.value if isinstance(getattr(node, "value", None), list) else []
            parts = [
                part for item in value for part in (item if isinstance(item, tuple) else [item])
            ]
            sizes[id(node)] = 1 + sum(map(count, parts))
        return sizes[id(node)]

    return count(node)


def _patterns(data_files: Any, path: AnyPath) -> dict[str, list[str]] | None:
    """`data_files` in any of its forms: a pattern, several, a table, or a list of {split, path}."""

    def listed(value: Any) -> list[str]:
        return [str(v) for v in value] if isinstance(value, list) else [str(value)]

    if data_files is None:
        return None
    if isinstance(data_files, dict):
        return {str(split): listed(value) for split, value in data_files.items()}
    if isinstance(data_files, list) and all(
        isinstance(item, dict) and "path" in item for item in data_files
    ):
        table: dict[str, list[str]] = {}
        for item in data_files:
            table.setdefault(str(item.get("split", "train")), []).extend(listed(item["path"]))
        return table
    if isinstance(data_files, str) or (
        isinstance(data_files, list) and all(isinstance(i, str) for i in data_files)
    ):
        return {"train": listed(data_files)}
    raise ValueError(
        f"{path}: configs: data_files {data_files!r}: expected patterns or objects with split and"
        " path"
    )


def _files_of_card(
    root: AnyPath, configs: Sequence[_Config], split: str, config: str | None
) -> list[AnyPath]:
    names = [entry.name for entry in configs]
    default = next(
        (entry.name for entry in configs if entry.default), "default" if "default" in names else ""
    )
    if config == "*":
        chosen = list(names)
    elif config or default or len(names) == 1:
        chosen = [config or default or names[0]]
    else:
        raise ValueError(
            f"{root}: several configs and none is the default; set config to one of"
            f" {', '.join(names)}, or '*'"
        )
    if not set(chosen) <= set(names):
        raise ValueError(f"{root}: no config {config!r}: README.md has {', '.join(names)}")
    files: list[AnyPath] = []
    for entry in configs:
        if entry.name not in chosen:
            continue
        where = f"{root}: config {entry.name!r}"
        if entry.table is None:
            folder = root / entry.folder if entry.folder else root
            files += _pick(_by_names(folder) if folder.is_dir() else {}, split, where)
            continue
        for pattern in _pick(entry.table, split, where):
            files += _matching(root, pattern)
    return list(dict.fromkeys(files))


def _matching(root: AnyPath, pattern: str) -> list[AnyPath]:
    clean = pattern.removeprefix("./")
    if clean.startswith("/") or "://" in clean or ".." in clean.split("/"):
        raise ValueError(
            f"{root}: README.md: data file {pattern!r} is outside of the directory; expected a path"
            " within it"
        )
    wanted = clean.split("/")
    if not any(sign in clean for sign in "*?["):
        wanted.append("**")  # the name of a file, or of a folder
    wanted = [part for part, before in zip(wanted, ["", *wanted]) if part != "**" or before != "**"]
    found = [path for path, inside in _walk(root) if _fits(inside, wanted) and _readable(path)]
    if not found:
        raise ValueError(
            f"{root}: README.md: no file of problems matches {pattern!r}: expected"
            f" {', '.join(SUFFIXES)}"
        )
    return found


def _by_names(folder: AnyPath) -> dict[str, list[AnyPath]]:
    """Split -> files: shards named `split-00000-of-00002`, else a split's name in a folder's or
    the file's name (as a word of its own), else everything is "train"."""
    names = {}
    for path, inside in _walk(folder):
        if _readable(path):
            names[path] = inside
    shards: dict[str, list[AnyPath]] = {}
    worded: dict[str, list[AnyPath]] = {}
    for path, inside in names.items():
        if match := _SHARD.fullmatch(inside[-1]):
            shards.setdefault(match.group(1), []).append(path)
        words = [
            word for part in inside for word in re.split(r"[^a-z]+", part.lower().split(".")[0])
        ]
        if split := next((_SAME_SPLIT[word] for word in words if word in _SAME_SPLIT), None):
            worded.setdefault(split, []).append(path)
    return shards or worded or ({"train": list(names)} if names else {})


def _walk(root: AnyPath) -> Iterator[tuple[AnyPath, tuple[str, ...]]]:
    """(file, its parts below `root`), sorted; hidden ones are left out, and so is, with a warning,
    a link to a folder that it lies in. (Paths of epath have no recursive glob.) Raises ValueError
    past `_MOST_FILES`, which links to links can make out of a few."""
    seen = 0

    def below(
        folder: AnyPath, inside: tuple[str, ...], above: tuple[str, ...]
    ) -> Iterator[tuple[AnyPath, tuple[str, ...]]]:
        nonlocal seen
        here = _real(folder)
        if here in above:
            warnings.warn(f"{folder}: a link to a folder that it lies in; left out", stacklevel=2)
            return
        for path in sorted(folder.iterdir(), key=lambda child: child.name):
            parts = (*inside, path.name)
            seen += 1
            if seen > _MOST_FILES:
                raise ValueError(f"{root}: more than {_MOST_FILES} files: do links lead around?")
            if path.name.startswith(".") or len(parts) > 10:
                continue
            if path.is_dir():
                yield from below(path, parts, (*above, here))
            else:
                yield path, parts

    return below(root, (), ())


def _real(folder: AnyPath) -> str:
    """Where a folder lies, links followed; a bucket has no links."""
    return os.path.realpath(folder) if isinstance(folder, pathlib.Path) else str(folder)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path's parts match a glob pattern's, "**" for any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
    )


def _pick(groups: Mapping[str, list], split: str, where: str) -> list:
    """The entry of a split, under its own name or another one that means the same (dev, val,
    validation)."""
    if split in groups:
        return groups[split]
    for name, entry in groups.items():
        if _SAME_SPLIT.get(name, name) == _SAME_SPLIT.get(split, split):
            return entry
    raise ValueError(
        f"{where}: no split {split!r}: it has {', '.join(sorted(groups)) or 'no file of problems'}"
    )


def _readable(path: AnyPath) -> bool:
    """Whether a path is a file of problems by its name. Raises ValueError for such a link that
    leads nowhere: rows would be missing without a word."""
    if not path.name.lower().endswith(SUFFIXES):
        return False
    if isinstance(path, pathlib.Path) and path.is_symlink() and not os.path.exists(path):
        raise ValueError(
            f"{path}: a link that leads to no file; bring its file back, or remove the link"
        )
    return True
