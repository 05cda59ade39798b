"""Tiny runs, killed at random moments again and again, against the same runs undisturbed: every
number must be the same.

    make kills [ARGS="--kills=6 --only=scope"]

Each case is started, stopped with SIGKILL (or SIGTERM) at a random moment, and started again with
the same command, until it has had its share of kills; then it may finish. Compared with a run that
nobody disturbed: the exported model, the sums of every array of the last checkpoint (parameters,
moments, counters), all metrics but times, samples and the summary, bit for bit. Exit code 1 on any
difference. Not part of pytest: it takes minutes. CPU, one device.
"""

import fnmatch
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from support.tiny_runs import ROOT, Tiny, environment, make_checkpoints, run_program

from scope_jax import cli

STEPS = 16
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "checkpoint.every": 2,
    "checkpoint.keep": 2,
    "evaluation.every": 4,
    "loss.teacher_schedule": "linear",
}
# name -> (config, what it changes)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "accumulation": ("grpo", {"training.micro_batches": 4, "checkpoint.every": 3}),
    "epochs": (
        "grpo",
        {"training.epochs": 2, "training.mini_batches": 2, "loss.old_logp": "recompute"},
    ),
    "luffy": ("luffy", {"method.per_group": 1, "demonstrations.verified": False}),
    "relift": ("relift", {"method.buffer": 3, "checkpoint.every": 1}),
    "scope": ("scope", {"loss.teacher_weight": 0.2}),
    # 8 problems, 4 a step: every second checkpoint lies between two epochs of the data, every
    # other one does not.
    "epoch_boundary": (
        "grpo",
        {"task.options.train_size": 8, "rollout.prompts": 4, "checkpoint.every": 1},
    ),
    "lora": ("scope", {"lora.rank": 4, "training.mini_batches": 2}),
    "bfloat16": ("scope", {"dtype": "bfloat16", "training.micro_batches": 2}),
    "dapo": ("dapo", {"method.resample": 2, "checkpoint.every": 3}),
    "resampled": ("scope", {"method.resample": 2, "rollout.group": 2, "checkpoint.every": 3}),
}
MACHINE = (
    "time/",
    "throughput/",
    "compile/",
    "memory/",
)  # what two runs of the same numbers need not share


def arguments(tiny: Tiny, case: str, workdir: Path) -> list[str]:
    config, more = CASES[case]
    places = (
        {"models.teacher": str(tiny.policy), "models.prm": str(tiny.prm)}
        if config in ("luffy", "relift")
        else {}
    )
    return tiny.program(config, workdir, {**COMMON, **places, **more})


def content(workdir: Path) -> dict[str, Any]:
    """What must be equal, by name."""

    def plain(row):
        return {key: value for key, value in row.items() if not key.startswith(MACHINE)}

    summary = json.loads((workdir / "summary.json").read_text())
    record = json.loads((workdir / "checkpoints" / str(STEPS) / "record" / "metadata").read_text())
    files = sorted(
        path
        for part in ("model", "adapter", "samples")
        for path in (workdir / part).rglob("*")
        if path.is_file()
    )
    return {
        "metrics": [
            plain(json.loads(line)) for line in (workdir / "metrics.jsonl").read_text().splitlines()
        ],
        "summary": summary | {"final": plain(summary["final"])},
        "arrays": record["leaves"],
        # Of a run that was stopped in its last evaluation, the checkpoint says so.
        "place": {
            key: value for key, value in record["extra"].items() if key != "before_evaluation"
        },
        **{str(path.relative_to(workdir)): path.read_bytes() for path in files},
    }


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def disturb(
    process: subprocess.Popen, workdir: Path, draw: random.Random, number: int, last: bool
) -> tuple[str, bool]:
    """Wait for a random moment and send a signal: (name of the signal, whether the process was
    still there). `last`: it may be the end of the run, after its last step."""
    where = draw.choices(("start", "step", "end"), (1, 7, 2 * last))[0]

    def target() -> bool:
        return True

    delay = draw.uniform(0, 8)
    if where == "step":
        goal, delay = lines(workdir) + draw.randint(1, 3), draw.uniform(0, 0.3)
        old = workdir / "metrics.jsonl"
        before = old.stat().st_ino if old.is_file() else 0

        # A run that goes on writes its metrics anew: only then do its own lines count.
        def target():
            return (
                old.is_file() and old.stat().st_ino != before and lines(workdir) >= min(goal, STEPS)
            )
    elif where == "end":
        target, delay = lambda: lines(workdir) >= STEPS, draw.uniform(0, 1.5)
    while process.poll() is None and not target():
        time.sleep(0.002)
    end = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    kind = signal.SIGTERM if number % 4 == 3 else signal.SIGKILL
    there = process.poll() is None
    if there:
        process.send_signal(kind)
    return kind.name, there


