"""What goes to trackers: each step once, whatever stopped the run; nothing that a tracker does ends
it. wandb (offline) and trackio (local) are the real ones, in processes of their own, where they are
installed; what they cannot be had for, failures above all, is played by a stand-in module."""

import importlib.util
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.tiny_runs import ROOT

from scope_jax.configuration import default_config, train_config
from scope_jax.configuration.schema import set_value
from scope_jax.configuration.training import TrainConfig
from scope_jax.run import Stopped, Trackers, TrackSpec, check_trackers, trackers
from scope_jax.train import train


class StandIn(ModuleType):
    """As much of wandb as is used, which keeps what it is given. `refuse`: the names of the calls
    that fail, as a network that is down makes them."""

    def __init__(self, refuse: tuple[str, ...] = (), resumed_at: int | None = None):
        super().__init__("wandb")
        self.refuse, self.resumed_at = refuse, resumed_at
        self.calls: list[tuple[str, Any]] = []
        self.errors = SimpleNamespace(Error=Exception, UsageError=ValueError)

    def _called(self, name: str, what: Any) -> None:
        if name in self.refuse:
            raise ConnectionError(f"{name}: no route to host")
        self.calls.append((name, what))

    def of(self, name: str) -> list[Any]:
        return [what for called, what in self.calls if called == name]

    class Settings(SimpleNamespace):
        model_fields = ("finish_timeout",)  # an older one knows fewer

    def Artifact(self, name: str, type: str) -> Any:
        files: list[str] = []
        return SimpleNamespace(
            name=name, files=files, add_file=lambda path, name: files.append(Path(path).read_text())
        )

    def init(self, **settings: Any) -> Any:
        self._called("init", settings)
        return SimpleNamespace(
            id=settings["id"],
            resumed=self.resumed_at is not None,
            starting_step=self.resumed_at or 0,
            log=lambda numbers, step, commit: self._called("log", (step, numbers, commit)),
            log_artifact=lambda it: self._called("page", (it.name, *it.files)),
            mark_preempting=lambda: self._called("preempting", None),
            finish=lambda exit_code: self._called("finish", exit_code),
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def steps(start: int, stop: int, workdir: Path, spec: TrackSpec = TrackSpec(wandb="p")) -> Trackers:
    """What a run sends of its steps: `x`, the step's number."""
    with Trackers(spec, workdir, {"seed": 3}) as sent:
        sent.begin(start)
        for step in range(start, stop):
            sent.write(step, {"x": step, "y": float("nan")})
    return sent


# ---- each step once


def test_a_step_that_was_rolled_back_is_not_sent_again(tmp_path: Path, wandb: StandIn, capsys):
    steps(0, 5, tmp_path)
    assert json.loads((tmp_path / "tracked.json").read_text())["wandb"]["steps"] == 5
    steps(3, 7, tmp_path)  # the newest checkpoint was that of step 3
    assert [(step, numbers["x"]) for step, numbers, _ in wandb.of("log")] == [
        (n, n) for n in range(7)
    ]
    assert all(commit for _, _, commit in wandb.of("log"))
    first, second = wandb.of("init")
    assert first["id"] == second["id"] and {first["resume"], second["resume"]} == {"allow"}
    assert "wandb: steps 3 to 4 were sent before the run stopped" in capsys.readouterr().err


def test_what_a_tracker_says_that_it_has_counts(tmp_path: Path, wandb: StandIn):
    steps(0, 2, tmp_path)
    wandb.resumed_at = 4  # it had taken steps that our own record does not know of
    steps(0, 6, tmp_path)
    assert [step for step, _, _ in wandb.of("log")] == [0, 1, 4, 5]


def test_another_project_gets_a_run_of_its_own(tmp_path: Path, wandb: StandIn):
    steps(0, 2, tmp_path)
    steps(1, 3, tmp_path, TrackSpec(wandb="q"))
    first, second = wandb.of("init")
    assert first["id"] != second["id"]
    assert [step for step, _, _ in wandb.of("log")] == [0, 1, 1, 2]


def test_a_damaged_record_begins_a_new_run_and_says_so(tmp_path: Path, wandb: StandIn, capsys):
    steps(0, 2, tmp_path)
    (tmp_path / "tracked.json").write_text('{"wandb": {')
    steps(1, 3, tmp_path)
    assert len({settings["id"] for settings in wandb.of("init")}) == 2
    assert "tracked.json: could not be read" in capsys.readouterr().err


def test_what_a_run_is_called_there(tmp_path: Path, wandb: StandIn):
    steps(0, 1, tmp_path)
    steps(0, 1, tmp_path, TrackSpec(wandb="p", name="n", group="g", tags=("a", "b")))
    first, second = wandb.of("init")
    assert (first["name"], first["group"], first["tags"]) == (tmp_path.name, None, None)
    assert (second["name"], second["group"], second["tags"]) == ("n", "g", ["a", "b"])
    assert first["project"] == "p" and first["config"] == {"seed": 3}
    assert first["dir"] == str(tmp_path)
    assert vars(first["settings"]) == {"finish_timeout": 600.0}


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (Stopped("told"), 75), (RuntimeError("gave up"), 1)]
)
def test_it_is_told_how_the_run_ended(tmp_path: Path, wandb: StandIn, error, code):
    try:
        with Trackers(TrackSpec(wandb="p"), tmp_path, {}) as sent:
            sent.begin(0)
            if error:
                raise error
    except (Stopped, RuntimeError):
        pass
    assert wandb.of("finish") == [code] and len(wandb.of("preempting")) == (code == 75)


