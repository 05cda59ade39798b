"""Names of the Hugging Face hub where a directory may stand: `Qwen/Qwen2.5-0.5B-Instruct`, with a
revision as `Qwen/Qwen2.5-0.5B-Instruct@main` or `@COMMIT`.

In: a place, as a user wrote it. Out: a local directory. `huggingface_hub` downloads and caches;
its variables (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT) hold. Of a model only
safetensors, configuration and tokenizer are downloaded. A name means the same commit for as long as
the process lives, on all hosts, and for a run as long as its workdir does (`pinned`).
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from scope_jax.errors import StorageError

Kind = Literal["model", "dataset"]

MODEL_FILES = (
    *(
        "config.json",
        "generation_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
    ),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
DATASET_FILES = ("README.md", "*.parquet", "*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz")

_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_CACHED = re.compile(r"(?:models|datasets)--[^/]+--[^/]+")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf")


class _Found(NamedTuple):
    directory: str
    commit: str


class _Silent(NamedTuple):
    """Why the hub gives nothing, as the end of "the hub ..."."""

    words: str
    passes: bool  # whether another try may help


# (kind, name as it was written) -> where it is; and the commits that a workdir holds names to.
_found: dict[tuple[Kind, str], _Found] = {}
_pins: dict[str, str] = {}


def is_name(place: str | Path) -> bool:
    """Whether `place` can only be a name of the hub: it looks like one, and no file or directory is
    called so."""
    return bool(_NAME.fullmatch(str(place))) and not Path(place).exists()


def local(place: str | Path, kind: Kind = "model") -> Path:
    """The directory of a model or data set: `place` itself, the snapshot inside where it is a
    folder of the hub's cache, or that of a name, which is downloaded unless it is cached. What is
    no name is left for others to judge. All processes of a run call it in the same order.

    Raises FileNotFoundError for a name, revision or file that the hub does not have or may not
    give, ValueError for a model without safetensors, StorageError where the hub cannot be reached
    and the cache does not have it: the same command goes on with what is there.
    """
    path = Path(place)
    if _CACHED.fullmatch(path.name) and (path / "snapshots").is_dir():
        return _snapshot(path)
    if not is_name(place):
        return path
    key = (kind, str(place))
    if key not in _found:
        _found[key] = _on_all_hosts(str(place), kind)
    return Path(_found[key].directory)


def described(place: str | Path) -> Path:
    """A directory with the `config.json` of a model, of a name of the hub with nothing else: what
    is needed before anybody knows whether the model will be read. Raises FileNotFoundError or
    StorageError where there is none."""
    if not is_name(place) or ("model", str(place)) in _found:
        return local(place)
    import huggingface_hub

    match = _NAME.fullmatch(str(place))
    assert match is not None
    revision = _pins.get(str(place)) or match["revision"]
    try:
        return Path(
            huggingface_hub.hf_hub_download(match["name"], "config.json", revision=revision)
        ).parent
    except Exception as error:
        if not is_of_the_network(error):
            raise
        raise FileNotFoundError(f"{place}: {one_line(error)}") from None


def commits() -> dict[str, str]:
    """The commit of each name that this process has looked up, as it was written."""
    return {name: found.commit for (_, name), found in sorted(_found.items())}


@contextlib.contextmanager
def pinned(commits: Mapping[str, str]) -> Iterator[None]:
    """Within it, names mean these commits: those that a run began with, wherever their branch has
    gone since."""
    before = dict(_pins)
    moved = {
        key for key, found in _found.items() if commits.get(key[1], found.commit) != found.commit
    }
    for key in moved:
        del _found[key]
    _pins.update(commits)
    try:
        yield
    finally:
        _pins.clear()
        _pins.update(before)


# ---- the cache


def _snapshot(folder: Path) -> Path:
    """What `main` means in a folder `models--ORGANISATION--NAME` of the cache, or the only snapshot
    there."""
    main = folder / "refs" / "main"
    snapshots = sorted(entry for entry in (folder / "snapshots").iterdir() if entry.is_dir())
    if main.is_file() and (named := folder / "snapshots" / main.read_text().strip()) in snapshots:
        return named
    if len(snapshots) != 1:
        raise FileNotFoundError(
            f"{folder}: {len(snapshots)} snapshots, and refs/main names none of them; give one of"
            f" {folder}/snapshots/..."
        )
    return snapshots[0]


# ---- the hub


def _on_all_hosts(place: str, kind: Kind) -> _Found:
    """Process 0 finds out the commit; each host downloads that one."""
    match = _NAME.fullmatch(place)
    assert match is not None
    name, revision = match["name"], _pins.get(place) or match["revision"]
    import jax

    from scope_jax.devices import hosts

    # Before processes are joined, asking for their number would start the devices.
    if not jax.distributed.is_initialized():
        return _find(name, revision, kind)
    answer: dict[str, str] = {}
    if hosts.is_main():
        try:
            answer = {"commit": _find(name, revision, kind).commit}
        except _KINDS as error:
            answer = {"kind": type(error).__name__, "words": str(error)}
    answer = hosts.from_main(answer)
    if "commit" not in answer:
        raise {error.__name__: error for error in _KINDS}[answer["kind"]](answer["words"])
    return _find(name, answer["commit"], kind)


_KINDS = (FileNotFoundError, ValueError, StorageError)


def _find(name: str, revision: str | None, kind: Kind) -> _Found:
    """Look a revision up (None: main) and download what is missing of it; offline, or where the hub
    cannot be reached, what the cache has of it."""
    shown = name if revision is None else f"{name}@{revision}"
    silent = _check(shown, name, revision, kind)
    directory = _download(shown, name, revision, kind, silent)
    return _Found(directory, Path(directory).name)


def _check(shown: str, name: str, revision: str | None, kind: Kind) -> _Silent | None:
    """Why the hub cannot be asked, if it cannot. Raises for what it does not have."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return _Silent("is offline (HF_HUB_OFFLINE is set)", True)
    try:
        info = huggingface_hub.HfApi().repo_info(name, revision=revision, repo_type=kind)
    except errors.HFValidationError as error:
        raise FileNotFoundError(
            f"{shown}: no such directory, and no name: {one_line(error)}"
        ) from None
    except Exception as error:
        if not is_of_the_network(error):
            raise
        if missing := _missing(error, shown, name, revision, kind):
            raise missing from None
        return _silent(error)
    if kind == "model":
        _check_safetensors(
            shown, [entry.rfilename for entry in getattr(info, "siblings", None) or ()]
        )
    return None


