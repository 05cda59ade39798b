"""A process that makes entries of reasoning-gym and scores answers; started by `worker_pool` as a
script. The protocol is that of `worker_loop`; a request is

    {"what": "problem", "generator": str, "settings": {}, "seed": int, "index": int}
    {"what": "score", ..., "answer": str, "score_seconds": float}

and its verdict {"problem": {"question": str, "answer": str or null, "solution": str or null}} or
{"reason": str} where the generator raised, or a score.
"""

import functools
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _beside(name: str) -> Any:
    """A module beside this file, without the package around it: importing that brings in JAX."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from scope_jax.tasks import gym_entries, worker_loop
else:
    gym_entries, worker_loop = _beside("gym_entries"), _beside("worker_loop")


def main() -> None:
    source, sink = worker_loop.quiet()
    import reasoning_gym  # noqa: F401  Before the limits: imports may write caches.

    entries = gym_entries.Entries()

    def decide(request: dict[str, Any]) -> tuple[Any, str]:
        if request["what"] == "problem":
            try:
                return {"problem": entries.problem(request)}, ""
            except MemoryError:
                raise
            except Exception as error:
                return {"reason": f"{type(error).__name__}: {error}"[:200]}, ""
        return entries.score(request, functools.partial(worker_loop.arm, request["score_seconds"]))

    worker_loop.limit_memory(int(sys.argv[1]))
    worker_loop.limit_files()
    worker_loop.serve(decide, source, sink, "reasoning_gym")


if __name__ == "__main__":
    main()
