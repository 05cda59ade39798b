"""The folder of a run: its config written once, and checked against when the run goes on."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


def prepare_workdir(
    workdir: str | os.PathLike, config: Mapping[str, Any], *, may_differ: Sequence[str] = (), name: str = "config.json"
) -> pathlib.Path:
    """Makes `workdir` and writes the resolved `config` (nested dicts of JSON values) to its file `name`, keys sorted.

    Where that file is there already, it must hold the same values, keys in `may_differ` aside (dotted names;
    "eval" covers "eval.every"); it is then written anew, with the new values of those keys. Raises ValueError that
    names up to five differing keys with both values, and changes nothing, where it is the config of another run;
    and where `config` holds something that is not JSON.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / name
    try:
        text = json.dumps(config, indent=2, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config: only numbers, strings, lists and dicts can be kept in {path}: {error}") from None
    if path.exists():
        try:
            before = _flat(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error}); mend it, or use another workdir") from None
        now = _flat(json.loads(text))
        differing = [
            f"{key}: there {_show(before, key)}, here {_show(now, key)}"
            for key in sorted(before.keys() | now.keys())
            if (key not in before or key not in now or before[key] != now[key])
            and not any(key == free or key.startswith(f"{free}.") for free in may_differ)
        ]
        if differing:
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise ValueError(
                f"{path}: the workdir of a run with another config ({'; '.join(differing[:5])}{more}); "
                "use another workdir, or the values that are there"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text + "\n")
    return workdir


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path` by way of a file beside it: a reader, or a kill, sees the old content or the new."""
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value}; an empty dict is a value."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {
        name: value for key, sub in tree.items() for name, value in _flat(sub, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _show(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    text = json.dumps(values[key])
    return text if len(text) <= 60 else text[:57] + "..."
