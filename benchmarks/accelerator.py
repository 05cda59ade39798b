"""What the library does on one accelerator, in one call of at most eight minutes.

    python benchmarks/accelerator.py                  on a GPU or TPU chip: the full sizes
    python benchmarks/accelerator.py --tiny           tiny shapes (on a CPU that is the default)
    make accelerator EXTRAS=test,cuda ARGS="..."      the same from a fresh checkout

    --parts=update,prm  these alone (and `device`, whose figures they are held against)
    --minutes=8         of the whole call; parts are skipped where too few seconds are left
    --json=FILE         every figure (runs/accelerator.json); written after each part
    --size=medium       between tiny and full, for a CPU with a few minutes
    --torch-python=EXE  interpreter of the parts that need torch and transformers

Weights are random and made on the device; no checkpoint, no data and no network are needed. Each
part says how long it took, what compiling took, the most memory in use, and its share of what the
device could do at the most: of the memory's rate where weights and keys are read for every token,
of the rate of products elsewhere (peaks as published, `scope_jax/devices/chips.py`; as measured for
a chip that is not listed). Parts run in processes of their own, in order of worth, and a part that
fails or is killed does not stop the others; one that there is no time or memory for is skipped, and
the table says so. Exit code 1 where a part failed.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from accelerator_parts.plan import NAMES, PARTS, SIZES, Part
from accelerator_parts.processes import ROOT, Worker, WorkerDied, play
from accelerator_parts.table import cells, table

FAULTS = ("failure", "kill", "hang", "late", "large")
TABLE = 3.0  # seconds that are kept for the end


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/accelerator.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default="", help="comma-separated; empty: all")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--json", default="runs/accelerator.json")
    parser.add_argument("--size", choices=("auto", *SIZES), default="auto")
    parser.add_argument("--tiny", action="store_const", dest="size", const="tiny")
    parser.add_argument("--torch-python", default=sys.executable)
    # PART:FAULT,...: what a test wants to see reported.
    parser.add_argument("--simulate", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = [name for name in args.parts.split(",") if name]
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"--parts: {unknown[0]!r} is no part; parts are {', '.join(NAMES)}")
    args.parts = ["device", *names] if names else list(NAMES)
    args.simulate = dict(pair.partition(":")[::2] for pair in args.simulate.split(",") if pair)
    for name, fault in args.simulate.items():
        if name not in NAMES or fault not in FAULTS:
            parser.error(f"--simulate: {name}:{fault} is no PART:{'|'.join(FAULTS)}")
    return args


class Run:
    """One call: its clock, its worker, what was found so far."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.size = args, args.size
        self.begin = time.monotonic()
        self.worker: Worker | None = None
        self.parts: dict[str, dict[str, Any]] = {}

    @property
    def left(self) -> float:
        return 60 * self.args.minutes - TABLE - (time.monotonic() - self.begin)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begin:5.0f} s] {text}", flush=True)

    def play(self) -> None:
        for part in PARTS:
            if part.name not in self.args.parts:
                continue
            record = self.record(part)
            self.parts[part.name] = record
            self.write()
            words = record["status"] + (f": {record['why']}" if record["why"] else "")
            self.say(f"{part.name}: {words} ({record['seconds']:.1f} s)")
        if self.worker is not None:
            self.worker.end()

    def record(self, part: Part) -> dict[str, Any]:
        """The record of one part."""
        fault = self.args.simulate.get(part.name)
        device = self.parts.get("device")
        if device is not None and not device["about"]:
            return skipped("nothing is known of the device, as the part device failed")
        needs = part.needs * (SIZES[self.size].share_of_needs if self.size in SIZES else 1.0)
        needs = 1e6 if fault == "late" else needs
        if part.name != "device" and self.left < needs:
            return skipped(f"{max(self.left, 0):.0f} s left, needs about {needs:,.0f}")
        begin = time.monotonic()
        try:
            worker = self.worker_of(part)
        except WorkerDied as died:
            self.worker = None
            record = {"status": "failed", "why": str(died), "rows": [], "about": {}}
            return record | {"seconds": time.monotonic() - begin}
        most = 3.0 if fault == "hang" else min(part.most, self.left)
        self.say(f"{part.name}: {part.about or part.kind} (at most {most:.0f} s)")
        # A worker ends a part by itself a little before it would be ended.
        order = {"part": part.name, "allowed": 0.92 * most, "found": self.parts, "simulate": fault}
        record = play(worker, order, most, self.heard)
        if record["why"].startswith(("given up", "the process")):
            self.worker = None
        if record["why"].startswith("given up") and most < part.most and fault is None:
            why = f"cut off after {most:.0f} s, at the end of the call"
            record |= {"status": "skipped", "why": why}
        return record

    def heard(self, message: dict[str, Any]) -> None:
        if "say" in message:
            self.say(f"  {message['say']}")
        if "row" in message:
            record = {"status": "done", "rows": [message["row"]]}
            self.say("  ".join(cell for cell in cells("", record)[0] if cell))

    def worker_of(self, part: Part) -> Worker:
        """The process of a part: the one that runs, or a new one. Raises WorkerDied."""
        if self.worker is not None and self.worker.name != part.process:
            self.worker.end()
            self.worker = None
        if self.worker is None:
            python = self.args.torch_python if part.process == "torch" else sys.executable
            self.worker = Worker(part.process, self.size, python)
            self.size = self.worker.until_ready(self.left)
        return self.worker

    def write(self) -> None:
        """The JSON file as it is now."""
        path = Path(self.args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"commit": commit(), "minutes": self.args.minutes, "size": self.size}
        found |= {"seconds": time.monotonic() - self.begin, "parts": self.parts}
        beside = path.with_name(path.name + ".new")
        beside.write_text(json.dumps(found, indent=1) + "\n")
        beside.replace(path)