# ---- failures


def test_a_tracker_that_fails_is_counted_and_said_once(tmp_path: Path, wandb: StandIn, capsys):
    wandb.refuse = ("log",)
    sent = steps(0, 3, tmp_path)
    assert sent.failed == 3 and sent.metrics() == {"track/failed": 3.0}
    err = capsys.readouterr().err
    assert err.count("warning: wandb: ConnectionError: log: no route to host") == 1
    assert err.count("warning") == 1


def test_one_that_cannot_be_begun_counts_each_step(tmp_path: Path, wandb: StandIn, capsys):
    wandb.refuse = ("init",)
    assert steps(0, 3, tmp_path).failed == 4  # the beginning, and three steps
    assert capsys.readouterr().err.count("warning") == 1
    wandb.refuse = ()
    steps(0, 4, tmp_path)  # nothing had been sent
    assert [step for step, _, _ in wandb.of("log")] == [0, 1, 2, 3]


def test_a_page_that_cannot_be_made_or_sent_is_counted(tmp_path: Path, wandb: StandIn):
    with Trackers(TrackSpec(wandb="p"), tmp_path, {}) as sent:
        sent.begin(0)
        sent.page(lambda path: path.write_text("<p>one</p>"))
        sent.page(lambda path: 1 / 0)
        wandb.refuse = ("page", "finish")
        sent.page(lambda path: path.write_text("<p>two</p>"))
    assert [page[1] for page in wandb.of("page")] == ["<p>one</p>"]
    assert sent.failed == 3


def test_the_first_process_alone_sends(tmp_path: Path, wandb: StandIn, monkeypatch):
    monkeypatch.setattr(trackers, "is_main", lambda: False)
    sent = steps(0, 3, tmp_path)
    check_trackers(TrackSpec(wandb="p", trackio="p"))
    assert not wandb.calls and sent.metrics() == {} and not any(tmp_path.iterdir())


# ---- before the weights


def test_nothing_is_imported_that_is_not_asked_for(tmp_path: Path, monkeypatch):
    for name in trackers.NAMES:
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    check_trackers(TrackSpec(name="x", tags=("a",)))
    sent = steps(0, 2, tmp_path, TrackSpec(name="x"))
    assert sent.metrics() == {} and not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", trackers.NAMES)
@pytest.mark.parametrize("there", [None, ModuleType("a folder of that name")])
def test_a_missing_package_is_named_in_one_line(name, there, monkeypatch):
    monkeypatch.setitem(sys.modules, name, there)
    with pytest.raises(ValueError, match=rf"^config\.track\.{name}: the package {name} is") as said:
        check_trackers(TrackSpec(**{name: "p"}))
    assert f"pip install 'scope_jax[{name}]'" in str(said.value) and "\n" not in str(said.value)


