"""Will a config fit on a TPU slice, and how fast could it be? Compiles every program of the config
for the slice, without one.

    python -m scope_jax.fit --config=scope,math_1_5b --topology=v5e:2x4 [--config.mesh.fsdp=8 ...]
        [--only=rollout,update] [--largest] [--json] [--workdir=DIR]

Needs libtpu (`pip install "scope_jax[fit]"`), which holds the compiler. Memory is what that
compiler decided, a fact about the program; nothing is run, and seconds are a roofline: what the
operations, the bytes moved or the network take at least, at published peaks. docs/scaling.md says
what the columns mean. Exit code 1 where something does not fit, 2 for bad input.
"""

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from scope_jax import cli
from scope_jax.configuration import TrainConfig, train_config
from scope_jax.fit import hlo, lint
from scope_jax.fit.costs import roofline
from scope_jax.fit.known_models import model_shapes
from scope_jax.fit.programs import Models, Plan, Program, mesh_of, plan
from scope_jax.fit.topology import GIB, Topology, devices, parse_topology
from scope_jax.models.config import ModelConfig
from scope_jax.run import write_atomically

# More than this share of what the compiler allows is flagged: the runtime needs some too.
TIGHT = 0.95


@dataclasses.dataclass
class Line:
    """One program. Bytes are of one device; `needed` = its own peak and what else is resident.
    seconds: of one run; the program runs `runs` times in a step (0: outside of steps). error: why
    it could not be compiled."""

    program: str
    fits: bool
    needed: float
    limit: float
    resident: float
    arguments: float = 0.0
    temporaries: float = 0.0
    flops: float = 0.0
    hbm: float = 0.0
    network: float = 0.0
    seconds: float = 0.0
    bound: str = ""
    runs: float = 1.0
    rows: int = 0
    decode_step: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokens_per_s: float = 0.0
    mfu: float = 0.0
    compile_s: float = 0.0
    warnings: list[str] = dataclasses.field(default_factory=list)
    error: str = ""


