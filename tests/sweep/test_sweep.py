"""Sweeps: what runs, what is skipped, what a record and the page say."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tiny_runs import ROOT, Tiny, environment

from scope_jax import cli, sweep
from scope_jax.configuration import TrainConfig, train_config
from scope_jax.configuration.files import read_config
from scope_jax.configuration.schema import set_value
from scope_jax.configuration.supervision import SuperviseConfig, supervise_config
from scope_jax.report.by_problem import ByProblem
from scope_jax.sweep import curves, page, tables
from scope_jax.sweep.__main__ import main

TUNED_ON = {
    run.labels["seed"] for run in sweep.load_sweep(ROOT / "configs" / "sweeps" / "tuning.py")[0]
}


def sweep_file(folder: Path, checkpoints: Tiny, bad: bool = False) -> Path:
    """Three tiny runs; with `bad`, the second gives up."""
    more = {"steps": 2, "evaluation.more_temperatures": (0.0,)}
    settings = {m: checkpoints.settings(m, more) for m in ("grpo", "scope")}
    body = f"""
from scope_jax.sweep.runs import Run

SETTINGS = {settings!r}


def sweep():
    runs = []
    for method, seed in (("scope", 0), ("scope", 1), ("grpo", 0)):
        more = {{**SETTINGS[method], "seed": seed}}
        more = {{k: v for k, v in more.items() if not k.startswith("task.options.")}}
        if {bad!r} and seed == 1:
            more["optimizer.learning_rate"] = 1e30
            more["training.stop_after_skipped"] = 1
        name = f"arithmetic/{{method}}/seed_{{seed}}"
        labels = {{"domain": "arithmetic", "method": method, "seed": seed}}
        runs.append(Run(name, f"configs/run.py:{{method}},arithmetic", more, labels))
    return runs
