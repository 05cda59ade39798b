"""Runs scope_jax, transformers + TRL and Tunix in alternation on the same random weights, and
prints a Markdown table.

    python benchmarks/side_by_side.py    # both models, all three tasks, 3 rounds
    python benchmarks/side_by_side.py --models=A --tasks=fixed,step --rounds=2 --steps=1

A round measures every side once, each in a process of its own, in an order that turns from round
to round. Results go to `benchmarks/records/*.json`. How fairness is kept: `benchmarks/README.md`.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lengths import varied_lengths
from make_model import write_model

HERE = Path(__file__).resolve().parent
SIDES = ("scope_jax", "trl", "tunix")
# Fixed: every row writes the whole budget. Varied: rows end as in training, 256 of them through 64
# seats.
TASKS = {
    "fixed": {"mode": "rollout", "prompts": 8, "aim": 1.3},
    "varied": {"mode": "rollout", "prompts": 32, "aim": 2.5},
    "step": {"mode": "step", "prompts": 8, "aim": 1.7},
}
GROUP, PROMPT_LENGTH, NEW_TOKENS, SEATS = 8, 64, 128, 64
DISTURBED = 0.1  # share of the pinned CPUs that other processes may use during a measurement


def run_side(
    side: str, task: str, model: Path, pythons: dict[str, str], args: argparse.Namespace
) -> dict:
    """One measurement in a fresh process on the pinned CPUs.

    Returns the JSON line the side printed, with `others_cpu`: the share of those CPUs that other
    processes used meanwhile; or {"error": the end of what it printed}.
    """
    mode, prompts = TASKS[task]["mode"], TASKS[task]["prompts"]
    program = [str(HERE / "speed.py")] if side == "scope_jax" else [str(HERE / f"peer_{side}.py")]
    flags = {
        "model": os.path.relpath(model, HERE.parent),
        "prompts": prompts,
        "group": GROUP,
        "prompt-length": PROMPT_LENGTH,
    }
    flags |= {"new-tokens": NEW_TOKENS, "seats": SEATS, "steps": args.steps}
    if task == "varied":
        flags |= {
            "lengths": "varied",
            "lengths-file": os.path.relpath(model.parent / "lengths.json", HERE.parent),
        }
    if side in args.micro_batch and mode == "step":
        flags["micro-batch"] = args.micro_batch[side]
    command = [pythons[side], *program, mode, *(f"--{k}={v}" for k, v in flags.items()), "--json"]
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(len(args.cpus)))
    env |= {
        "JAX_PLATFORMS": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    used, own, start = _cpu_seconds(args.cpus), _child_cpu_seconds(), time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env=env,
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            timeout=args.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"side": side, "error": f"no result within {args.timeout} s"}
    wall = time.perf_counter() - start
    others = (_cpu_seconds(args.cpus) - used) - (_child_cpu_seconds() - own)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines or "seconds" not in (result := _parse(lines[-1])):
        said = (done.stderr or done.stdout).replace(str(HERE.parent), ".")
        return {"side": side, "error": said[-2000:]}
    return result | {
        "side": side,
        "wall_s": wall,
        "others_cpu": max(0.0, others / (wall * len(args.cpus))),
    }


def wait_for_quiet(cpus: list[int], limit_s: float, share: float = DISTURBED) -> float:
    """Waits until other processes use less than `share` of the CPUs for 3 s, at most `limit_s`;
    last share seen."""
    end = time.perf_counter() + limit_s
    while True:
        used, start = _cpu_seconds(cpus), time.perf_counter()
        time.sleep(3.0)
        busy = (_cpu_seconds(cpus) - used) / ((time.perf_counter() - start) * len(cpus))
        if busy < share or time.perf_counter() > end:
            return busy


def summarise(rounds: list[dict[str, dict]]) -> dict:
    """Median seconds of each side, and our speed over the better peer in each round (`ratio` is
    their median).

    Rounds in which other processes disturbed a side count only if there are no others.
    """
    whole = [r for r in rounds if all("error" not in result for result in r.values())]
    calm = [r for r in whole if all(result["others_cpu"] <= DISTURBED for result in r.values())]
    used = calm or whole
    sides = sorted({side for r in rounds for side in r}, key=SIDES.index)
    summary: dict = {
        "rounds": len(rounds),
        "rounds_used": len(used),
        "disturbed": bool(used) and not calm,
    }
    for side in sides:
        results = [r[side] for r in used or rounds if "error" not in r[side]]
        if results:
            summary[side] = {
                key: statistics.median(r[key] for r in results)
                for key in ("seconds", "tokens_per_s")
            }
    peers = [side for side in sides if side != "scope_jax"]
    if used and peers and "scope_jax" in sides:
        ratios = [min(r[p]["seconds"] for p in peers) / r["scope_jax"]["seconds"] for r in used]
        summary |= {
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return summary


def table(summaries: dict[tuple[str, str], dict]) -> str:
    """Markdown: one row for each model and task."""
    lines = [
        (
            "| model | task | scope_jax | transformers + TRL | Tunix | over the better peer | aim |"
            " rounds |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, task), summary in summaries.items():
        cells = [_cell(summary.get(side), TASKS[task]["mode"]) for side in SIDES]
        ratio = "-"
        if "ratio" in summary:
            ratio = (
                f"**{summary['ratio']:.2f}x** ({summary['ratio_min']:.2f} to"
                f" {summary['ratio_max']:.2f})"
            )
        count = f"{summary['rounds_used']} of {summary['rounds']}" + (
            " (disturbed)" if summary["disturbed"] else ""
        )
        lines.append(
            f"| {model} | {task} | {' | '.join(cells)} | {ratio} | {TASKS[task]['aim']}x |"
            f" {count} |"
        )
    return "\n".join(lines)


def make_venv(name: str, find_python: Callable[[], str]) -> str:
    """The interpreter of `benchmarks/.venvs/<name>`, made from `requirements-<name>.txt` on the
    first call, with the Python that `find_python()` gives."""
    home = HERE / ".venvs" / name
    interpreter, ready = home / "bin" / "python", home / "ready"
    wanted = (HERE / f"requirements-{name}.txt").read_text()
    if not ready.exists() or ready.read_text() != wanted:
        print(f"making {home} (minutes)", file=sys.stderr, flush=True)
        subprocess.run([find_python(), "-m", "venv", "--clear", str(home)], check=True)
        install = [
            str(interpreter),
            "-m",
            "pip",
            "install",
            "--quiet",
            "-r",
            str(HERE / f"requirements-{name}.txt"),
        ]
        subprocess.run(install, check=True, stdout=sys.stderr)
        ready.write_text(wanted)
    return str(interpreter)


def newer_python() -> str:
    """A Python of 3.12 or later, as Tunix needs: the first on the path that runs and says so."""
    ask = ["-c", "import sys; sys.exit(sys.version_info < (3, 12))"]
    for name in (sys.executable, "python3.12", "python3.13", "python3"):
        found = shutil.which(name)
        # A version manager's shim is on the path even where it can start nothing.
        if (
            found
            and subprocess.run([found, *ask], capture_output=True, check=False).returncode == 0
        ):
            return found
    raise SystemExit(
        "error: Tunix needs Python 3.12 or later and none is on the path; give"
        " --tunix-python=PYTHON"
    )


def _cell(result: dict | None, mode: str) -> str:
    if result is None:
        return "-"
    return (
        f"{result['seconds']:.2f} s" if mode == "step" else f"{result['tokens_per_s']:,.0f} tok/s"
    )


def _parse(line: str) -> dict:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}


def _cpu_seconds(cpus: list[int]) -> float:
    """Seconds these CPUs were busy since boot; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    fields = [line.split() for line in stat.read_text().splitlines()]
    busy = [
        sum(map(int, f[1:4])) + sum(map(int, f[6:8]))
        for f in fields
        if f[0] in {f"cpu{c}" for c in cpus}
    ]
    return sum(busy) / os.sysconf("SC_CLK_TCK")


