"""The whole program: what a run writes, that a killed run ends as if it had not been, and that the
mesh does not matter."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.tiny_runs import ROOT, Tiny, environment, run_program

from scope_jax import models, rollout, tasks
from scope_jax.configuration import default_config, train_config
from scope_jax.data import Problems
from scope_jax.data.load import Task
from scope_jax.report import read_sample_file
from scope_jax.run import read_metrics
from scope_jax.text import character_tokenizer, load_tokenizer
from scope_jax.train import train
from scope_jax.training.actors import Actors
from scope_jax.training.rollouts import Progress, draw

STEPS = 6
# One update per batch clips nothing, with a bound and without.
FLAGS = tuple(
    f"--config.loss.{text}" for text in ("teacher_weight=0.2", "clip_high=None", "tis_cap=None")
)
MACHINE = (
    "time/",
    "throughput/",
    "compile/",
    "memory/",
)  # what may differ between two runs of the same numbers
ALWAYS = {
    "reward/mean",
    "advantage/zero_group_share",
    "completion/length_mean",
    "completion/truncated_share",
    "policy/ratio_max",
    "policy/clip_share",
    "policy/entropy",
    "grad/norm",
    "grad/skipped",
    "data/prompts",
    "data/dropped",
    "diversity/distinct_4",
    "time/rollout",
    "time/verify",
    "time/update",
    "throughput/rollout_tokens_per_s",
    "throughput/rollout_tokens_per_s_per_device",
    "throughput/decode_roofline_share",
    "throughput/update_tokens_per_s_per_device",
    "throughput/update_mfu",
    "memory/process_peak_gb",
    "sampler/logp_gap_max",
    "sampler/logp_gap_mean",
    "compile/count",
    "compile/from_cache",
}
SCOPE = {
    "scope/failed_share",
    "scope/located_share",
    "scope/selected",
    "scope/accepted_share",
    "scope/teacher_token_share",
    "time/prm",
    "advantage/zero_group_share_after",
}


def numbers(workdir: Path) -> list[dict]:
    """The metrics of a run without those of the machine."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(MACHINE)} for row in rows]


@pytest.fixture(scope="module")
def reference(checkpoints: Tiny) -> Path:
    """A SCOPE run that nobody disturbed, by the command line, on one device."""
    workdir = checkpoints.folder / "reference"
    more = {"steps": STEPS, "checkpoint.every": 2, "checkpoint.keep": 3}
    done = run_program(
        checkpoints.program("scope", workdir, more, FLAGS),
        checkpoints.folder,
    )
    assert f"done: {STEPS} steps" in done.stdout and str(workdir / "report.html") in done.stdout
    return workdir


