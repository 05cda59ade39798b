"""Upload the model of a finished run, with a card, to the Hugging Face hub.

    python -m scope_jax.publish --workdir=runs/scope --name=ORGANISATION/NAME [--private]
    python -m scope_jax.publish --workdir=runs/scope --dry-run       # writes the card only

The card, `workdir/model/README.md`, has the run's facts, results with intervals and config. You
must be logged in (`hf auth login`, or HF_TOKEN with the right to write).
"""

from pathlib import Path
from typing import Any

from scope_jax import cli
from scope_jax.publish.upload import publish

FLAGS = (
    cli.Flag("workdir", "of the finished run", None, Path),
    cli.Flag("name", "ORGANISATION/NAME of the repository; made where there is none", None),
    cli.Flag("private", "a repository that is made is private", False, bool),
    cli.Flag("dry_run", "write the card, upload nothing", False, bool),
)


def command(values: Any) -> str:
    """The command line's `publish`."""
    if values.workdir is None:
        raise ValueError("--workdir is missing; give the folder of a finished run")
    return publish(values.workdir, values.name, private=values.private, dry_run=values.dry_run)


if __name__ == "__main__":
    cli.program(command, FLAGS)
