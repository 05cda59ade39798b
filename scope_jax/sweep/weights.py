"""Which weights a run had: a hash of the files of each model that its config names."""

import functools
import hashlib
from pathlib import Path

from ml_collections import ConfigDict

MODELS = ("policy", "teacher", "prm")


def weights_of(config: ConfigDict) -> dict[str, str | None]:
    """{policy, teacher or prm: `weights_hash`} of the models that a config names; None where no
    files of weights are here (a path of another machine)."""
    named = {name: config.models.get(name) for name in MODELS}
    return {name: weights_hash(path) for name, path in named.items() if path}


def weights_hash(model: str | Path) -> str | None:
    """SHA-256 of a model's weights, a Hugging Face directory or a single file: of the file's bytes
    where there is one `*.safetensors`, else of the lines "name hash" of all, sorted. None where
    there is none. A file is read once in a process, while its size and time of change stay."""
    place = Path(model)
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    hashes = [(file.name, _hash(str(file.resolve()), *_state(file))) for file in files]
    if len(hashes) == 1:
        return hashes[0][1]
    lines = "".join(f"{name} {digest}\n" for name, digest in hashes)
    return hashlib.sha256(lines.encode()).hexdigest() if lines else None


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@functools.cache
def _hash(file: str, size: int, changed_ns: int) -> str:
    """Of a file in this state; `size` and `changed_ns` only tell one state from another."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