def test_a_run_writes_its_files(reference: Path, checkpoints: Tiny):
    config = json.loads((reference / "config.json").read_text())
    assert (
        config["loss"]["teacher_weight"] == 0.2 and config["steps"] == STEPS
    )  # the override is in what is kept
    assert config["loss"]["clip_high"] is None and config["loss"]["tis_cap"] is None
    rows = read_metrics(reference / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row in rows:
        assert row.keys() >= ALWAYS | SCOPE
        assert 0 <= row["reward/mean"] <= 1 and row["grad/skipped"] == 0
    assert [row["data/prompts"] for row in rows] == [8 * (n + 1) for n in range(STEPS)]
    # One update per batch: the ratio differs from 1 by the gap between sampler and trainer only.
    assert max(row["policy/ratio_max"] for row in rows) == pytest.approx(1, abs=1e-3)
    # The run is worth something as a test: failures were located, and some were rescued.
    assert (
        sum(row["scope/selected"] for row in rows) > 0
        and sum(row["scope/accepted"] for row in rows) > 0
    )
    assert any(row["scope/teacher_token_share"] > 0 and row["time/correct"] > 0 for row in rows)
    assert sum(row["grad/norm"] > 0 for row in rows) >= 3
    assert rows[-1].keys() >= {"eval/pass@1", "eval/pass@2", "eval_ood/pass@1", "time/evaluate"}
    summary = json.loads((reference / "summary.json").read_text())
    assert (summary["steps"], summary["updates"], summary["skipped"]) == (STEPS, STEPS, 0)
    assert summary["final"]["reward/mean"] == rows[-1]["reward/mean"]
    assert sorted(
        int(p.name) for p in (reference / "checkpoints").iterdir() if p.name.isdigit()
    ) == [2, 4, 6]
    page = (reference / "report.html").read_text()
    assert "<svg" in page or "data:image" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page


def test_tensorboard_reads_the_same_numbers(reference: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(reference / "tb"))
    events.Reload()
    rows = read_metrics(reference / "metrics.jsonl")
    for name in ("reward/mean", "grad/norm", "scope/accepted_share"):
        points = events.Scalars(name)
        assert [p.step for p in points] == list(range(STEPS))
        np.testing.assert_allclose(
            [p.value for p in points], [row[name] for row in rows], rtol=1e-6
        )


def test_samples_tell_what_happened(reference: Path):
    files = sorted((reference / "samples").glob("step_*.json"))
    assert files
    items = [item for file in files for item in read_sample_file(file).rescues]
    rescued = [item for item in items if item["verdict_after"]]
    assert rescued and len(items) > len(rescued)
    for item in items:
        assert item["verdict_before"] is False
        own = [s for s in item["steps"] if s["status"] in ("kept", "wrong", "discarded")]
        first = item["first_error"]
        assert [s["status"] for s in own] == ["kept"] * first + ["wrong"] + ["discarded"] * (
            len(own) - first - 1
        )
        assert (
            all(s["score"] >= item["threshold"] for s in own[:first])
            and own[first]["score"] < item["threshold"]
        )
    domain = tasks.Arithmetic(start="zero")
    for item in rescued:
        final = "".join(s["text"] for s in item["steps"] if s["status"] in ("kept", "corrected"))
        tail = "\n".join(s["text"] for s in item["steps"] if s["status"] == "tail")
        problem = tasks.Problem("", item["prompt"], item["answer"])
        assert domain.verify([problem], [final + tail]) == [True]


def test_samples_show_ordinary_rollouts(reference: Path):
    """Those of the first step, judged again."""
    rollouts = read_sample_file(reference / "samples" / "step_000000.json").rollouts
    kinds = [item["kind"] for item in rollouts]
    assert {"right", "wrong"} <= {*kinds} and max(map(kinds.count, kinds)) <= 2
    domain = tasks.Arithmetic(start="zero")
    for item in rollouts:
        problem = tasks.Problem("", item["problem"], item["answer"])
        if item["finished"]:
            assert domain.verify([problem], [item["text"]]) == [item["verdict"]]
        assert item["verdict"] is (item["kind"] == "right") and item["prompt"] == item["problem"]
        assert item["tokens"] == len(item["text"])  # a token is a character


def test_the_trained_model_loads(reference: Path, checkpoints: Tiny):
    config, params = models.load(reference / "model")
    before, start = models.load(checkpoints.policy)
    assert config == before
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params, start)
    assert 1e-5 < moved["head"] < 0.1
    tokenizer = load_tokenizer(reference / "model")
    ids = tokenizer.encode("+7-9=")
    spec = rollout.SampleSpec(temperature=0.0, max_new_tokens=12, end_ids=config.end_ids)
    rows = rollout.generate(
        params, config, rollout.from_prompts([ids], 1, 17), jax.random.key(0), spec
    )
    (text,) = rollout.completion_texts(rows, tokenizer)
    assert tasks.Arithmetic(start="zero").answer_of(text) is not None  # a well-formed solution


