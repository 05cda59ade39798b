#!/usr/bin/env -S python3 -I -S
"""What a worker of tests/fake_gcloud.py has for programs: `make setup`, and the Python that this
makes, which stands for `python -m scope_jax.train`. The trainer counts: one step is one line of
metrics and one checkpoint, it goes on from the newest whole checkpoint, stops with one and with
exit code 75 on SIGTERM, and with 76 where another worker is lost.

    CLOUD/trainer.json    {"steps": how many, "seconds": of one, "exits": {worker: [of each start:
                          its exit code, the words of an error that it crashes with, or null]}}
    CLOUD/make_fails      while it is there, `make` fails
    CLOUD/starts          one JSON object per start: worker, arguments, environment (part of it),
                          step it starts at
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def make(words: list[str]) -> None:
    assert words[0] == "setup", words
    with open(Path.home() / "made", "a") as file:
        file.write(" ".join(words) + "\n")
    if (Path(os.environ["CLOUD"]) / "make_fails").exists():
        sys.exit("make: *** [setup] Error 1")
    Path(".venv/bin").mkdir(parents=True, exist_ok=True)
    python = Path(".venv/bin/python")
    python.unlink(missing_ok=True)
    python.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -I -S "{os.path.realpath(__file__)}" train "$@"\n'
    )
    python.chmod(0o755)


def train(words: list[str]) -> int:
    cloud, worker = Path(os.environ["CLOUD"]), os.environ["FAKE_WORKER"]
    options = dict(word.partition("=")[::2] for word in words)
    plan = json.loads((cloud / "trainer.json").read_text())
    workdir = Path(options["--workdir"])
    directory = options.get("--config.checkpoint.directory", "")
    checkpoints = (
        cloud / "bucket" / directory.removeprefix("gs://") if directory else workdir / "checkpoints"
    )
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    for folder in (workdir, checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    whole = [
        int(path.name)
        for path in checkpoints.iterdir()
        if path.name.isdecimal() and (path / "sum").exists()
    ]
    start = max(whole, default=0)
    seen = {
        key: os.environ.get(key)
        for key in ("TEACHER_KEY", "TOKENIZERS_PARALLELISM", "JAX_COMPILATION_CACHE_DIR")
    }
    starts = cloud / "starts"
    before = (
        [json.loads(line) for line in starts.read_text().splitlines()] if starts.exists() else []
    )
    own = sum(one["worker"] == worker for one in before)
    with open(starts, "a") as file:
        file.write(
            json.dumps({"worker": worker, "arguments": words, "environment": seen, "step": start})
            + "\n"
        )
    print(f"worker {worker}: step {start} of {plan['steps']}", flush=True)
    exits = plan.get("exits", {}).get(worker, [])
    metrics = workdir / "metrics.jsonl"
    if worker == "0":
        lines = {}
        for path in (checkpoints / "metrics.jsonl", metrics):
            for line in path.read_text().splitlines() if path.exists() else []:
                if json.loads(line)["step"] < start:
                    lines[json.loads(line)["step"]] = line
        metrics.write_text("".join(f"{line}\n" for _, line in sorted(lines.items())))
    for step in range(start, plan["steps"]):
        time.sleep(plan["seconds"])
        lost = cloud / "unreachable"
        if lost.exists() and lost.read_text().strip():
            return 76
        if own < len(exits) and isinstance(exits[own], str):
            print(f"Traceback (most recent call last):\n  ...\n{exits[own]}", flush=True)
            return 1
        if own < len(exits) and exits[own] is not None:
            print(f"error: exit code {exits[own]} was asked for", flush=True)
            return exits[own]
        if worker == "0":
            with open(metrics, "a") as file:
                file.write(json.dumps({"step": step, "reward/mean": 0.5, "time/total": 0.5}) + "\n")
            if directory:  # the metrics lie there too, before the checkpoint does
                beside = checkpoints / "metrics.jsonl"
                beside.with_suffix(".new").write_text(metrics.read_text())
                beside.with_suffix(".new").replace(beside)
            being_written = checkpoints / f"{step + 1}.orbax-checkpoint-tmp"
            being_written.mkdir(exist_ok=True)
            for name in ("state", "sum"):
                (being_written / name).write_text(str(step + 1))
            being_written.rename(checkpoints / str(step + 1))
            for path in checkpoints.iterdir():
                if path.name.isdecimal() and int(path.name) < step:
                    shutil.rmtree(path)
        if told:
            print(f"stopped: the same command goes on at step {step + 1}", flush=True)
            return 75
    if worker == "0":
        (workdir / "summary.json").write_text(
            json.dumps(
                {
                    "steps": plan["steps"],
                    "updates": plan["steps"],
                    "skipped": 0,
                    "device": "8 x TPU v6 lite",
                }
            )
        )
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "train":
        assert sys.argv[2:4] == ["-m", "scope_jax.train"], sys.argv
        sys.exit(train(sys.argv[4:]))
    make(sys.argv[1:])