"""
    path = folder / "my_sweep.py"
    path.write_text(body)
    return path


def test_a_sweep_runs_on_two_workers_and_is_gone_on_with(
    checkpoints: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = sweep_file(tmp_path, checkpoints)
    where = [f"--sweep={path}", f"--workdir={tmp_path / 'work'}"]
    where += [f"--records={tmp_path / 'records'}"]
    place = environment(checkpoints.folder)
    # Of each worker's devices the sweep itself decides.
    count = r"--xla_force_host_platform_device_count=\d+"
    place["XLA_FLAGS"] = re.sub(count, "", place["XLA_FLAGS"])

    def start(*more):
        return subprocess.run(
            [sys.executable, "-m", "scope_jax.sweep", *where, *more],
            env=place,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    first = start("--only=*grpo*", "--jobs=2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert (
        "1 of 1 runs done, 0 failed, 0 left" in first.stdout
        and "[1/1] arithmetic/grpo/seed_0" in first.stdout
    )
    kept = tmp_path / "records" / "arithmetic" / "grpo" / "seed_0.json"
    before = kept.read_bytes()
    record = json.loads(before)
    assert (
        record["labels"] == {"domain": "arithmetic", "method": "grpo", "seed": 0}
        and record["steps"] == 2
    )
    assert record["overrides"]["seed"] == 0 and len(before) < 15_000
    assert 0 <= record["final"]["eval/pass@1"] <= 1 and len(record["curve"]["reward/mean"]) == 2
    assert record["mean"]["cost/rollout_tokens"] > 0 and record["seconds"] > 0
    assert not (tmp_path / "work" / "arithmetic" / "grpo" / "seed_0").exists()  # emptied
    # Gone on with: what is done stays as it is.
    again = start("--only=*grpo*")
    assert again.returncode == 0 and "[1/1]" not in again.stdout and kept.read_bytes() == before
    runs, _ = sweep.load_sweep(path)
    assert main([*where, "--list"]) == 0
    listed = capsys.readouterr().out.split("\n")
    assert [line[:4] for line in listed if "seed" in line] == ["    ", "    ", "done"] and len(
        runs
    ) == 3


def test_a_run_that_gives_up_is_recorded_and_the_sweep_goes_on(checkpoints: Tiny, tmp_path: Path):
    runs, _ = sweep.load_sweep(sweep_file(tmp_path, checkpoints, bad=True))
    records, said = tmp_path / "records", []
    assert sweep.work(runs, tmp_path / "work", records, say=said.append) == (2, 1)
    assert (
        len(said) == 3
        and sum("FAILED" in line for line in said) == 1
        and said[-1].startswith("[3/3] ")
    )
    reason = json.loads((records / "arithmetic/scope/seed_1.failed.json").read_text())["reason"]
    assert "were not finite" in reason and "\n" not in reason
    assert (
        json.loads((records / "arithmetic/scope/seed_0.json").read_text())["mean"][
            "cost/prm_tokens"
        ]
        > 0
    )
    kept = json.loads((records / "arithmetic/scope/seed_0.json").read_text())
    assert kept["weights"].keys() == {"policy", "teacher", "prm"}
    assert kept["weights"]["policy"] == kept["weights"]["teacher"] != kept["weights"]["prm"]
    assert kept["tokens"]["rollouts"] > 0 and kept["tokens"]["prm"] > 0
    counts = {name: ByProblem.from_json(found) for name, found in kept["by_problem"].items()}
    assert counts.keys() == {"eval", "eval_t0", "eval_ood", "eval_ood_t0"}
    for name, found in counts.items():
        rate = sum(found.right) / len(found.right) / found.samples
        assert found.samples == (1 if name.endswith("t0") else 2) and len(found.right) == 8
        assert kept["final"][f"{name}/pass@1"] == pytest.approx(rate)
    assert "eval_t0/pass@2" not in kept["final"] and "eval/pass@2" in kept["final"]
    assert sweep.work(runs, tmp_path / "work", records) == (0, 0)  # a failure is an outcome too
    written = tmp_path / "page.md"
    written.write_text(f"# Words\n\n{page.BEGIN}\nold\n{page.END}\n\nMore words\n")
    assert page.main([f"--page={written}", f"--table={records}"]) == 0
    text = written.read_text()
    assert text.startswith("# Words\n") and text.endswith("\nMore words\n") and "old" not in text
    assert "| **scope** | 1 (1 failed) |" in text and "| grpo | 1 |" in text
    picture = tmp_path / "images" / "results_arithmetic.svg"
    drawn = picture.read_bytes()
    assert drawn.lstrip().startswith(b"<?xml") and len(drawn) < 200_000
    assert page.main([f"--page={written}", f"--table={records}"]) == 0
    assert (
        written.read_text() == text and picture.read_bytes() == drawn
    )  # the same from the same records


def test_the_page_has_the_numbers_of_the_records(tmp_path: Path):
    """Two methods, three seeds, by hand."""
    for method, values in (("scope", (0.5, 0.6, 0.7)), ("grpo", (0.4, 0.55, 0.6))):
        for seed, value in enumerate(values):
            record = {
                "name": f"{method}_{seed}",
                "labels": {"domain": "toy", "method": method, "seed": seed},
                "final": {
                    "eval/pass@1": value,
                    "eval/pass@8": 1.0,
                    "eval_ood/pass@1": value / 2,
                    "eval/diversity/distinct_paths": 2.0,
                },
                "mean": {"cost/rollout_tokens": 100.0 if method == "grpo" else 110.0},
                "updates": 60,
                "steps": 30,
                "curve": {"reward/mean": [0.1 * n for n in range(8)]},
                "seconds_per_step": 0.5,
            }
            path = tmp_path / "records" / f"{record['name']}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(record))
    text = page.results(page.Folders(tmp_path / "records"), tmp_path / "images")
    # sd 0.1, t(2) 4.303: half 0.2484; grpo: mean 0.5167, sd 0.1041, half 0.2586
    assert (
        "| **scope** | 3 | 60.0 ± 24.8 | 100.0 ± 0.0 | 30.0 ± 12.4 |" in text
        and "| grpo | 3 | 51.7 ± 25.9 |" in text
    )
    # differences 0.1, 0.05, 0.1: mean 0.0833, sd 0.0289, half 0.0717; all positive: 2 of 8
    # assignments
    assert "| grpo | 3 | +0.0 ± 0.0 (p 1, 0 ahead) | +8.3 ± 7.2 (p 0.25, 3 ahead) |" in text
    assert "the best rival is grpo; scope +8.3 ± 7.2 points" in text
    # Paths are level, right samples are not: 2 / (8 x .5, .6, .7) against 2 / (8 x .4, .55, .6).
    assert "| grpo | 3 | +0.00 ± 0.00 (p 1, 0 ahead) | - | -0.07 ± 0.11 (p 0.25, 0 ahead) |" in text
    assert "paths +0.0 %, OOD paths -, paths per right sample -14.9 %" in text
    assert "| scope | - | - | - | 2.0 | 1.10 | 0 | 0 | 0.50 |" in text


def test_a_curve_shorter_than_the_window_is_not_drawn_and_bins_count_as_steps():
    assert curves.smooth([1.0] * 4).tolist() == []
    assert curves.smooth([0.0, 0.0, 0.0, 0.0, 5.0, 5.0]) == pytest.approx([1.0, 2.0])


def test_a_setting_that_never_finished_is_in_the_table_of_the_search():
    def labels(switch):
        return {
            "method": "grpo",
            "rate": 1e-4,
            "switch": {"advantage.std": switch},
            "seed": 0,
        }

    done = [{"labels": labels(True), "final": {"eval/pass@1": 0.5, "eval_ood/pass@1": 0.25}}]
    text = tables.search(done, [{"labels": labels(False)}])
    assert "| grpo | 0.0001 | `advantage.std = True` | 1 | 50.0 | 25.0 | **37.5** |" in text
    assert "| grpo | 0.0001 | `advantage.std = False` | 0 (1 failed) | - | - | - |" in text


def test_a_record_by_hand():
    rows = [
        {
            "step": n,
            "time/total": float(n),
            "reward/mean": n / 250,
            "policy/entropy": None,
            "update/count": 2.0,
        }
        for n in range(250)
    ]
    rows[0] |= {"cost/teacher_tokens": 1000.0, "scope/accepted_share": 0.5}
    rows[1] |= {"cost/teacher_tokens": 250.0, "scope/accepted_share": 1.0}
    rows[-1] |= {"eval/pass@1": 1 / 3, "eval/unscored": float("nan")}
    run = sweep.Run(
        "a/b",
        "configs/run.py:grpo,arithmetic",
        {"seed": 7, "task.options.seed": 3},
        {"method": "grpo"},
    )
    config = sweep.config_of(run.config, run.overrides)
    record = sweep.record_of(
        run, config, rows, {"steps": 250, "updates": 500, "skipped": 1}, 12.3456789, "abc123"
    )
    assert record["code"] == "abc123"
    # Steps without a teacher cost nothing; a share is that of the steps that have one.
    assert record["mean"] == {
        "cost/teacher_tokens": 5.0,
        "scope/accepted_share": 0.75,
        "time/total": 124.5,
        "update/count": 2.0,
    }
    assert record["final"] == {"eval/pass@1": 0.333333, "eval/unscored": None}
    assert (record["seconds"], record["seconds_per_step"], record["skipped"]) == (12.3457, 124.5, 1)
    # Bins of three: the first is the mean of 0, 1 and 2 over 250, the last holds one step.
    assert record["curve_every"] == 3 and len(record["curve"]["reward/mean"]) == 84
    assert record["curve"].keys() == {
        "reward/mean",
        "scope/accepted_share",
    }  # of the entropy, nothing is known
    assert record["curve"]["scope/accepted_share"][:3] == [0.75, None, None]
    assert (
        record["curve"]["reward/mean"][0] == 0.004 and record["curve"]["reward/mean"][-1] == 0.996
    )
    settings = record["settings"]
    assert (
        settings["seed"] == 7
        and settings["task.options.seed"] == 3
        and settings["advantage.std"] is True
    )
    assert (
        "steps" in settings and "rollout.temperature" not in settings
    )  # 25 and not 100; a default
    assert len(json.dumps(record)) < 15_000


def test_a_record_of_other_settings_is_not_taken_for_the_run(tmp_path: Path):
    run = sweep.Run("a/b", "configs/run.py:grpo,arithmetic", {"seed": 7}, {"method": "grpo"})
    settings = sweep.settings_of(sweep.config_of(run.config, run.overrides))
    path = tmp_path / "a" / "b.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"name": run.name, "settings": settings}))
    sweep.check_records([run], tmp_path)
    path.write_text(json.dumps({"name": run.name, "settings": {**settings, "loss.clip_high": 0.9}}))
    with pytest.raises(ValueError, match=r"b\.json: made with other settings \(loss\.clip_high\)"):
        sweep.check_records([run], tmp_path)


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path):
    lock = tmp_path / "locks" / "a.lock"
    with sweep.claim(lock) as mine:
        assert mine
        with sweep.claim(lock) as again:
            assert not again
        with sweep.claim(lock) as again:  # Asking did not take it away.
            assert not again
    body = "import sys, time\nfrom pathlib import Path\nfrom scope_jax.sweep import claim\n"
    body += (
        "with claim(Path(sys.argv[1])) as mine:\n    print(mine, flush=True)\n    time.sleep(100)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", body, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    with sweep.claim(lock) as mine:
        assert not mine
    holder.kill()
    holder.wait()
    with sweep.claim(lock) as mine:
        assert mine


def test_a_signal_to_stop_ends_the_workers(tmp_path: Path):
    body = "import os, sys\nfrom scope_jax.sweep.__main__ import run_side_by_side\n"
    body += (
        "child = [sys.executable, '-c', 'import os, time; os.write(1, b\"%d\\\\n\" % os.getpid());"
        " time.sleep(100)']\n"
    )
    body += "print(run_side_by_side([child, child], os.environ))\n"
    parent = subprocess.Popen(
        [sys.executable, "-c", body], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.terminate()
    assert parent.stdout.readline() == "[-15, -15]\n" and parent.wait() == 0
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("x = 1", "no function sweep()"),
        (
            "from scope_jax.sweep import Run\nsweep = lambda: [Run('a', 'c.py'), Run('a', 'c.py')]",
            "two runs are called 'a'",
        ),
        (
            "from scope_jax.sweep import Run\nsweep = lambda: [Run('../a', 'c.py')]",
            "no path inside the records' directory",
        ),
        (
            (
                "from scope_jax.sweep import Run\nsweep = lambda: [Run('a',"
                " 'configs/run.py:grpo,arithmetic', {'seeds': 1})]"
            ),
            "in an override: config.seeds: unknown key; the nearest known one is config.seed",
        ),
        (
            (
                "from scope_jax.sweep import Run\nsweep = lambda: [Run('a',"
                " 'configs/run.py:grpo,arithmetic', {'steps.x': 1})]"
            ),
            "in an override: config.steps.x: unknown key",
        ),
        (
            (
                "from scope_jax.sweep import Run\nsweep = lambda: [Run('a',"
                " 'configs/run.py:grpo,arithmetic', {'steps': 'x'})]"
            ),
            "in an override: config.steps = 'x': expected a value of type int",
        ),
        (
            "from scope_jax.sweep import Run\nsweep = lambda: [Run('a', 'scope_jax/types.py')]",
            "scope_jax/types.py: no function get_config()",
        ),
        (
            (
                "from scope_jax.sweep import Run\nsweep = lambda: [Run('a',"
                " 'configs/run.py:grpo,arithmetic', {'localiser.kind': 'x'})]"
            ),
            "localiser.kind = 'x' is unknown",
        ),
        (
            (
                "from scope_jax.sweep import Run\nsweep = lambda: [Run('a',"
                " 'configs/run.py:grpo,arithmetic', {'correction.threshold': 0.4})]"
            ),
            "config.correction.threshold: renamed; it is now config.localiser.threshold",
        ),
        (
            (
                "from scope_jax.sweep import Run\nsweep = lambda: [Run('a',"
                " 'configs/run.py:grpo,arithmetic', {'rollout.group': 1})]"
            ),
            "config.rollout.group = 1 must be at least 2",
        ),
    ],
)
def test_bad_sweeps_are_one_line(
    tmp_path: Path, body: str, reason: str, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "s.py"
    path.write_text(body)
    code = main([f"--sweep={path}", f"--workdir={tmp_path}", f"--records={tmp_path}", "--list"])
    said = capsys.readouterr().err
    assert code == 2 and reason in said and said.count("\n") == 1


def test_at_least_one_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "s.py"
    path.write_text("sweep = list")
    assert (
        main([f"--sweep={path}", f"--workdir={tmp_path}", f"--records={tmp_path}", "--jobs=0"]) == 2
    )
    assert capsys.readouterr().err == "error: --jobs=0 must be at least 1\n"


def test_shards_have_every_run_once():
    runs = [sweep.Run(f"m/{n}", "c.py") for n in range(11)]
    parts = [sweep.select_runs(runs, "*", f"{n}/3") for n in range(3)]
    assert sorted(r.name for part in parts for r in part) == sorted(r.name for r in runs)
    assert [len(part) for part in parts] == [4, 4, 3]
    assert [r.name for r in sweep.select_runs(runs, "m/1*", "0/1")] == ["m/1", "m/10"]
    assert sweep.select_runs(runs, "", "1/3") == []  # the checkpoints, and no run
    with pytest.raises(ValueError, match=r"no run of 11 is called so; .* m/\d+ \(a pattern"):
        sweep.select_runs(runs, "x*", "0/1")
    for bad in ("3/3", "x", "1", "-1/2"):
        with pytest.raises(ValueError, match="expected I/N"):
            sweep.select_runs(runs, "*", bad)


def test_pairs_of_the_confirmation_by_hand():
    """scope is 10 points of pass@1 ahead of grpo on both seeds, and 5 behind the variant."""
    level = {"grpo": 0.3, "scope": 0.4, "variant": 0.45}
    records = [
        {
            "labels": {"domain": "d", "method": name, "seed": seed},
            "final": {"eval/pass@1": at + seed / 100, "eval_ood/pass@1": 0.1},
            "curve": {},
            "mean": {},
        }
        for name, at in level.items()
        for seed in range(2)
    ]
    lines = tables.confirmation(records, "Tried again", "Once more.").splitlines()
    pairs = {
        line.split(" | ")[0].lstrip("| "): line.split(" | ")[3]
        for line in lines
        if " - " in line.split(" | ")[0]
    }
    assert pairs.keys() == {"scope - grpo", "variant - grpo", "scope - variant"}
    assert pairs["scope - grpo"].startswith("+10.0 ± 0.0") and pairs["scope - variant"].startswith(
        "-5.0 ± 0.0"
    )
    assert pairs["variant - grpo"].startswith("+15.0 ± 0.0")


@pytest.mark.parametrize(
    "name", ["miniature_table", "tuning", "ablations", "confirmation", "controls"]
)
def test_the_shipped_sweeps_are_sound(name: str):
    begin = time.monotonic()
    runs, checkpoints = sweep.load_sweep(ROOT / "configs" / "sweeps" / f"{name}.py")
    assert len(runs) >= 30 and len({run.name for run in runs}) == len(runs)
    seen = set()
    for run in runs:
        key = (
            run.config,
            json.dumps({k: v for k, v in run.overrides.items() if k != "seed"}, sort_keys=True),
        )
        if key not in seen:  # seeds apart, each setting once
            seen.add(key)
            train_config(sweep.config_of(str(ROOT / run.config), run.overrides))
        assert run.labels["seed"] == run.overrides["seed"]
    # The records of the published tables, some of an earlier version, are those of the runs.
    records = ROOT / "docs" / "records" / name.removesuffix("_table")
    assert all((records / f"{run.name}.json").is_file() for run in runs)
    sweep.check_records(runs, records)
    for checkpoint in checkpoints:
        file = str(ROOT / checkpoint.config)
        supervise_config(sweep.config_of(file, checkpoint.overrides, SuperviseConfig))
    if name != "tuning":  # what was tuned on is not reported
        assert not TUNED_ON & {run.labels["seed"] for run in runs}
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    "name",
    ["temperatures", "factorial", "conditions", "hypothesis", "teacher_end", "word_problems"],
)
def test_sweeps_that_are_under_way_are_sound(name: str):
    """Their settings hold together, and the records that are there are those of their runs."""
    runs, checkpoints = sweep.load_sweep(ROOT / "configs" / "sweeps" / f"{name}.py")
    assert len({run.name for run in runs}) == len(runs)
    assert not TUNED_ON & {run.labels["seed"] for run in runs}
    settings = {(run.config, tuple(sorted(set(run.overrides) - {"seed"}))): run for run in runs}
    for run in settings.values():
        train_config(sweep.config_of(str(ROOT / run.config), run.overrides))
    for checkpoint in checkpoints:
        file = str(ROOT / checkpoint.config)
        supervise_config(sweep.config_of(file, checkpoint.overrides, SuperviseConfig))
    records = ROOT / "docs" / "records" / name
    known = [dataclasses.replace(run, config=str(ROOT / run.config)) for run in runs]
    sweep.check_records(known, records)
    there = {str(file.relative_to(records).with_suffix("")) for file in records.rglob("*.json")}
    assert there <= {run.name for run in runs}


def test_one_run_of_a_sweep_by_itself(monkeypatch: pytest.MonkeyPatch):
    """`--config=configs/sweeps/one.py:FILE:RUN`, read by the parser of the command line: one run
    of each kind of two sweeps."""
    monkeypatch.chdir(ROOT)
    file = "configs/sweeps/ablations.py"
    runs, _ = sweep.load_sweep(file)
    kinds = {(run.config, tuple(sorted(run.overrides))): run for run in runs}
    assert len(kinds) > 5
    for run in kinds.values():
        name = f"configs/sweeps/one.py:{file}:{run.name}"
        overrides, left = cli.split_overrides(["x", f"--config={name}", "--config.seed=99"])
        assert left == ["x", f"--config={name}"]
        config = read_config(name, "run.py")
        for setting, text in overrides:
            set_value(TrainConfig, config, setting, text)
        wanted = sweep.config_of(run.config, run.overrides)
        wanted.seed = 99
        assert config.to_dict() == wanted.to_dict(), run.name
    for which, says in (
        ("", "nothing: expected SWEEP_FILE:RUN"),
        (f"{file}:{runs[0].name}x", f"nearest name is {runs[0].name}"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            sweep.run_config(which)