def test_a_run_says_so_before_it_looks_for_a_model(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    config = default_config()
    config.track.trackio, config.models.policy = "p", str(tmp_path / "no_such_model")
    with pytest.raises(
        ValueError, match=r"^config\.track\.trackio: the package trackio is missing"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings():
    config = default_config()
    for name, text in (("track.wandb", "p"), ("track.tags", "a,b"), ("track.trackio", "None")):
        set_value(TrainConfig, config, name, text)
    assert train_config(config).track == TrackSpec(wandb="p", tags=("a", "b"))
    assert train_config(config).track.projects == {"wandb": "p"}
    config.track.wandb = " "
    with pytest.raises(ValueError, match=r"^config\.track\.wandb = ' ' must be a name, or None$"):
        train_config(config)


# ---- the real ones

CHILD = """
import os, sys, time
from pathlib import Path
from scope_jax.run import TrackSpec, Trackers, check_trackers

name, folder, start, stop, kill = sys.argv[1:]
spec = TrackSpec(**{name: "p"}, name="n", group="g", tags=("a",))
check_trackers(spec)
with Trackers(spec, Path(folder), {"loss": {"clip_high": None}, "seed": 3}) as sent:
    sent.begin(int(start))
    for step in range(int(start), int(stop)):
        sent.write(step, {"reward/mean": step / 8, "loss/kl": float("nan")})
    if kill != "0":
        time.sleep(2)  # both hand what they are given to somebody else
        os.kill(os.getpid(), int(kill))
    sent.page(lambda path: path.write_text("<h1>rescues</h1>"))
print("failed", sent.failed)
"""


def child(name: str, folder: Path, start: int, stop: int, kill: int = 0, **more: str) -> Any:
    """Steps `start` to `stop` sent by a process of its own, which a signal ends."""
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("WANDB_")},
        "HOME": str(folder),  # no login of anybody's
        "TRACKIO_DIR": str(folder / "trackio"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **more,
    }
    return subprocess.run(
        [sys.executable, "-c", CHILD, name, str(folder), str(start), str(stop), str(kill)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def real(name: str) -> Any:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed: scope_jax[{name}]")


def records(path: Path) -> list[Any]:
    """The records of a .wandb file: after 7 bytes blocks of 32 KiB, of chunks with a checksum, a
    length and a kind (whole, first, middle, last)."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


@real("wandb")
def test_wandb_offline_has_each_step_once(tmp_path: Path):
    offline = {"WANDB_MODE": "offline"}
    killed = child("wandb", tmp_path, 0, 5, signal.SIGKILL, **offline)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    went_on = child("wandb", tmp_path, 3, 8, **offline)
    assert "failed 0" in went_on.stdout, went_on.stdout + went_on.stderr
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    parts = [records(file) for file in files]
    rows = [
        {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
        for part in parts
        for record in part
        if record.WhichOneof("record_type") == "history"
    ]
    seen = [(json.loads(row["_step"]), json.loads(row["reward/mean"])) for row in rows]
    assert seen == [(step, step / 8) for step in range(8)]
    assert {row["loss/kl"] for row in rows} == {"NaN"}
    runs = [r.run for part in parts for r in part if r.WhichOneof("record_type") == "run"]
    run_id = json.loads((tmp_path / "tracked.json").read_text())["wandb"]["id"]
    assert len(files) == 2 and {run.run_id for run in runs} == {run_id}
    assert {(run.project, run.display_name, run.run_group) for run in runs} == {("p", "n", "g")}
    assert all(list(run.tags) == ["a"] for run in runs)
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["seed"] == 3 and config["loss"] == {"clip_high": None}
    [page] = [
        record.request.log_artifact.artifact if record.HasField("request") else record.artifact
        for part in parts
        for record in part
        if record.WhichOneof("record_type") == "artifact"
        or (record.HasField("request") and record.request.HasField("log_artifact"))
    ]
    assert (page.name, page.type) == (f"report-{run_id}", "report")
    [file] = page.manifest.contents
    assert file.path == "report.html" and file.size == len("<h1>rescues</h1>")


@real("wandb")
def test_wandb_without_a_login_is_bad_input(tmp_path: Path):
    done = child("wandb", tmp_path, 0, 1)
    assert done.returncode == 1
    assert (
        done.stderr.rstrip()
        .splitlines()[-1]
        .startswith("ValueError: config.track.wandb: UsageError: No API key configured.")
    )


@real("trackio")
def test_trackio_has_each_step_once(tmp_path: Path):
    killed = child("trackio", tmp_path, 0, 5, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    went_on = child("trackio", tmp_path, 3, 8)
    assert "failed 0" in went_on.stdout, went_on.stdout + went_on.stderr
    run_id = json.loads((tmp_path / "tracked.json").read_text())["trackio"]["id"]
    with sqlite3.connect(tmp_path / "trackio" / "p.db") as found:
        rows = found.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        [(name, config)] = found.execute("SELECT run_name, config FROM configs").fetchall()
    assert [(step, json.loads(text)["reward/mean"]) for _, step, text in rows] == [
        (step, step / 8) for step in range(8)
    ]
    assert {name for name, _, _ in rows} == {name} == {f"n-{run_id}"}
    assert json.loads(config)["loss"] == {"clip_high": None}
    [page] = [path for path in tmp_path.glob("trackio/artifacts/p/blobs/**/*") if path.is_file()]
    assert page.read_text() == "<h1>rescues</h1>"