def _child_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _pin(threads: int) -> list[int]:
    """Pins this process, and so every side, to `threads` CPUs, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        return list(range(threads))
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cpus)
    return cpus


def _micro_batches(text: str) -> dict[str, int]:
    pairs = (pair.split("=") for pair in text.split(",") if pair)
    return {side: int(rows) for side, rows in pairs}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="scope_jax beside transformers + TRL and Tunix, in one run."
    )
    parser.add_argument("--models", default="A,B", help="of make_model.py")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=3, help="timed calls of a side in a round; their median counts"
    )
    parser.add_argument(
        "--micro-batch",
        type=_micro_batches,
        default={},
        help="rows a backward pass, as trl=16,tunix=64",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quiet-wait", type=float, default=120.0, help="seconds to wait for other load to end"
    )
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one measurement")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter with scope_jax's requirements"
    )
    parser.add_argument("--torch-python", help="interpreter with torch and trl; default: makes one")
    parser.add_argument("--tunix-python", help="interpreter with google-tunix; default: makes one")
    parser.add_argument(
        "--work", default=str(HERE / ".work"), help="where the random models are written"
    )
    args = parser.parse_args()
    for name, known in (("tasks", TASKS), ("sides", SIDES)):
        chosen = getattr(args, name).split(",")
        if unknown := [x for x in chosen if x not in known]:
            parser.error(f"--{name}={unknown[0]}: one or more of {','.join(known)}")
        setattr(args, name, chosen)
    return args


def main() -> None:
    args = parse_args()
    pythons = {"scope_jax": args.python}
    if "trl" in args.sides:
        pythons["trl"] = args.torch_python or make_venv("trl", lambda: sys.executable)
    if "tunix" in args.sides:
        pythons["tunix"] = args.tunix_python or make_venv("tunix", newer_python)
    args.cpus = _pin(args.threads)
    results_dir = HERE / "records"
    results_dir.mkdir(exist_ok=True)
    summaries = {}
    for name in args.models.split(","):
        model = Path(args.work).resolve() / name
        write_model(name, str(model))
        rows = TASKS["varied"]["prompts"] * GROUP
        (model.parent / "lengths.json").write_text(json.dumps(varied_lengths(rows, NEW_TOKENS)))
        for task in args.tasks:
            rounds = []
            for at in range(args.rounds):
                turn = at % len(args.sides)
                taken = {}
                for side in args.sides[turn:] + args.sides[:turn]:
                    wait_for_quiet(args.cpus, args.quiet_wait)
                    taken[side] = run_side(side, task, model, pythons, args)
                    print(
                        f"{name} {task} round {at}: {_line(taken[side])}",
                        file=sys.stderr,
                        flush=True,
                    )
                rounds.append(taken)
            summaries[name, task] = summarise(rounds)
            record = {
                "model": name,
                "task": task,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "machine": {
                    "processor": _processor(),
                    "cpus": len(args.cpus),
                    "system": platform.platform(),
                },
                "summary": summaries[name, task],
                "rounds": rounds,
            }
            (results_dir / f"{name}_{task}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(summaries))


def _line(result: dict) -> str:
    if "error" in result:
        return f"{result['side']} failed: {result['error'].strip().splitlines()[-1:]}"
    rate = f"{result['tokens_per_s']:,.0f} tok/s, compile {result['compile_seconds']:.1f} s"
    return (
        f"{result['side']} {result['seconds']:.3f} s, {rate}, others {result['others_cpu']:.0%} of"
        " the CPUs"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
