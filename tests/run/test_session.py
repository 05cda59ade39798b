"""The keeping of one run: what is done again, what is not, and what is on disk, with real
checkpoints and real signals."""

import contextlib
import json
import math
import os
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scope_jax import learning
from scope_jax.run import Checkpoints, Stopped, StopSignal, failures, read_metrics
from scope_jax.run.session import Keeping, Session, finished_summary, write_summary
from scope_jax.training.rollouts import Progress

pytestmark = pytest.mark.usefixtures("interruptible")


class Weight:
    """What learns here: one weight, which grows by 1 with each update."""

    def __init__(self) -> None:
        self.state = learning.init_state({"w": jnp.zeros(())}, optax.identity())

    def restore(self, state: learning.TrainState) -> None:
        self.state = state

    def update(self, skipped: bool) -> None:
        state, one = self.state, jnp.ones((), jnp.int32)
        if skipped:
            self.state = state.replace(
                skipped=state.skipped + one, skipped_in_row=state.skipped_in_row + one
            )
        else:
            self.state = state.replace(
                params={"w": state.params["w"] + 1}, skipped_in_row=jnp.zeros_like(one)
            )


class Killed(BaseException):
    """What ends a process in the middle."""


class Run:
    """A run of a few steps: each takes three problems and one update."""

    def __init__(self, workdir: Path, **options: Any):
        self.workdir, self.options = workdir, options
        self.weight, self.progress = Weight(), Progress()
        self.done: list[int] = []
        self.session: Session

    def __call__(
        self,
        keeping: Keeping,
        *,
        tell_in: int | None = None,
        die_in: int | None = None,
        skip: tuple[int, ...] = (),
    ) -> "Run":
        """All the steps that are left. `tell_in`: the step in whose middle SIGTERM comes;
        `die_in`: that in which the process ends without a word; `skip`: the steps whose updates are
        left out."""
        with (
            StopSignal() as stop,
            Session(self.workdir, keeping, stop, **self.options) as self.session,
        ):
            like = learning.abstract_state(self.weight.state)
            self.session.restore(self.weight, self.progress, like)
            for step in self.session.steps():
                self.progress.position += 3
                if step == die_in:
                    raise Killed
                if step == tell_in:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.session.safe_point()
                self.weight.update(step in skip)
                self.done.append(step)
                self.session.record(step, {"x": float(step)}, skipped=step in skip)
        return self

    @property
    def state(self) -> tuple[int, int]:
        """(updates taken, problems drawn)."""
        return int(self.weight.state.params["w"]), self.progress.position

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {name: v for name, v in row.items() if not name.startswith("time/")}
            for row in read_metrics(self.workdir / "metrics.jsonl")
        ]


