"""The command `scope-jax`: `scope-jax train ...` is `python -m scope_jax.train ...`."""

import ast
import difflib
import runpy
import sys
import textwrap
from pathlib import Path

COMMANDS = (
    "train",
    "supervise",
    "evaluate",
    "evaluate-suites",
    "evaluate-prm",
    "prospect",
    "salvage",
    "demo",
    "publish",
    "fit",
    "sweep",
)


def main() -> int:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        print(f"error: unknown command {name!r}; the nearest known one is {near}", file=sys.stderr)
        return 2
    sys.argv[1:] = rest
    # As `python -m` does it; a package's __main__ is found, and sys.argv[0] becomes its path.
    runpy.run_module(f"scope_jax.{_module(name)}", run_name="__main__", alter_sys=True)
    return 0


def _module(name: str) -> str:
    return name.replace("-", "_")


def _help() -> str:
    lines = [f"  {name:<17}{_summary(_module(name))}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: scope-jax COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "scope-jax COMMAND --help lists a command's flags.",
        ]
    )


def _summary(module: str) -> str:
    """What a module's docstring begins with; read, not imported: importing JAX takes seconds."""
    place = Path(__file__).parent / module
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return textwrap.shorten(docstring.split("\n\n")[0], 80, placeholder=" ...")


if __name__ == "__main__":
    sys.exit(main())
