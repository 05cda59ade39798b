"""`pytest --compile-report`: what each test costs, and how much of that is compilation.

Seconds of wall time, of this process, of the programs that the test started and waited for, and
the programs that XLA compiled (or took from the cache of compiled programs) in this process:
number, seconds of tracing and lowering, seconds of the backend. With --compile-report=FILE
everything is written there as JSON lines too, one for each phase of each test.
"""

import json
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

PARTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace_s",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace_s",
    "/jax/core/compile/backend_compile_duration": "compile_s",
}
COLUMNS = ("wall_s", "own_s", "children_s", "programs", "trace_s", "compile_s", "from_cache")


class CompileReport:
    """Collects the costs where tests run, and prints them where the session ends."""

    def __init__(self, file: str | None, config: pytest.Config):
        self.file, self.config = file, config
        self.seen: Counter[str] = Counter()
        self.costs: list[dict[str, Any]] = []
        if not hasattr(config, "workerinput") and file:
            Path(file).unlink(missing_ok=True)
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        jax.monitoring.register_event_listener(self._event)

    def _duration(self, event: str, seconds: float, **_: Any) -> None:
        if event in PARTS:
            self.seen[PARTS[event]] += seconds
            self.seen["programs"] += PARTS[event] == "compile_s"

    def _event(self, event: str, **_: Any) -> None:
        self.seen["from_cache"] += event == "/jax/compilation_cache/cache_hits"

    def _now(self) -> Counter[str]:
        now: Counter[str] = Counter(self.seen)
        now["wall_s"] = time.monotonic()
        for who, name in (
            (resource.RUSAGE_SELF, "own_s"),
            (resource.RUSAGE_CHILDREN, "children_s"),
        ):
            usage = resource.getrusage(who)
            now[name] = usage.ru_utime + usage.ru_stime
        return now

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[Any]:
        report = yield
        now = self._now()
        before = getattr(self, "before", None) or now
        report.costs = {name: round(now[name] - before[name], 4) for name in COLUMNS}
        self.before = now
        return report

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.before = getattr(self, "before", None) or self._now()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if costs := getattr(report, "costs", None):
            row = {"test": report.nodeid, "phase": report.when, "outcome": report.outcome} | costs
            self.costs.append(row)
            if self.file and not hasattr(self.config, "workerinput"):
                with open(self.file, "a") as file:
                    file.write(json.dumps(row) + "\n")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        by_file: dict[str, Counter[str]] = defaultdict(Counter)
        by_test: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self.costs:
            numbers = {name: row[name] for name in COLUMNS}
            by_test[row["test"]].update(numbers)
            by_file[row["test"].split("::")[0]].update(numbers)
            by_file["all"].update(numbers)

        def table(title: str, rows: dict[str, Counter[str]], most: int) -> None:
            terminalreporter.section(title)
            terminalreporter.line("".join(f"{name:>11}" for name in COLUMNS))
            for name, row in sorted(rows.items(), key=lambda x: -x[1]["wall_s"])[:most]:
                line = "".join(
                    f"{row[c]:11.2f}" if c.endswith("_s") else f"{row[c]:11d}" for c in COLUMNS
                )
                terminalreporter.line(f"{line}  {name}")

        table("costs by file", by_file, 100)
        table("costs by test (setup, call and teardown)", by_test, 60)