def skipped(why: str) -> dict[str, Any]:
    return {"status": "skipped", "why": why, "seconds": 0.0, "rows": [], "about": {}}


def commit() -> str | None:
    """The commit of this checkout, with "+" where files differ from it."""
    try:

        def git(*arguments: str) -> str:
            return subprocess.run(
                ["git", "-C", str(ROOT), *arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()

        changed = "+" if git("status", "--porcelain") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return None


def device_line(about: dict[str, Any]) -> str:
    """Device, versions and limits in one line."""
    if not about:
        return "device: unknown"
    peaks = about["peaks"]
    limit = about.get("memory_limit")
    words = [
        f"{about['device']} ({about['platform']})",
        f"jax {about['jax']}, jaxlib {about['jaxlib']}",
        f"driver {about['driver']}" if about.get("driver") else "",
        f"commit {commit() or 'unknown'}",
        f"limits {peaks['source']}: {peaks['hbm_rate'] / 1e9:,.4g} GB/s,"
        f" {peaks['flops'] / 1e12:,.4g} TFLOP/s",
        f"{limit / 1e9:.1f} GB for jax" if limit else "",
        f"compiled programs kept in {about['compilation_cache']}"
        if about.get("compilation_cache")
        else "",
    ]
    return "; ".join(word for word in words if word)


def main(argv: list[str] | None = None) -> int:
    # So that a worker is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run = Run(parse(sys.argv[1:] if argv is None else argv))
    try:
        run.play()
    finally:
        if run.worker is not None:
            run.worker.end()
    about = run.parts["device"]["about"]
    print(f"\n{device_line(about)}\n\n{table(run.parts)}\n")
    count = {
        status: [name for name, record in run.parts.items() if record["status"] == status]
        for status in ("done", "skipped", "failed")
    }
    words = [f"{len(names)} {status}" for status, names in count.items() if names]
    print(f"{', '.join(words)} in {time.monotonic() - run.begin:.0f} s; figures: {run.args.json}")
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
