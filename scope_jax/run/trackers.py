"""Trackers of experiments beside TensorBoard: Weights & Biases and trackio.

Neither takes a step back that it has, so a run that goes on behind its own last step sends only
what is missing: `tracked.json` in its folder says which run over there it is, and how far it came.
"""

import dataclasses
import importlib
import json
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from scope_jax.devices.hosts import is_main
from scope_jax.run.failures import in_short
from scope_jax.run.metrics import numbers_of, say_beside_bars
from scope_jax.run.stop import STOPPED, Stopped
from scope_jax.run.workdir import write_atomically

TRACKED = "tracked.json"
NAMES = ("wandb", "trackio")  # of the packages, the settings and the extras of this one
# Of wandb: where the network is down, a run's end waits for it so many seconds and not for ever;
# steps are on disk after one second, not after 15, which is what a kill costs over there.
_OF_WANDB = {
    "finish_timeout": 600.0,
    "finish_timeout_raises": True,
    "x_transaction_log_flush_interval": 1.0,
}


@dataclasses.dataclass(frozen=True)
class TrackSpec:
    """Where a run's metrics go beside its folder."""

    wandb: str | None = None  # the project at Weights & Biases; None: not there
    trackio: str | None = None  # the project of trackio; None: not there
    name: str | None = None  # of the run there; None: that of its folder
    group: str | None = None  # runs that belong together
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*NAMES, "name", "group"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"track.{name} = {value!r} must be a name, or None")

    @property
    def projects(self) -> dict[str, str]:
        """{tracker: project} of those that are asked for."""
        return {name: project for name in NAMES if (project := getattr(self, name)) is not None}