def run_case(tiny: Tiny, case: str, kills: int, seed: int) -> dict[str, Any]:
    """One row of the table."""
    begin, draw = time.monotonic(), random.Random(f"{seed} {case}")
    reference, workdir = tiny.folder / f"{case}_whole", tiny.folder / f"{case}_killed"
    run_program(arguments(tiny, case, reference), tiny.folder, seconds=1200)
    program, counts, resumed, at = (
        arguments(tiny, case, workdir),
        {"SIGKILL": 0, "SIGTERM": 0},
        [],
        [],
    )
    log = tiny.folder / f"{case}.log"
    problem = ""
    while True:
        with open(log, "w") as file:
            process = subprocess.Popen(
                program, env=environment(tiny.folder), cwd=ROOT, stdout=file, stderr=file
            )
            kind, there = ("", False)
            done = sum(counts.values())
            if done < kills:
                kind, there = disturb(process, workdir, draw, done, done + 1 == kills)
            code = process.wait(timeout=1200)
        text = log.read_text(errors="replace")
        if "at step " in text.split("stopped:")[0]:
            resumed.append(int(text.split("at step ")[1].split()[0]))
        if there and code != 0:
            counts[kind] += 1
            at.append(lines(workdir))
        if code == 0:
            break
        if not there or code not in {"SIGKILL": (-9,), "SIGTERM": (75, -15)}[kind]:
            problem = (
                f"exit code {code}: {text.strip().splitlines()[-1][:200] if text.strip() else ''}"
            )
            break
    different = [problem] if problem else []
    if not problem:
        one, other = content(reference), content(workdir)
        different = [
            name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)
        ]
    return {
        "case": case,
        **counts,
        "killed at": at,
        "resumed at": resumed,
        "different": different,
        "seconds": time.monotonic() - begin,
    }


def main() -> int:
    known = [
        cli.Flag("only", "pattern of case names", "*"),
        cli.Flag("kills", "of each case", 4, int),
        cli.Flag("seed", "of the moments; they also depend on the machine", kind=int),
        cli.Flag("folder", "where runs work (default: a temporary folder, removed)", kind=Path),
    ]
    args = cli.parse_or_exit(sys.argv[1:], known)
    seed = int(time.time()) if args.seed is None else args.seed
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kill_runs_"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    try:
        folder = folder.absolute()
        made = make_checkpoints(folder)
        tiny = Tiny(folder, folder / "policy", folder / "prm", made)
        print(f"seed {seed}, {STEPS} steps, {args.kills} kills of each case", flush=True)
        heads = (
            "case",
            "SIGKILL",
            "SIGTERM",
            "lines written at each",
            "resumed at step",
            "equal",
            "seconds",
        )
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
        for case in fnmatch.filter(CASES, args.only):
            row = run_case(tiny, case, args.kills, seed)
            rows.append(row)

            def join(values):
                return " ".join(map(str, values))

            cells = [
                case,
                row["SIGKILL"],
                row["SIGTERM"],
                join(row["killed at"]),
                join(row["resumed at"]),
            ]
            cells += [
                "NO: " + ", ".join(row["different"]) if row["different"] else "yes",
                f"{row['seconds']:.0f}",
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    bad = [row["case"] for row in rows if row["different"]]
    total = sum(row["SIGKILL"] + row["SIGTERM"] for row in rows)
    print(
        f"{total} kills in {len(rows)} cases; "
        + (f"different: {', '.join(bad)}" if bad else "no difference")
    )
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(main())