def test_killed_and_started_again_ends_the_same(reference: Path, checkpoints: Tiny):
    workdir = checkpoints.folder / "killed"
    more = {"steps": STEPS, "checkpoint.every": 2, "checkpoint.keep": 3}
    arguments = checkpoints.program("scope", workdir, more, FLAGS)
    metrics = workdir / "metrics.jsonl"
    with open(checkpoints.folder / "killed.log", "w") as log:
        process = subprocess.Popen(
            arguments, env=environment(checkpoints.folder), cwd=ROOT, stdout=log, stderr=log
        )
        limit = time.monotonic() + 240
        while time.monotonic() < limit and process.poll() is None:
            # Checkpoints are written beside the steps that follow; the first one shall be whole.
            whole = (workdir / "checkpoints" / "2").is_dir()
            if whole and metrics.read_bytes().count(b"\n") >= 3:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (checkpoints.folder / "killed.log").read_text()[
            -3000:
        ]
    written = len(read_metrics(metrics))
    assert 3 <= written < STEPS and not (workdir / "summary.json").exists()

    done = run_program(arguments, checkpoints.folder)
    assert f"resuming {workdir} at step" in done.stdout
    at = int(done.stdout.split("at step ")[1].split()[0])
    assert 0 < at <= written and at % 2 == 0
    assert (workdir / "model" / "model.safetensors").read_bytes() == (
        reference / "model" / "model.safetensors"
    ).read_bytes()
    assert numbers(workdir) == numbers(reference)

    def drop(final):
        return {k: v for k, v in final.items() if not k.startswith(MACHINE)}

    summaries = [
        json.loads((folder / "summary.json").read_text()) for folder in (workdir, reference)
    ]
    assert (
        drop(summaries[0].pop("final")) == drop(summaries[1].pop("final"))
        and summaries[0] == summaries[1]
    )