def saved(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    with pytest.raises(Stopped) as caught:
        yield
    assert str(caught.value).endswith(
        f": SIGTERM asked to stop; the same command goes on at step {step}"
    )


# ---- a run that nobody disturbs


def test_every_step_is_done_once_and_kept(tmp_path: Path):
    run = Run(tmp_path)(Keeping(steps=5, every=2, keep=3))
    assert run.done == [0, 1, 2, 3, 4] and run.state == (5, 15)
    assert run.rows == [{"step": n, "x": float(n)} for n in range(5)]
    assert saved(tmp_path) == [2, 4, 5]  # and at the end, whatever is due
    assert run.session.last == {"x": 4.0}


def test_once_the_loop_has_begun_a_failure_is_no_bad_input(tmp_path: Path):
    assert failures.ending(FileNotFoundError("x"))[1] == 2
    Run(tmp_path)(Keeping(steps=1, every=None))
    assert failures.ending(FileNotFoundError("x"))[1] == 1


def test_only_the_newest_checkpoints_stay(tmp_path: Path):
    Run(tmp_path)(Keeping(steps=4, every=1, keep=2))
    assert saved(tmp_path) == [3, 4]


def test_the_last_step_may_go_without_a_checkpoint(tmp_path: Path):
    Run(tmp_path)(Keeping(steps=3, every=2, at_end=False))
    assert saved(tmp_path) == [2]


def test_checkpoints_may_lie_elsewhere(tmp_path: Path):
    keeping = Keeping(steps=2, every=2, directory=tmp_path / "elsewhere" / "checkpoints")
    Run(tmp_path / "run")(keeping)
    assert saved(tmp_path / "elsewhere") == [2]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_metrics_lie_beside_checkpoints_that_are_elsewhere(tmp_path: Path):
    """A machine is lost with its folder; another one has an old copy of it (or none), and the
    checkpoints. The lines are whole again, also for TensorBoard."""
    keeping = Keeping(6, 2, directory=tmp_path / "far")
    with pytest.raises(Killed):
        Run(tmp_path / "one")(keeping, die_in=5)
    whole = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert [row["step"] for row in whole] == [0, 1, 2, 3, 4]
    first = (tmp_path / "one" / "metrics.jsonl").read_text().splitlines(keepends=True)[:1]
    for name, lines in (("two", first), ("three", [])):
        far = tmp_path / f"far_{name}"
        shutil.copytree(tmp_path / "far", far)
        folder = tmp_path / name
        folder.mkdir()
        if lines:
            (folder / "metrics.jsonl").write_text("".join(lines))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that lines are lost, for one
            Run(folder)(Keeping(6, 2, directory=far))
        rows = read_metrics(folder / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(6)) and rows[:4] == whole[:4]
        events = EventAccumulator(str(folder / "tb"))
        events.Reload()
        assert [event.step for event in events.Scalars("x")] == list(range(len(lines), 6))
    # The lines alone were lost: TensorBoard has each step once.
    shutil.copytree(tmp_path / "far", tmp_path / "far_four")
    shutil.copytree(tmp_path / "one", tmp_path / "four")
    (tmp_path / "four" / "metrics.jsonl").write_text("".join(first))
    time.sleep(1.1)  # Event files are ordered by the second in their name.
    Run(tmp_path / "four")(Keeping(6, 2, directory=tmp_path / "far_four"))
    events = EventAccumulator(str(tmp_path / "four" / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("x")] == list(range(6))


@pytest.mark.parametrize(
    "damage", ["nonsense }{\n", "\x00\x01\n", "{}\n"], ids=["text", "bytes", "json"]
)
def test_a_damaged_copy_of_the_metrics_stops_nobody(tmp_path: Path, damage: str):
    far = tmp_path / "far"
    with pytest.raises(Killed):
        Run(tmp_path / "one")(Keeping(4, 1, directory=far), die_in=2)
    (far / "metrics.jsonl").write_text(damage)
    with pytest.warns(UserWarning, match="the copy of the metrics is left out: "):
        run = Run(tmp_path / "one")(Keeping(4, 1, directory=far))
    assert [row["step"] for row in run.rows] == [0, 1, 2, 3]
    assert [row["step"] for row in read_metrics(far / "metrics.jsonl")] == [0, 1, 2, 3]


def test_metrics_of_lost_checkpoints_are_put_aside_also_where_they_lie_elsewhere(tmp_path: Path):
    far = tmp_path / "far"
    Run(tmp_path / "one")(Keeping(3, 1, directory=far))
    for path in far.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    with pytest.warns(UserWarning, match="3 steps were done and no checkpoint of them is left"):
        Run(tmp_path / "two")(Keeping(4, 1, directory=far))
    aside = read_metrics(tmp_path / "two" / "metrics_before.jsonl")
    assert [row["step"] for row in aside] == [0, 1, 2]
    assert [row["step"] for row in read_metrics(far / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_run_may_be_kept_without_checkpoints_and_without_metrics(tmp_path: Path):
    run = Run(tmp_path, metrics=False)(Keeping(steps=2, every=None))
    assert run.done == [0, 1] and list(tmp_path.iterdir()) == []


# ---- going on


def test_a_run_goes_on_after_its_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Run(tmp_path)(Keeping(steps=3, every=2))
    run = Run(tmp_path)(Keeping(steps=5, every=2))
    assert run.session.start == 3 and run.done == [3, 4] and run.state == (5, 15)
    assert [row["step"] for row in run.rows] == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == f"resuming {tmp_path} at step 3\n"


def test_a_finished_run_has_nothing_to_do_and_its_last_figures(tmp_path: Path):
    Run(tmp_path)(Keeping(steps=3, every=2))
    run = Run(tmp_path)(Keeping(steps=3, every=2))
    assert run.done == [] and run.session.last == {"x": 2.0} and len(run.rows) == 3


def test_a_run_that_is_past_its_steps_is_refused(tmp_path: Path):
    Run(tmp_path)(Keeping(steps=3, every=1))
    with pytest.raises(ValueError, match=r"has 3 steps behind it, more than config\.steps = 2"):
        Run(tmp_path)(Keeping(steps=2, every=1))


def test_metrics_that_no_checkpoint_is_left_of_are_put_aside(tmp_path: Path):
    def begin_with(steps: int) -> Run:
        lines = [json.dumps({"step": n, "x": -1.0}) + "\n" for n in range(steps)]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))
        return Run(tmp_path)(Keeping(steps=4, every=3))

    with pytest.warns(UserWarning, match="3 steps were done and no checkpoint of them is left"):
        run = begin_with(3)
    assert run.done == [0, 1, 2, 3] and [row["x"] for row in run.rows] == [0, 1, 2, 3]
    assert len(read_metrics(tmp_path / "metrics_before.jsonl")) == 3


def test_metrics_of_a_run_that_died_before_its_first_checkpoint_are_overwritten(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "x": -1.0}\n{"step": 1, "x": -1.0}\n')
    run = Run(tmp_path)(Keeping(steps=4, every=3))
    assert [row["x"] for row in run.rows] == [0, 1, 2, 3]
    assert not (tmp_path / "metrics_before.jsonl").exists()


# ---- asked to stop


def test_the_step_that_was_begun_is_given_up_and_done_again(tmp_path: Path):
    keeping = Keeping(steps=5, every=4)
    run = Run(tmp_path)
    with stopped_at(2):
        run(keeping, tell_in=2)
    assert run.done == [0, 1] and saved(tmp_path) == [2]
    again = Run(tmp_path)(keeping)
    assert again.done == [2, 3, 4]
    assert again.state == (5, 15)  # no problem is left out, and none drawn twice
    assert again.rows == [{"step": n, "x": float(n)} for n in range(5)]


def test_a_run_without_checkpoints_has_one_where_it_stops(tmp_path: Path):
    keeping = Keeping(steps=3, every=None)
    with stopped_at(1):
        Run(tmp_path, metrics=False)(keeping, tell_in=1)
    assert saved(tmp_path) == [1]
    assert Run(tmp_path, metrics=False)(keeping).done == [1, 2]


def test_a_run_that_is_stopped_at_once_saves_nothing(tmp_path: Path):
    with stopped_at(0):
        Run(tmp_path)(Keeping(steps=3, every=1), tell_in=0)
    assert saved(tmp_path) == []
    Run(tmp_path)(Keeping(steps=2, every=1))
    with stopped_at(2):
        Run(tmp_path)(Keeping(steps=4, every=1), tell_in=2)
    assert saved(tmp_path) == [1, 2]


def test_another_process_is_named_where_this_one_was_not_told(tmp_path: Path):
    weight, progress = Weight(), Progress()
    with (
        pytest.raises(Stopped, match="another process was asked to stop"),
        Session(tmp_path, Keeping(2, 1), StopSignal(lambda told: True)) as session,
    ):
        session.restore(weight, progress, learning.abstract_state(weight.state))
        next(session.steps())


# ---- evaluation


class Evaluation:
    """Counts how often it was asked; may be told to stop while it goes."""

    def __init__(self, tell_in: int | None = None):
        self.asked, self.tell_in = 0, tell_in

    def __call__(self) -> dict[str, float]:
        self.asked += 1
        if self.asked == self.tell_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"test/right": self.asked / 10}


def test_an_evaluation_is_part_of_the_step_before_it(tmp_path: Path):
    evaluation = Evaluation()
    run = Run(tmp_path, evaluate=evaluation)(Keeping(steps=5, every=5, evaluate_every=2))
    assert {row["step"]: row.get("test/right") for row in run.rows} == {
        0: None,
        1: 0.1,
        2: None,
        3: 0.2,
        4: 0.3,  # after the last step always
    }
    assert run.session.last["test/right"] == 0.3 and run.session.last["x"] == 4.0
    with open(tmp_path / "metrics.jsonl") as lines:
        timed = ["time/evaluate" in line for line in lines]
    assert timed == [False, True, False, True, True]


def test_without_a_rhythm_only_the_last_step_is_evaluated(tmp_path: Path):
    run = Run(tmp_path, evaluate=Evaluation())(Keeping(steps=3, every=3))
    assert ["test/right" in row for row in run.rows] == [False, False, True]


def test_an_evaluation_that_a_stop_did_not_wait_for_is_made_up_for(tmp_path: Path):
    keeping = Keeping(steps=4, every=4, evaluate_every=2)
    run = Run(tmp_path, evaluate=Evaluation(tell_in=1))
    with stopped_at(2):
        run(keeping)
    # The update is done and kept, and its line waits for the evaluation.
    assert run.done == [0, 1] and [row["step"] for row in run.rows] == [0]
    again = Run(tmp_path, evaluate=Evaluation())(keeping)
    assert again.done == [2, 3] and again.state == (4, 12)
    assert again.rows == [
        {"step": 0, "x": 0.0},
        {"step": 1, "x": 1.0, "test/right": 0.1},
        {"step": 2, "x": 2.0},
        {"step": 3, "x": 3.0, "test/right": 0.2},
    ]


def test_what_was_made_up_for_is_made_up_for_again_after_a_kill_and_written_once(tmp_path: Path):
    keeping = Keeping(steps=4, every=4, evaluate_every=2)
    with stopped_at(2):
        Run(tmp_path, evaluate=Evaluation(tell_in=1))(keeping)
    with pytest.raises(Killed):
        Run(tmp_path, evaluate=Evaluation())(keeping, die_in=3)
    run = Run(tmp_path, evaluate=Evaluation())
    assert [row["step"] for row in run.rows] == [0, 1, 2]
    run(keeping)
    assert run.done == [2, 3] and [row["step"] for row in run.rows] == [0, 1, 2, 3]
    assert run.rows[1] == {"step": 1, "x": 1.0, "test/right": 0.1}


def test_the_evaluation_of_the_last_step_is_made_up_for_too(tmp_path: Path):
    keeping = Keeping(steps=2, every=2)
    with stopped_at(2):
        Run(tmp_path, evaluate=Evaluation(tell_in=1))(keeping)
    run = Run(tmp_path, evaluate=Evaluation())(keeping)
    assert run.done == [] and run.session.last["test/right"] == 0.1
    assert run.rows[-1] == {"step": 1, "x": 1.0, "test/right": 0.1}


# ---- updates that were left out


def test_a_checkpoint_waits_for_an_update_that_is_not_left_out(tmp_path: Path):
    Run(tmp_path)(Keeping(steps=5, every=2, keep=9), skip=(1, 3, 4))
    assert saved(tmp_path) == [3]  # due at 2, 4 and the end
    with Checkpoints(tmp_path / "checkpoints") as kept:
        found = kept.restore(learning.abstract_state(Weight().state))
    assert found is not None and float(found[1].params["w"]) == 2


@pytest.mark.parametrize("every", [2, 9])
def test_a_stop_after_an_update_that_was_left_out_keeps_the_last_good_state(
    tmp_path: Path, every: int
):
    """What was done before it is not lost, whether a checkpoint was due or not."""
    with stopped_at(2):
        Run(tmp_path)(Keeping(steps=5, every=every), skip=(2,), tell_in=3)
    assert saved(tmp_path) == [2]
    with Checkpoints(tmp_path / "checkpoints") as kept:
        found = kept.restore(learning.abstract_state(Weight().state))
    assert found is not None and found[2]["position"] == 6
    state = found[1]
    assert (int(state.params["w"]), int(state.skipped), int(state.skipped_in_row)) == (2, 0, 0)
    assert Run(tmp_path)(Keeping(steps=5, every=every)).done == [2, 3, 4]


def test_a_step_of_which_one_update_was_taken_may_have_a_checkpoint(tmp_path: Path):
    """Of several mini-batches one may be left out in every step."""
    run = Run(tmp_path)
    update = run.weight.update

    def both(skipped: bool) -> None:
        update(False)
        state = run.weight.state
        run.weight.state = state.replace(updates=state.updates + 1)
        if skipped:
            update(True)

    run.weight.update = both  # type: ignore[method-assign]
    run(Keeping(steps=4, every=2, keep=9), skip=(0, 1, 2, 3))
    assert saved(tmp_path) == [2, 4]


def test_too_many_in_a_row_end_the_run(tmp_path: Path):
    keeping = Keeping(steps=9, every=1, stop_after_skipped=3)
    run = Run(tmp_path)
    with pytest.raises(
        RuntimeError, match=r"step 7: 3 updates in a row .* lower optimizer\.l"
    ) as e:
        run(keeping, skip=(1, 2, 5, 6, 7))
    assert f"the last good checkpoint is in {tmp_path / 'checkpoints'};" in str(e.value)
    assert [row["step"] for row in run.rows] == list(range(7))  # no line of the last
    assert max(saved(tmp_path)) == 5
    far = Keeping(steps=9, every=4, stop_after_skipped=2, directory=tmp_path / "far")
    with pytest.raises(RuntimeError, match="skipped; lower"):  # there is none yet
        Run(tmp_path / "other")(far, skip=(1, 2))
    with pytest.raises(RuntimeError, match=f"the last good checkpoint is in {tmp_path / 'far'};"):
        Run(tmp_path / "other")(far, skip=(4, 5))


# ---- the summary


def test_a_summary_says_that_a_run_is_finished(tmp_path: Path):
    assert finished_summary(tmp_path) is None
    given = {"steps": 3, "final": {"loss": math.nan, "right": 0.5}, "best": -math.inf}
    plain = {"steps": 3, "final": {"loss": None, "right": 0.5}, "best": None}
    assert write_summary(tmp_path, given) == plain
    assert finished_summary(tmp_path) == plain
    assert json.loads((tmp_path / "summary.json").read_text()) == plain


@pytest.mark.parametrize("holds", [True, False])
def test_a_summary_may_be_of_another_run(tmp_path: Path, holds: bool):
    write_summary(tmp_path, {"steps": 3})
    assert finished_summary(tmp_path, lambda: holds) == ({"steps": 3} if holds else None)