class Tracker(Protocol):
    """A run at one tracker."""

    steps: int  # the first step that it does not have, as far as it says

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep the numbers of a step; steps come in order, each once."""

    def page(self, path: Path) -> None:
        """Keep an HTML file; the newest is shown first."""

    def finish(self, code: int) -> None:
        """Nothing more comes. `code`: how the program ends, as docs/resuming.md has it."""


def check_trackers(spec: TrackSpec) -> None:
    """Import what is asked for, and see that somebody is logged in where that is needed. Raises
    ValueError, in one line, for a package that is not there and for a missing login. Process 0
    alone looks: no other one sends anything."""
    for name in spec.projects if is_main() else ():
        try:
            module: Any = importlib.import_module(name)
            module.init  # noqa: B018  A folder of that name in the way imports as well.
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"config.track.{name}: the package {name} is missing ({in_short(error)}); pip"
                f" install 'scope_jax[{name}]', or set it to None"
            ) from None
        if name == "wandb":
            _log_in(module)


def _log_in(wandb: Any) -> None:
    settings = wandb.setup().settings
    if settings.mode != "online":  # offline and disabled need no account
        return
    try:
        wandb.login()
    except wandb.errors.UsageError as error:
        raise ValueError(
            f"config.track.wandb: {in_short(error)} Or set WANDB_API_KEY, or WANDB_MODE=offline"
        ) from None
    except wandb.errors.Error:
        pass  # a network that does not answer is met again, and counted, when the run begins


class Trackers:
    """The trackers of one run in `workdir`. Used with `with`; process 0 alone sends anything.

    What a tracker raises never ends the run: it is said once for each tracker, and counted in
    `failed`. `config`: what is shown there as the run's settings.
    """

    def __init__(self, spec: TrackSpec, workdir: Path, config: Mapping[str, Any]):
        self._spec, self._workdir, self._config = spec, workdir, config
        self._wanted = spec.projects if is_main() else {}
        self._open: dict[str, Tracker] = {}
        self._kept: dict[str, dict[str, Any]] = {}
        self._said: set[str] = set()
        self.failed = 0  # sends that did not go through, in this process

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        code = 0 if error is None else STOPPED if isinstance(error, Stopped) else 1
        for name, tracker in self._open.items():
            self._guarded(name, tracker.finish, code)
        self._open = {}

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def metrics(self) -> dict[str, float]:
        """`track/failed`; nothing where nothing is tracked."""
        return {"track/failed": float(self.failed)} if self._wanted else {}

    def begin(self, start: int) -> None:
        """Begin the runs over there, or go on with them; `start` is the first step to come."""
        self._kept = self._read() if self._wanted else {}
        for name, project in self._wanted.items():
            kept = self._kept.get(name)
            if kept is None or kept["project"] != project:
                kept = {"project": project, "id": secrets.token_hex(4), "steps": 0}
            self._kept[name] = kept
            # Before anything is sent: a run that nobody would find again is not begun.
            self._write_kept()
            self._guarded(name, self._begin, name, start)

    def _begin(self, name: str, start: int) -> None:
        kinds: dict[str, Callable[..., Tracker]] = {"wandb": _Wandb, "trackio": _Trackio}
        kept = self._kept[name]
        run_name = self._spec.name or self._workdir.resolve().name
        tracker = kinds[name](self._spec, run_name, kept["id"], self._workdir, self._config)
        self._open[name] = tracker
        kept["steps"] = max(kept["steps"], tracker.steps)
        if start < kept["steps"]:
            say_beside_bars(
                f"{name}: steps {start} to {kept['steps'] - 1} were sent before the run stopped,"
                " and are not sent again"
            )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Send the metrics of a step where they have not been sent."""
        for name in self._wanted:
            if step >= self._kept[name]["steps"]:
                self._guarded(name, self._send, name, step, metrics)

    def _send(self, name: str, step: int, metrics: Mapping[str, Any]) -> None:
        if name not in self._open:
            raise ConnectionError("the run could not be begun there")
        # Noted first: of a kill in between a step is missing over there, and none is there twice.
        self._kept[name]["steps"] = step + 1
        self._write_kept()
        self._open[name].log(step, numbers_of(step, metrics))

    def page(self, write: Callable[[Path], Any]) -> None:
        """Send the page that `write(path)` writes, as `report.html`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            for name in self._open:
                self._guarded(name, self._page, name, path, write)

    def _page(self, name: str, path: Path, write: Callable[[Path], Any]) -> None:
        if not path.exists():
            write(path)
        self._open[name].page(path)

    # ---- parts

    def _guarded(self, name: str, send: Callable[..., None], *what: Any) -> None:
        try:
            send(*what)
        except Exception as error:
            self.failed += 1
            if name not in self._said:
                self._said.add(name)
                say_beside_bars(
                    f"warning: {name}: {in_short(error)}; the run goes on, and counts in"
                    " track/failed what was not sent (said once)"
                )

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self._workdir / TRACKED
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {
                name: {
                    "project": str(kept["project"]),
                    "id": str(kept["id"]),
                    "steps": int(kept["steps"]),
                }
                for name, kept in found.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            say_beside_bars(
                f"warning: {path}: could not be read ({in_short(error)}); a new run is begun at"
                " each tracker"
            )
            return {}

    def _write_kept(self) -> None:
        write_atomically(self._workdir / TRACKED, json.dumps(self._kept, indent=2) + "\n")


class _Wandb:
    def __init__(
        self, spec: TrackSpec, name: str, run_id: str, workdir: Path, config: Mapping[str, Any]
    ):
        import wandb

        self._artifact = wandb.Artifact
        self._run = wandb.init(
            project=spec.wandb,
            id=run_id,
            resume="allow",
            name=name,
            group=spec.group,
            tags=list(spec.tags) or None,
            config=dict(config),
            dir=str(workdir),
            settings=wandb.Settings(
                **{key: v for key, v in _OF_WANDB.items() if key in wandb.Settings.model_fields}
            ),
        )
        # Offline it does not know what an earlier process wrote: 0 then.
        self.steps = int(self._run.starting_step) if self._run.resumed else 0

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        # Without `commit` a step is kept back until the next one comes.
        self._run.log(dict(numbers), step=step, commit=True)

    def page(self, path: Path) -> None:
        # An artifact has no step: a page within the history would take that of a later step.
        artifact = self._artifact(f"report-{self._run.id}", type="report")
        artifact.add_file(str(path), name=path.name)
        self._run.log_artifact(artifact)

    def finish(self, code: int) -> None:
        if code == STOPPED:
            self._run.mark_preempting()
        self._run.finish(exit_code=code)


class _Trackio:
    def __init__(
        self, spec: TrackSpec, name: str, run_id: str, workdir: Path, config: Mapping[str, Any]
    ):
        import trackio

        self._artifact, self._id, self._finish = trackio.Artifact, run_id, trackio.finish
        # It finds a run again by its name alone, so that the name has to be this run's only.
        self._run = trackio.init(
            project=str(spec.trackio),
            name=f"{name}-{run_id}",
            group=spec.group,
            config=dict(config),
            resume="allow",
            embed=False,
        )
        self.steps = 0

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def page(self, path: Path) -> None:
        artifact = self._artifact(f"report-{self._id}", type="report")
        artifact.add_file(path, name=path.name)
        self._run.log_artifact(artifact)

    def finish(self, code: int) -> None:
        self._finish()  # of the package, which would finish the run again as the process ends
