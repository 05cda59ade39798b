"""Will a config fit on a TPU slice or a host of GPUs, and how fast could it be? Compiles every
program of the config for them, without one.

    python -m scope_jax.fit --config=scope,math_1_5b --topology=v5e:2x4 [--config.mesh.fsdp=8 ...]
        [--only=rollout,update] [--layers=2] [--largest] [--json] [--workdir=DIR]

Needs the compiler: libtpu for TPUs (`pip install "scope_jax[fit]"`), JAX's CUDA plugin for GPUs
(`scope_jax[fit-gpu]`). Memory is what that compiler decided, a fact about the program; nothing is
run, and seconds are a roofline: what the operations, the bytes moved or the network take at least,
at published peaks. docs/scaling.md says what the columns mean. Exit code 1 where something does
not fit, 2 for bad input.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from scope_jax import cli
from scope_jax.configuration import TrainConfig, train_config
from scope_jax.devices.precision import matmul_precision
from scope_jax.fit.known_models import model_shapes
from scope_jax.fit.largest import find_largest
from scope_jax.fit.measure import measure
from scope_jax.fit.programs import plan
from scope_jax.fit.shapes import Models
from scope_jax.fit.table import table
from scope_jax.fit.topology import Topology, devices, parse_topology
from scope_jax.models.config import ModelConfig
from scope_jax.run import try_place, write_atomically
from scope_jax.training.actors import attention_of


def fit(
    config: ConfigDict,
    topology: Topology,
    *,
    only: Sequence[str] = (),
    largest: bool = False,
    layers: int = 0,
    texts: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The report on `config` and `topology` as a JSON object. `only`: names of programs;
    `largest`: look for the largest micro-batch and number of seats that fit too. `layers`: cut the
    models to so many (0: all). `texts`: a directory for the compiled programs, as text. `say` is
    told what is being compiled.

    Raises ValueError for a config, mesh, slice or model that makes no sense.
    """
    limit = topology.limit  # asked for first: it may be none, and compiling takes minutes
    settings = train_config(config)
    found, sources = find_models(settings)
    if layers:
        found = cut(found, layers)
    slice_devices = devices(topology)
    made = plan(settings, found, slice_devices, topology.chip.hbm)
    known = [program.name for program in made.programs]
    for name in only:
        if name not in known:
            raise ValueError(
                f"--only={name}: this config has no such program; it has {', '.join(known)}"
            )
    lines = []
    for program in made.programs:
        if not only or program.name in only:
            say(f"compiling {program.name}")
            lines.append(measure(program, made, topology, texts))
    report = {
        "topology": topology.name,
        "devices": topology.devices,
        "limit": limit,
        "limit_is": topology.limit_is,
        "mesh": dict(made.programs[0].mesh.shape),
        "models": sources,
        "held": made.held,
        "notes": [*made.notes, *notes(topology, layers)],
        "programs": [dataclasses.asdict(line) for line in lines],
        "fits": all(line.fits for line in lines),
        "seconds_per_step": None if only else sum(line.seconds * line.runs for line in lines),
    }
    if largest:
        report["largest"] = find_largest(config, found, slice_devices, topology, lines, say)
    return report


def notes(topology: Topology, layers: int) -> list[str]:
    """What a reader of the report has to know about it."""
    found = []
    if layers:
        found.append(
            f"models cut to {layers} layers: to read the programs; memory and seconds are not"
            " those of the whole models"
        )
    if topology.on_gpu and len(topology.shape) > 1:
        found.append(
            "the network's floor is that of NVLink inside a host; what goes between hosts is slower"
        )
    return found


def cut(found: Models, layers: int) -> Models:
    """The models with their first `layers` layers only. Raises ValueError for less than two: a loop
    over one layer is no loop, and the programs would be others."""
    if layers < 2:
        raise ValueError(f"--layers={layers}: expected a number of layers from 2 on; 0: all")

    def first(model: ModelConfig | None) -> ModelConfig | None:
        if model is None:
            return None
        local = model.local_layers[:layers]
        return dataclasses.replace(
            model,
            num_layers=min(layers, model.num_layers),
            local_layers=local,
            unrotated_layers=model.unrotated_layers[:layers],
            window=model.window if any(local) else 0,
        )

    policy = first(found.policy)
    assert policy is not None
    return Models(policy, first(found.teacher), first(found.prm))


def find_models(config: TrainConfig) -> tuple[Models, dict[str, str]]:
    """(shapes of who takes part, where they come from). Raises ValueError as `model_shapes` does,
    and for heads that do not fit."""
    if not config.models.policy:
        raise ValueError(
            "config.models.policy is None; give the Hugging Face directory of the policy to train"
        )
    who = {"policy": config.models.policy}
    if config.uses_teacher and config.teacher.kind == "model":
        who["teacher"] = config.models.teacher or ""
    if config.uses_prm:
        who["prm"] = config.models.prm or ""
    shapes: dict[str, ModelConfig] = {}
    sources = {}
    for name, directory in who.items():
        if not directory:
            raise ValueError(f"config.models.{name} is None; this config needs it")
        shapes[name], origin = model_shapes(directory)
        shapes[name] = dataclasses.replace(shapes[name], attention=attention_of(config))
        sources[name] = f"{directory}: {origin}"
        if name != "prm" and shapes[name].head != "lm":
            raise ValueError(
                f"{directory}: head {shapes[name].head!r}; a {name} needs a vocabulary head ('lm')"
            )
    return Models(**shapes), sources


def command(config: ConfigDict, workdir: str | None, given: Any) -> str:
    """The command line's `fit`."""
    jax.config.update("jax_platforms", "cpu")
    topology = parse_topology(given.topology)
    if topology.on_gpu:
        # Without a GPU a program for one cannot be taken out of a cache again.
        jax.config.update("jax_enable_compilation_cache", False)
    if workdir:
        try_place(workdir, "fit.json")

    def say(line: str) -> None:
        print(f"fit: {line} ...", file=sys.stderr, flush=True)

    texts = Path(workdir) / "programs" if workdir else None
    with matmul_precision(train_config(config).matmul_precision):
        report = fit(
            config,
            topology,
            only=given.only,
            largest=given.largest,
            layers=given.layers,
            texts=texts,
            say=say,
        )
    record = json.dumps(report, indent=2)
    if workdir:
        write_atomically(Path(workdir) / "fit.json", record + "\n")
    text = record if given.json else table(report)
    if not report["fits"]:
        print(text)
        sys.exit(1)
    return text


FLAGS = (
    cli.Flag("topology", "TPU slice or GPUs, such as v5e:2x4, v5p:2x2x4, h100:8", required=True),
    cli.Flag("only", "Names of programs, such as rollout,update; default all", [], list),
    cli.Flag("largest", "Look for the largest micro-batch and seats that fit, too", False, bool),
    cli.Flag(
        "layers", "Cut the models to so many layers (2 or more), to read the programs", 0, int
    ),
    cli.Flag("json", "Print the report as JSON", False, bool),
)


def main() -> None:
    """`python -m scope_jax.fit`."""
    cli.run(command, TrainConfig, file="run.py", workdir=False, more=FLAGS, caches=False)
