"""Tests run on 8 CPU devices, with strict promotion rules, and without a network.

docs/testing.md tells what is tested how, and where the time goes."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from support.compile_report import CompileReport
from support.tiny_runs import ROOT, Tiny, make_checkpoints
from support.workers import made_once

from scope_jax.report import charts
from scope_jax.run import failures

# Nearly all of the suite's time is tracing and compilation. LLVM's level 0 halves the latter, the
# older emitters of loops halve it again, and programs as small as these are not worth cutting up
# for several threads; the arithmetic that XLA chose stays as it is.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
# XLA ends the process at a flag that it does not know, and these may go.
if jax.__version_info__ < (0, 11):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
# Read when the first device is asked for. A flag given from outside stands after ours, and the
# later one wins.
os.environ["XLA_FLAGS"] = f"{' '.join(FLAGS)} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"  # for programs that a test starts; this one is told below
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
# One frame for each operation of a program, not a hundred.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "1"
jax.config.update("jax_traceback_in_locations_limit", 1)
# Compiled programs are shared: by the workers of this session, by the programs that tests start,
# and by the next session.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "cache" / "tests" / "compiled"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compile-report",
        nargs="?",
        const="",
        metavar="FILE",
        help="what each test costs, and how much of that is compilation (FILE: as JSON lines too)",
    )


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--compile-report")
    if file is not None:
        config.pluginmanager.register(CompileReport(file or None, config))


@pytest.fixture(autouse=True)
def not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have had a run in it, after which a missing file is no bad
    input any more."""
    monkeypatch.setattr(failures, "_begun", False)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look at it again and again while jax
    traces."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The whole suite says what it left out."""
    if config.args == config.getini("testpaths") and config.option.markexpr == "not long":
        terminalreporter.section("not run here")
        for target, what in (
            ("long", "the tests that take long each"),
            ("kills", "tiny runs killed at random moments"),
            ("oracles", "goldens made afresh with torch; the endpoint of `transformers serve`"),
            ("adapters", "wandb, trackio and lm-eval themselves, where they are not installed"),
            ("fit", "programs compiled for TPU slices"),
        ):
            terminalreporter.line(f"make {target:8} {what}")


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Each compiled program takes a few memory mappings, of which a process may have some 65,000:
    the suite would use them up."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _few_charts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs of these processes draw no charts: a page has one of each metric, and matplotlib takes
    longer for them than a tiny run for its steps. Drawn are those of the tests of pages, and those
    of every program that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name not in ("report", "sweep"):
            patch.setattr(charts, "_drawn", lambda numbers: "")
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works in this process and its children, also where the tests run in the background of
    a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A policy that solves some of its problems, and a process reward model of its steps, by the
    command line: made once, whichever worker needs it first."""
    shared, made = made_once(tmp_path_factory, "checkpoints", make_checkpoints)
    return Tiny(tmp_path_factory.mktemp("tiny"), shared / "policy", shared / "prm", made)