def test_grpo_resumes_at_an_epoch_boundary(checkpoints: Tiny, tmp_path: Path):
    # 8 problems, 4 a step: checkpoint 2 lies exactly between the first epoch and the second.
    more = {
        "steps": 4,
        "task.options.train_size": 8,
        "rollout.prompts": 4,
        "checkpoint.every": 1,
        "checkpoint.keep": 4,
        "training.micro_batches": 2,
        "evaluation.problems": 0,
        "evaluation.ood_problems": 0,
    }
    whole, part = tmp_path / "whole", tmp_path / "part"
    summary = train(checkpoints.config("grpo", more), whole)
    rows = read_metrics(whole / "metrics.jsonl")
    assert all(row.keys() >= ALWAYS for row in rows) and not any(
        k.startswith("scope/") for row in rows for k in row
    )
    assert summary["updates"] == 4 and rows[-1]["data/prompts"] == 16
    assert "SCOPE" not in (whole / "report.html").read_text()
    assert [*(whole / "samples").glob("step_*.json")]

    # The same run, stopped after step 2 while it wrote the metrics of the third: everything later
    # is not there.
    shutil.copytree(whole, part)
    for name in ("checkpoints/3", "checkpoints/4", "model"):
        shutil.rmtree(part / name)
    (part / "summary.json").unlink()
    lines = (part / "metrics.jsonl").read_text().splitlines(keepends=True)
    (part / "metrics.jsonl").write_text("".join(lines[:3]) + '{"step": 3, "reward/me')
    assert train(checkpoints.config("grpo", more), part)["updates"] == 4
    assert numbers(part) == numbers(whole)
    assert (part / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()

    # Stopped between the last checkpoint and the summary: nothing is trained again, and the
    # figures are those of the run.
    (part / "summary.json").unlink()
    shutil.rmtree(part / "model")
    final = train(checkpoints.config("grpo", more), part)["final"]
    assert final["reward/mean"] == rows[-1]["reward/mean"] and len(numbers(part)) == 4
    model = part / "model" / "model.safetensors"
    assert model.read_bytes() == (whole / "model" / "model.safetensors").read_bytes()

    # A finished run is left alone.
    before = {
        path: path.stat().st_mtime_ns
        for path in (model, part / "summary.json", part / "report.html")
    }
    assert train(checkpoints.config("grpo", more), part)["final"] == final
    assert {path: path.stat().st_mtime_ns for path in before} == before and numbers(
        part
    ) == numbers(whole)


def test_epochs_use_every_problem_once():
    domain = tasks.Arithmetic(start="zero")
    problems = [domain.problem(0, "train", n, 2) for n in range(10)]
    source = Problems.from_list(problems)
    tokenizer = character_tokenizer(domain.characters)
    actors = Actors(None, {}, tokenizer, Task(domain, source, {}), None, None)
    config = default_config()
    config.seed, config.rollout.prompt_tokens = 3, 5
    progress, seen = Progress(), []
    for _ in range(5):
        drawn, ids = draw(actors, train_config(config), progress, 4)
        assert progress.dropped == 0 and ids == [tokenizer.encode(p.prompt) for p in drawn]
        seen += [p.id for p in drawn]
    names = sorted(p.id for p in problems)
    assert (
        progress.position == 20
        and sorted(seen[:10]) == sorted(seen[10:]) == names
        and seen[:10] != seen[10:]
    )


ELSEWHERE = {
    **{f"mesh.teacher.{axis}": size for axis, size in (("data", 4), ("fsdp", 1), ("tensor", 2))},
    **{f"mesh.prm.{axis}": size for axis, size in (("data", 1), ("fsdp", 8), ("tensor", 1))},
    **{f"placement.{name}": "host" for name in ("teacher", "prm", "reference", "optimizer")},
    "method.rows_at_once": 2,
}


@pytest.mark.parametrize(
    ("shape", "places"),
    [
        pytest.param((2, 2, 2), {}, id="2x2x2"),
        pytest.param((8, 1, 1), ELSEWHERE, id="meshes_of_their_own", marks=pytest.mark.long),
    ],
)
def test_the_mesh_does_not_matter(
    reference: Path, checkpoints: Tiny, tmp_path: Path, shape: tuple[int, int, int], places: dict
):
    """The first two steps of the reference (one device), on eight devices: same tokens, same
    verdicts, same parameters. Also where teacher and PRM have meshes of their own, all wait in
    host memory, and rows are rescued two at a time."""
    more = {
        "steps": STEPS,
        "checkpoint.every": 2,
        "checkpoint.keep": 3,
        "loss.teacher_weight": 0.2,
        "loss.clip_high": None,
        "evaluation.problems": 0,
        "evaluation.ood_problems": 0,
        **dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), shape)),
        **places,
    }
    workdir = tmp_path / "run"
    train(checkpoints.config("scope", {**more, "steps": 2}), workdir)
    exact = (
        "reward/mean",
        "completion/length_mean",
        "diversity/distinct_4",
        "scope/selected",
        "scope/accepted",
        "scope/teacher_token_share",
    )
    for one, eight in zip(
        read_metrics(reference / "metrics.jsonl"), read_metrics(workdir / "metrics.jsonl")
    ):
        assert {name: one[name] for name in exact} == {name: eight[name] for name in exact}
        assert one["loss/total"] == pytest.approx(eight["loss/total"], abs=1e-5)
        assert one["policy/entropy"] == pytest.approx(eight["policy/entropy"], rel=1e-4)

    def texts(folder, step):
        return [
            (item["prompt"], [s["text"] for s in item["steps"]])
            for item in read_sample_file(folder / "samples" / f"step_{step:06d}.json").rescues
        ]

    def shown(folder):
        return [
            step for step in range(2) if (folder / "samples" / f"step_{step:06d}.json").is_file()
        ]

    assert shown(workdir) == shown(reference) != []
    for step in shown(reference):
        assert texts(workdir, step) == texts(reference, step)
    trained = load_file(workdir / "model" / "model.safetensors")
    # Parameters of the reference after the same two steps.
    from scope_jax import learning
    from scope_jax.run import Checkpoints

    config, params = models.load(checkpoints.policy)
    optimizer = learning.make_optimizer(train_config(checkpoints.config("scope", more)).optimizer)
    state = learning.init_state(params, optimizer)
    copy = tmp_path / "checkpoints"
    copy.mkdir()
    shutil.copytree(reference / "checkpoints" / "2", copy / "2")
    with Checkpoints(copy) as kept:
        restored = kept.restore(learning.abstract_state(state))
    assert restored is not None and restored[0] == 2
    models.save(tmp_path / "model", config, restored[1].params)
    one = load_file(tmp_path / "model" / "model.safetensors")
    assert one.keys() == trained.keys()
    for name in one:
        np.testing.assert_allclose(trained[name], one[name], atol=1e-5, err_msg=name)
    start = load_file(checkpoints.policy / "model.safetensors")
    assert max(np.abs(one[name] - start[name]).max() for name in one) > 1e-4  # and they did move