def _missing(
    error: Exception, shown: str, name: str, revision: str | None, kind: Kind
) -> FileNotFoundError | None:
    """What to raise where the hub says that it does not have, or may not give, what was asked for.
    Of a gated repository it tells everybody about, and refuses the files."""
    from huggingface_hub import errors

    page = _page(name, kind)
    if isinstance(error, errors.GatedRepoError):
        words = (
            f"gated: accept its terms on {page}, then log in with `hf auth login` or HF_TOKEN, and"
            " start the same command again"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        words = (
            f"no such directory here, and no such {kind} at {page}; a private one needs `hf auth"
            " login` or HF_TOKEN"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        words = f"{name} has no revision {revision!r}; give a branch, a tag or a commit of {page}"
    else:
        return None
    return FileNotFoundError(f"{shown}: {words}")


def _silent(error: Exception) -> _Silent:
    """Of an answer that is no files: 401 for a token that is no longer valid, 403 for a repository
    that was disabled, 5xx for a hub that is down."""
    if is_refused(error):
        return _Silent(f"refuses ({one_line(error)}; is HF_TOKEN, or the login, valid?)", False)
    return _Silent(f"cannot be reached ({one_line(error)})", True)


def _check_safetensors(shown: str, names: list[str]) -> None:
    if any(re.fullmatch(r"model[^/]*\.safetensors", name) for name in names):
        return
    others = [name for name in names if name.endswith(_PICKLES) or name.endswith(".safetensors")]
    held = f"it holds {', '.join(sorted(others)[:3])}" if others else "it holds no weights"
    raise ValueError(
        f"{shown}: no model.safetensors ({held}); weights must be safetensors, pickles are never"
        " read: ask its owners for a conversion (huggingface.co/spaces/safetensors/convert)"
    )


def _download(
    shown: str, name: str, revision: str | None, kind: Kind, silent: _Silent | None
) -> str:
    """The folder of the snapshot. `silent`: why the hub cannot be asked."""
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(
            name,
            revision=revision,
            repo_type=kind,
            local_files_only=silent is not None,
            allow_patterns=list(MODEL_FILES if kind == "model" else DATASET_FILES),
            # Patterns match across folders: of a model only what lies at the top is meant.
            ignore_patterns=["*/*"] if kind == "model" else None,
        )
    except Exception as error:
        if not is_of_the_network(error):
            raise
        if silent is not None:
            words = f"no such directory, the hub {silent.words} and its cache has no such {kind}"
            kept = StorageError if silent.passes else FileNotFoundError
            raise kept(f"{shown}: {words}") from None
        if missing := _missing(error, shown, name, revision, kind):
            raise missing from None
        if is_refused(error):
            raise FileNotFoundError(f"{shown}: the hub {_silent(error).words}") from None
        raise StorageError(
            f"{shown}: the download was cut ({one_line(error)}); files that came whole are kept:"
            " start the same command again"
        ) from None


def is_of_the_network(error: Exception) -> bool:
    """Whether it is a failure to reach the hub or the disk, and none of the program. Which library
    the hub's client sends requests with depends on its version."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in ("httpx", "httpx2", "requests", "urllib3")


def is_refused(error: Exception) -> bool:
    """Whether the hub answered that it will not, so that the same request would fail again: 4xx but
    for timeouts and "too many requests"."""
    status = getattr(getattr(error, "response", None), "status_code", None) or 0
    return 400 <= status < 500 and status not in (408, 429)


def one_line(error: Exception) -> str:
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _page(name: str, kind: Kind) -> str:
    from huggingface_hub import constants

    folder = "datasets/" if kind == "dataset" else ""
    return f"{constants.ENDPOINT}/{folder}{name}"