def fit(
    config: ConfigDict,
    topology: Topology,
    *,
    only: Sequence[str] = (),
    largest: bool = False,
    texts: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The report on `config` and `topology` as a JSON object. `only`: names of programs;
    `largest`: look for the largest micro-batch and number of seats that fit too. `texts`: a
    directory for the compiled programs, as text. `say` is told what is being compiled.

    Raises ValueError for a config, mesh, slice or model that makes no sense.
    """
    settings = train_config(config)
    found, sources = find_models(settings)
    slice_devices = devices(topology)
    made = plan(settings, found, slice_devices)
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
        "limit": topology.chip.hbm,
        "mesh": dict(made.programs[0].mesh.shape),
        "models": sources,
        "held": made.held,
        "notes": made.notes,
        "programs": [dataclasses.asdict(line) for line in lines],
        "fits": all(line.fits for line in lines),
        "seconds_per_step": None if only else sum(line.seconds * line.runs for line in lines),
    }
    if largest:
        report["largest"] = find_largest(config, found, slice_devices, topology, lines, say)
    return report


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
        sources[name] = f"{directory}: {origin}"
        if name != "prm" and shapes[name].head != "lm":
            raise ValueError(
                f"{directory}: head {shapes[name].head!r}; a {name} needs a vocabulary head ('lm')"
            )
    return Models(**shapes), sources


def measure(program: Program, made: Plan, topology: Topology, texts: Path | None = None) -> Line:
    """Compile one program and look at what came out."""
    limit = float(topology.chip.hbm)
    resident = sum(
        size for name, size in made.held.items() if name not in program.uses | program.gone
    )
    line = Line(program.name, False, 0.0, limit, resident, runs=program.runs, rows=program.rows)
    begun = time.monotonic()
    with jax.set_mesh(program.mesh):
        lowered = program.lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = refused(str(error))
            if needed is None:
                raise
            line.needed, line.error = (
                needed + resident,
                "refused by the compiler: too large by itself",
            )
            line.compile_s = time.monotonic() - begun
            return line
    line.compile_s = time.monotonic() - begun
    memory = compiled.memory_analysis()
    line.arguments, line.temporaries = (
        float(memory.argument_size_in_bytes),
        float(memory.temp_size_in_bytes),
    )
    line.needed = float(memory.peak_memory_in_bytes) + resident
    line.fits = line.needed <= limit
    if texts is not None:
        texts.mkdir(parents=True, exist_ok=True)
        write_atomically(texts / f"{program.name}.txt", compiled.as_text())
    text = hlo.Program(compiled.as_text())
    traffic = text.report()
    _time(line, program, traffic, topology)
    line.warnings = lint.lint(text, traffic, facts(program, made, memory))
    if line.fits and line.needed > TIGHT * limit:
        line.warnings.append(f"uses {line.needed / limit:.0%} of what the compiler allows")
    return line


def _time(line: Line, program: Program, traffic: hlo.Report, topology: Topology) -> None:
    """Fill in the roofline."""
    work, total, loop = program.work, traffic.total, traffic.decode
    line.seconds, line.bound = roofline(work.flops, total.hbm, total.network, topology)
    line.flops, line.hbm, line.network = work.flops, total.hbm, total.network
    if loop is not None and work.steps:
        step, bound = roofline(work.step_flops, loop.traffic.hbm, loop.traffic.network, topology)
        line.decode_step = {
            "seconds": step,
            "bound": bound,
            "steps": work.steps,
            "flops": work.step_flops,
            **dataclasses.asdict(loop.traffic),
        }
        line.flops += work.steps * work.step_flops
        line.hbm += work.steps * loop.traffic.hbm
        line.network += work.steps * loop.traffic.network
        if work.steps * step > line.seconds:
            line.bound = bound
        line.seconds += work.steps * step
        line.tokens_per_s = work.tokens / line.seconds
    if work.useful and line.seconds:
        line.mfu = work.useful / (line.seconds * topology.devices * topology.chip.flops)


def facts(program: Program, made: Plan, memory: Any) -> lint.Facts:
    """What the forms of a program are compared with."""
    state = made.held["weights"] + made.held["moments"] if program.aliased else 0.0
    return dataclasses.replace(
        program.facts, state=state, aliased=float(memory.alias_size_in_bytes)
    )


def refused(message: str) -> float | None:
    """Bytes that a program needs by the compiler's refusal, None where the message is about
    something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    sizes = re.findall(r"([\d.]+)([KMGT])\b", message)
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return max((float(number) * units[unit] for number, unit in sizes), default=math.inf)


# ---- what would fit

MORE = (2, 4, 8, 16)  # times the config's own batch


def find_largest(
    config: ConfigDict,
    found: Models,
    slice_devices: list[Any],
    topology: Topology,
    lines: Sequence[Line],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """{program: {rows, setting, needed}} for the update's micro-batch and the rollout's seats: the
    peak is taken to grow in a line with the rows, through two compiled sizes; what comes out is
    compiled, and made smaller until it fits. All compiles are of the full depth: layers are
    scanned, so that fewer of them would not compile faster."""
    answer: dict[str, Any] = {}
    for name in ("update", "rollout"):
        line = next((line for line in lines if line.program == name), None)
        if line is None:
            continue
        sizes = choices(config, name, slice_devices)
        compiled: dict[int, float] = {} if line.error else {line.rows: line.needed}

        def needed(rows: int, name: str = name, compiled: dict[int, float] = compiled) -> float:
            if rows not in compiled:
                made = plan(train_config(resized(config, name, rows)), found, slice_devices)
                say(f"compiling {name} with {rows} rows")
                compiled[rows] = measure(
                    next(p for p in made.programs if p.name == name), made, topology
                ).needed
            return compiled[rows]

        answer[name] = search(sizes, line.rows, topology.chip.hbm, needed)
    return answer


def choices(config: ConfigDict, name: str, slice_devices: list[Any]) -> list[int]:
    """Rows of a micro-batch, or seats, that every device has the same number of: shares of the
    config's batch, and its multiples with as many times the prompts."""
    mesh = mesh_of(train_config(config), slice_devices)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    whole = _whole(config, name)
    shares = [size for size in range(parts, whole + 1, parts) if whole % size == 0]
    return shares + [whole * times for times in MORE if whole % parts == 0]


def _whole(config: ConfigDict, name: str) -> int:
    """The most rows that the config's batch gives a micro-batch (those of a length bucket), or
    seats."""
    if name == "rollout":
        return config.rollout.prompts * config.rollout.group
    rows = config.rollout.prompts * train_config(config).rows_per_group
    rows //= config.training.mini_batches
    return rows // config.training.length_buckets


def resized(config: ConfigDict, name: str, rows: int) -> ConfigDict:
    """The config with `rows` rows in a micro-batch, or `rows` seats; with more prompts where they
    are too few."""
    changed = config.copy_and_resolve_references()
    changed.rollout.prompts *= max(rows // _whole(config, name), 1)
    if name == "rollout":
        changed.rollout.seats = rows
    else:
        changed.training.micro_batches = config.training.length_buckets * max(
            _whole(config, name) // rows, 1
        )
    return changed


def search(
    sizes: Sequence[int], now: int, limit: float, needed: Callable[[int], float]
) -> dict[str, Any]:
    """{rows, needed, compiled}: the largest of `sizes` for which `needed` stays within `limit`
    (rows 0: none does). `needed` is asked seldom: first at `now` and its neighbour below, then
    where a line through the two says that the limit lies."""
    if not sizes:
        return {"rows": 0, "needed": None}
    first = now if now in sizes else max([size for size in sizes if size <= now], default=sizes[0])
    place = sizes.index(first)
    other = sizes[place - 1] if place else sizes[min(1, len(sizes) - 1)]
    slope = (needed(first) - needed(other)) / (first - other) if first != other else 0.0
    slope = slope if math.isfinite(slope) else 0.0
    reach = (
        [size for size in sizes if needed(first) + slope * (size - first) <= limit]
        if slope > 0
        else list(sizes)
    )
    for size in sorted(reach or sizes[:1], reverse=True):
        if needed(size) <= limit:
            return {"rows": size, "needed": needed(size)}
    return {"rows": 0, "needed": needed(sizes[0])}


# ---- showing it


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    limit = report["limit"]
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    out = [
        f"{report['topology']}: {report['devices']} devices of {limit / GIB:.2f} GiB, mesh {mesh}",
        "compiled for the slice, not run; seconds are rooflines at published peaks",
        *(f"  {who:<8} {source}" for who, source in report["models"].items()),
        "  resident "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in report["held"].items())
        + " GiB",
        "",
    ]
    head = (
        "program",
        "HBM GiB",
        "of",
        "args",
        "temp",
        "others",
        "TFLOP",
        "HBM GB",
        "net GB",
        "seconds",
        "bound",
        "x",
        "fits",
    )
    rows = [head]
    for line in report["programs"]:
        gib = [f"{line[key] / GIB:.2f}" for key in ("arguments", "temporaries", "resident")]
        verdict = (
            f"yes, {(limit - line['needed']) / GIB:.1f} left"
            if line["fits"]
            else f"NO, {_over(line, limit)} too much"
        )
        rows.append(
            (
                line["program"],
                f"{line['needed'] / GIB:.2f}",
                f"{line['needed'] / limit:.0%}",
                *gib,
                f"{line['flops'] / 1e12:,.0f}",
                f"{line['hbm'] / 1e9:,.0f}",
                f"{line['network'] / 1e9:,.1f}",
                f"{line['seconds']:.2f}",
                line["bound"],
                f"{line['runs']:g}",
                verdict,
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    for row in rows:
        cells = [
            cell.ljust(width) if n in (0, 10, 12) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths))
        ]
        out.append("  ".join(cells).rstrip())
    out += ["", *figures(report)]
    out += [f"note: {note}" for note in report["notes"]]
    out += [
        f"{line['program']}: {text}"
        for line in report["programs"]
        for text in ([line["error"]] if line["error"] else [])
    ]
    out += [
        f"warning: {line['program']}: {text}"
        for line in report["programs"]
        for text in line["warnings"]
    ]
    return "\n".join(out)


def _over(line: dict[str, Any], limit: float) -> str:
    return f"{(line['needed'] - limit) / GIB:.1f}" if math.isfinite(line["needed"]) else "?"


def figures(report: dict[str, Any]) -> list[str]:
    """The lines under the table."""
    lines = {line["program"]: line for line in report["programs"]}
    out = []
    if (rollout := lines.get("rollout")) and rollout["decode_step"]:
        step = rollout["decode_step"]
        out.append(
            f"rollout: {rollout['tokens_per_s']:,.0f} tokens/s at most; a decode step of"
            f" {rollout['rows']} rows takes {step['seconds'] * 1e3:.2f} ms ({step['bound']}):"
            f" {step['hbm'] / 1e9:.2f} GB of HBM, {step['network'] / 1e6:.1f} MB of network in"
            f" {step['collectives']:.0f} collectives"
        )
    if (update := lines.get("update")) and update["mfu"]:
        out.append(
            f"update: {update['mfu']:.0%} of the peak put to use at most, {update['rows']} rows in"
            " a micro-batch"
        )
    if report["seconds_per_step"] is not None:
        out.append(
            f"step: {report['seconds_per_step']:.0f} s at least where all rows are as long as they"
            " may be (no evaluation)"
        )
    for name, best in report.get("largest", {}).items():
        what = "micro-batch" if name == "update" else "number of seats"
        size = f"{best['needed'] / GIB:.2f} GiB" if best["needed"] else "-"
        out.append(
            f"largest {what} that fits: {best['rows']} rows ({size})"
            if best["rows"]
            else f"no {what} fits ({size})"
        )
    out.append("everything fits" if report["fits"] else "does NOT fit")
    return out


def command(config: ConfigDict, workdir: str | None, given: Any) -> str:
    """The command line's `fit`."""
    if not given.topology:
        parse_topology("")
    jax.config.update("jax_platforms", "cpu")
    topology = parse_topology(given.topology)

    def say(line: str) -> None:
        print(f"fit: {line} ...", file=sys.stderr, flush=True)

    texts = Path(workdir) / "programs" if workdir else None
    report = fit(config, topology, only=given.only, largest=given.largest, texts=texts, say=say)
    record = json.dumps(report, indent=2)
    if workdir:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(workdir) / "fit.json", record + "\n")
    text = record if given.json else table(report)
    if not report["fits"]:
        print(text)
        sys.exit(1)
    return text


FLAGS = (
    cli.Flag("topology", "The slice: kind:AxB or kind:AxBxC, such as v5e:2x4", ""),
    cli.Flag("only", "Names of programs, such as rollout,update; default all", [], list),
    cli.Flag("largest", "Look for the largest micro-batch and seats that fit, too", False, bool),
    cli.Flag("json", "Print the report as JSON", False, bool),
)


def main() -> None:
    """`python -m scope_jax.fit`."""
    cli.run(command, TrainConfig, file="run.py", workdir=False, more=FLAGS)
