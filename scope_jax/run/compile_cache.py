"""Compiled programs on disk, so that the next run of the same programs compiles next to nothing.

XLA's machine code is for one kind of processor: on a CPU that lacks an instruction it may end in
SIGILL (XLA warns of that and loads it all the same, or refuses it, depending on its version). So
each kind of CPU has a folder of its own, by model, features, usable cores and version of jaxlib; in
a folder that $JAX_COMPILATION_CACHE_DIR names that is the user's affair. What tells programs apart
within a folder (text, flags, devices, versions) is JAX's.

Nothing of this may end a run. JAX warns of each entry that it cannot read or write; here that
becomes one line for the whole run, and an entry that was cut short (a full disk, a process that was
killed) is removed, as JAX would never write it again.
"""

import contextlib
import hashlib
import os
import platform
import re
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import jaxlib

DEFAULT = "cache/xla"
OFF = "off"
HELP = (
    "Folder of compiled programs, or off; default: $JAX_COMPILATION_CACHE_DIR, else cache/xla"
    " (docs/performance.md)"
)

_TROUBLE = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '([^']*)': (.*)"
)


def keep_compiled_programs(where: str | None, default: str | Path = DEFAULT) -> Path | None:
    """From now on programs are looked up before they are compiled, and kept. `where`: a folder,
    "off", or None for what $JAX_COMPILATION_CACHE_DIR says or else `default`. Returns the folder,
    None where nothing is kept. Nothing is written before the first program is compiled.

    For entry points, before that."""
    if where == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_enable_compilation_cache", _enabled_by_environment())
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if where is None and named:
        folder = Path(named)
    else:
        folder = Path(where or default).absolute() / this_machine()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Reading the smallest takes a tenth of compiling it.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    _Trouble(folder).install()
    return folder


def this_machine() -> str:
    """The name of the folder for machine code that runs here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    known = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    features = known.get("flags") or known.get("Features") or ""  # x86, Arm
    parts = [
        *(known.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name")),
        *(known.get(name, "") for name in ("CPU implementer", "CPU part", "CPU variant")),
        " ".join(sorted(features.split())),
        platform.processor(),
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return f"{platform.machine()}-{digest}-{cores}-jaxlib{jaxlib.__version__}"


def _enabled_by_environment() -> bool:
    return os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() not in ("0", "false")


class _Trouble:
    """Takes JAX's warnings about a folder in place of `warnings.showwarning`."""

    def __init__(self, folder: Path):
        self.folder, self.said = folder, False

    def install(self) -> None:
        """From now on, once for a process."""
        before = warnings.showwarning
        if isinstance(getattr(before, "__self__", None), _Trouble):
            before = before.__self__.others  # type: ignore[attr-defined]
        self.others = before
        warnings.showwarning = self.show

    def show(self, message: Any, *where: Any, **more: Any) -> None:
        """As `warnings.showwarning`."""
        found = _TROUBLE.match(str(message))
        if found is None:
            self.others(message, *where, **more)
            return
        action, program, reason = found.groups()
        if action == "reading":
            self._remove_broken(program)
        if not self.said:
            self.said = True
            print(
                f"note: compiled programs are not all kept in {self.folder} (error {action} one:"
                f" {reason[:160]}); the run compiles them itself",
                file=sys.stderr,
                flush=True,
            )

    def _remove_broken(self, program: str) -> None:
        with contextlib.suppress(OSError):
            for entry in self.folder.glob(f"{program}-*-cache"):
                if not _is_whole(entry.read_bytes()):
                    entry.unlink()


def _is_whole(entry: bytes) -> bool:
    """Whether a compressed entry has its end."""
    try:
        if entry.startswith(b"\x28\xb5\x2f\xfd"):
            import zstandard

            zstandard.ZstdDecompressor().decompress(entry)
        else:
            zlib.decompress(entry)
    except ImportError:
        return True  # nobody here can say
    except Exception:
        return False
    return True
