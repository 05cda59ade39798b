"""Does SCOPE pay with this policy, PRM and teacher? Measured before training.

    python -m scope_jax.prospect --config=scope,arithmetic [--config.key=value ...]
        [--problems=64] [--json=FILE]

Plays the first batches of the run of this config, without its updates: how many groups fail
altogether, where failures go wrong, how well the PRM finds it, how many of them the teacher's step
and the policy's tail rescue, and what that costs. docs/prospect.md says how to read it.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from scope_jax import cli, models
from scope_jax.configuration import Scope, TrainConfig, train_config
from scope_jax.devices.hosts import is_main
from scope_jax.devices.mesh import mesh_of
from scope_jax.devices.precision import matmul_precision
from scope_jax.prospect.figures import figures
from scope_jax.prospect.measure import Batch, measure
from scope_jax.prospect.opinion import opinion
from scope_jax.prospect.table import table
from scope_jax.rollout import Generator
from scope_jax.run import try_place, write_atomically
from scope_jax.training.actors import load_actors

PROBLEMS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Prospect:
    """What was measured."""

    table: str
    opinion: list[str]
    record: dict[str, Any]  # as JSON: settings, figures, opinion, the metrics of each batch
    batches: list[Batch]

    @property
    def text(self) -> str:
        """What the command prints."""
        return f"{self.table}\n\n" + "\n".join(f"* {line}" for line in self.opinion)


def prospect(
    config: ConfigDict | TrainConfig, problems: int = PROBLEMS, workdir: str | Path | None = None
) -> Prospect:
    """Measure so many problems, in whole batches of `rollout.prompts` (the last one is filled up).
    `workdir`: where the answers of a teacher that is an endpoint are kept.

    Raises ValueError and FileNotFoundError for what a training run would refuse, and ValueError for
    a config without a verified rescue or with dynamic sampling, all before a weight is read.
    """
    settings = train_config(config)
    method = check(settings, problems)
    batches = -(-problems // settings.rollout.prompts)
    mesh = mesh_of(settings.mesh)
    with jax.set_mesh(mesh), matmul_precision(settings.matmul_precision):
        actors = load_actors(settings, mesh, Path(workdir) if workdir else None)
        with contextlib.closing(actors):
            weights, actors.params = actors.params, {}
            params = models.decode_layout(actors.config, weights, mesh)
            del weights
            found = measure(actors, Generator(params, actors.config), settings, batches)
    summed = figures(
        found,
        localiser=settings.localiser.kind,
        good_steps=method.select.good_steps,
        candidates=method.candidates,
        seed=settings.seed,
    )
    said = opinion(summed)
    record = {
        "config": settings_of(config),
        "problems_asked": problems,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "figures": dataclasses.asdict(summed),
        "opinion": said,
        "batches": [batch.metrics for batch in found],
    }
    return Prospect(table(summed), said, record, found)


def check(config: TrainConfig, problems: int) -> Scope:
    """The method of a config that can be measured. Raises ValueError for any other."""
    method = config.method
    if problems < 1:
        raise ValueError(f"--problems={problems} must be at least 1")
    if not isinstance(method, Scope):
        raise ValueError(
            f"config.method.name = {method.name!r} rescues nothing: give the config of a SCOPE run,"
            " such as --config=scope,arithmetic"
        )
    if method.tail == "none":
        raise ValueError(
            "config.method.tail = 'none' leaves rows that nothing verifies, so there is no salvage"
            " rate: set method.tail to 'policy' and method.accept to 'verified'"
        )
    if method.resample:
        raise ValueError(
            f"config.method.resample = {method.resample} draws other prompts after a rescue, which"
            " is not measured here: set it to 0, and see how many groups have no advantage after"
        )
    if config.sft.steps:
        raise ValueError(
            f"config.sft.steps = {config.sft.steps}: the run would roll out another policy than"
            " models.policy; set it to 0, or models.policy to what those steps made"
        )
    return method


def settings_of(config: ConfigDict | TrainConfig) -> dict[str, Any]:
    """A config as JSON can hold it."""
    return dataclasses.asdict(config) if isinstance(config, TrainConfig) else config.to_dict()


def command(config: ConfigDict, workdir: str | None, given: Any) -> str:
    """The command line's `prospect`: the table and the opinion."""
    check(train_config(config), given.problems)
    if given.json and is_main():
        try_place(Path(given.json).parent, Path(given.json).name)
    found = prospect(config, given.problems, workdir)
    if given.json:
        write_atomically(Path(given.json), json.dumps(found.record, indent=2) + "\n")
    return found.text


FLAGS = (
    cli.Flag("problems", "Problems to measure, in whole batches of rollout.prompts", PROBLEMS, int),
    cli.Flag("json", "File to write the record to", ""),
)


def main() -> None:
    """`python -m scope_jax.prospect`."""
    cli.run(command, TrainConfig, file="run.py", workdir=False, more=FLAGS)
