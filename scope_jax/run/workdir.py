"""The folder of a run: its config, checked when the run goes on, and atomic writes."""

import datetime
import errno
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scope_jax import hub
from scope_jax.devices.hosts import is_main
from scope_jax.run import failures

# From flat settings as an earlier version named them to today's.
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


def prepare_workdir(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    may_differ: Sequence[str] = (),
    allow: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    upgrade: Upgrade = dict,
    name: str = "config.json",
) -> pathlib.Path:
    """Make `workdir` and write the resolved `config` (nested dicts of JSON values) to its file
    `name`, keys sorted.

    If the file exists, it must hold the same values; it is then written again. Allowed to differ
    are:

    may_differ  these keys (dotted names; "eval" covers "eval.every")
    defaults    keys that the file lacks and that have their default here: an earlier version wrote
                the file
    allow       these keys ("all": every key), but then the file is left to `record_config`, once
                the run is known to go on. None: the command has no flag for this

    Raises ValueError, and changes nothing, for the config of another run (up to five keys are
    named, with both values) and for a `config` that is not JSON.
    """
    path = pathlib.Path(workdir) / name
    text = _as_text(config, path)
    changed = check_workdir(
        workdir,
        config,
        may_differ=may_differ,
        defaults=defaults,
        upgrade=upgrade,
        allow=allow,
        name=name,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not changed:
        write_atomically(path, text + "\n")
    return path.parent


def check_workdir(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    may_differ: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    upgrade: Upgrade = dict,
    allow: Sequence[str] | None = None,
    name: str = "config.json",
) -> dict[str, tuple[str, str]]:
    """What `prepare_workdir` refuses, and a place where no folder can be made; writes nothing.
    Returns the changes that are allowed, as `config_changes` does."""
    path = pathlib.Path(workdir) / name
    _as_text(config, path)
    there = next(p for p in (path.parent.absolute(), *path.parent.absolute().parents) if p.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
    changed = config_changes(
        workdir, config, may_differ=may_differ, defaults=defaults, upgrade=upgrade, name=name
    )
    _refuse(path, changed, allow)
    return changed


def check_beside(
    directory: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    allow: Sequence[str] | None = None,
    **compared: Any,
) -> None:
    """`check_workdir` of a folder of checkpoints elsewhere (a bucket's, for one), which keeps the
    config of its run; nothing where there is none yet. Raises StorageError where a bucket does not
    answer."""
    with failures.storage(str(directory), "its config could not be read", only_passing=True):
        changed = config_changes(directory, config, **compared)
    _refuse(_file_in(directory, "config.json"), changed, allow)


def _file_in(folder: str | os.PathLike, name: str) -> Any:
    """A file of a folder, as a path with pathlib's methods that a bucket has too."""
    if "://" not in str(folder):
        return pathlib.Path(folder) / name
    from etils import epath

    return epath.Path(str(folder)) / name


def _refuse(path: Any, changed: Mapping[str, tuple[str, str]], allow: Sequence[str] | None) -> None:
    """Raise ValueError where something has changed that is not allowed to."""
    allowed = tuple(allow or ())
    refused = {
        key: both
        for key, both in changed.items()
        if "all" not in allowed and not _covered(key, allowed)
    }
    if refused:
        shown = [
            f"{key}: there {_short(there)}, here {_short(here)}"
            for key, (there, here) in list(refused.items())[:5]
        ]
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        ways = "use another workdir, or the values that are there"
        if allow is not None:
            ways += (
                ", or go on with the new ones:"
                f" --allow_changed_config={','.join([*allowed, *refused])}"
            )
        raise ValueError(
            f"{path}: the workdir of a run with another config ({'; '.join(shown)}{more}); {ways}"
        )


def config_changes(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    may_differ: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    upgrade: Upgrade = dict,
    name: str = "config.json",
) -> dict[str, tuple[str, str]]:
    """What `prepare_workdir` would refuse: {dotted key: (value in the file, value in `config`)}, as
    JSON texts or "absent". Empty if there is no such file."""
    path = _file_in(workdir, name)
    if not path.exists():
        return {}
    try:
        before = upgrade(_flat(json.loads(path.read_text())))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); mend it, or use another workdir") from None
    now, usual = (_flat(json.loads(_as_text(tree, path))) for tree in (config, defaults or {}))

    def same(one: dict[str, Any], other: dict[str, Any], key: str) -> bool:
        return key in one and key in other and one[key] == other[key]

    return {
        key: (_show(before, key), _show(now, key))
        for key in sorted(before.keys() | now.keys())
        if not same(before, now, key)
        and not _covered(key, may_differ)
        and not (key not in before and same(now, usual, key))
    }


def record_config(
    workdir: str | os.PathLike, config: Mapping[str, Any], step: int, **free: Any
) -> None:
    """If `config_changes(workdir, config, **free)` finds any, record that the run goes on at `step`
    with them: a line {"step", "time", "changes": {key: [before, after]}} of `config_changes.jsonl`,
    and a new `config.json`."""
    changes = config_changes(workdir, config, **free) if is_main() else {}
    if not changes:
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    history = pathlib.Path(workdir) / "config_changes.jsonl"
    before = history.read_text() if history.is_file() else ""
    line = json.dumps(
        {"step": step, "time": now, "changes": {key: list(both) for key, both in changes.items()}}
    )
    write_atomically(history, f"{before}{line}\n")
    write_atomically(pathlib.Path(workdir) / "config.json", _as_text(config, history) + "\n")


def names_of_run(workdir: str | os.PathLike) -> dict[str, str]:
    """The commits of the hub's names that a run began with (`record_names`); empty where it has
    not begun, or names none."""
    path = pathlib.Path(workdir) / "hub.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def record_names(workdir: str | os.PathLike) -> None:
    """Write the commits of the names that were looked up (`hub.commits`) to `hub.json`."""
    if found := {**names_of_run(workdir), **hub.commits()}:
        write_atomically(pathlib.Path(workdir) / "hub.json", json.dumps(found, indent=2) + "\n")


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Write `text` to a file beside `path` and rename it: a reader, or a kill, finds the old
    content or the new. Only the first process writes."""
    if not is_main():
        return
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk, half a file is in the way
        raise


def try_place(folder: str | os.PathLike, *names: str) -> None:
    """Make `folder`, write into it a file that vanishes, and see that no folder lies where the
    files `names` will: what hours of work end with shows before they begin. Raises OSError."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tried.") as file:
            file.write(b"?")
            file.flush()
    except OSError as error:
        error.filename = str(folder)  # and not the file that nobody knows
        raise
    for name in names:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value}; an empty dict is a value."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {
        name: value
        for key, sub in tree.items()
        for name, value in _flat(sub, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _covered(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _as_text(config: Mapping[str, Any], path: pathlib.Path) -> str:
    try:
        return json.dumps(config, indent=2, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"config: only numbers, strings, lists and dicts can be kept in {path}: {error}"
        ) from None


def _show(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
