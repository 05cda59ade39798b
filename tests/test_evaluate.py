"""Suites end to end with a tiny model: records, resuming after a kill, independence from
devices and batching."""

import dataclasses
import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fixtures import TINY, make_params
from support.prm_fixtures import write_checkpoint
from support.suite_files import jsonl, write_all
from support.tiny_runs import ROOT, environment, run_program

from scope_jax import evaluate, evaluate_prm, evaluate_suites, models
from scope_jax.configuration.files import read_config
from scope_jax.evaluation import Settings, settings_for, step_weights
from scope_jax.evaluation.suite import file_stem
from scope_jax.fit import command as fit
from scope_jax.prm import ProcessRewardModel
from scope_jax.run import failures
from scope_jax.text import character_tokenizer

# `hold` waits where the file named by HOLD exists: a run stops there until it is killed.
MINE = """
import os, time

def early(fields, completion):
    while fields["id"] == "w-5" and os.path.exists(os.environ.get("HOLD", "")):
        time.sleep(0.1)
    return completion[:1].lower() < "h"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, data and a user's function."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = character_tokenizer(
        string.ascii_letters + string.digits + string.punctuation + " \n"
    )
    config = dataclasses.replace(TINY, vocab_size=len(tokenizer), max_positions=400, end_ids=(0,))
    models.save(folder / "model", config, make_params(config, 5), tokenizer)
    write_all(folder / "data")
    jsonl(
        folder / "data/words.jsonl",
        [{"id": f"w-{n}", "prompt": "ab" * (n % 3 + 1) + str(n), "answer": "x"} for n in range(10)],
    )
    (folder / "early_grader.py").write_text(MINE)
    return folder


@pytest.fixture(autouse=True)
def found(place, monkeypatch):
    monkeypatch.syspath_prepend(place)


def arguments(place: Path, workdir: Path, suites: str = "words", **more) -> list[str]:
    """Flags of an evaluation of `words` by the user's function, `more` put over them."""
    flags = {
        "suites": suites,
        "model": place / "model",
        "data": place / "data",
        "workdir": workdir,
        "dtype": "float32",
        "samples": 2,
        "new-tokens": 12,
        "temperature": 1.0,
        "template": "{problem}=",
        "grader": "early_grader:early",
        "rows": 8,
        "seats": 100,
    } | more
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


def run(place: Path, workdir: Path, **more) -> list[dict]:
    """`main` in this process, on its 8 devices; the records."""
    table = evaluate_suites.main(arguments(place, workdir, **more))
    assert table == (workdir / "suites.md").read_text()
    return json.loads((workdir / "suites.json").read_text())


def texts(workdir: Path) -> dict[str, list[str]]:
    lines = [
        json.loads(line)
        for path in (workdir / "samples").glob("words-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return {result["id"]: result["texts"] for line in lines for result in line["results"]}


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """An evaluation that nobody stopped: (workdir, record)."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        return workdir, run(place, workdir)[0]


def test_what_is_written(place, whole):
    workdir, record = whole
    written = texts(workdir)
    assert list(written) == [f"w-{n}" for n in range(10)] and all(
        len(t) == 2 for t in written.values()
    )
    scores = [float(text[:1].lower() < "h") for row in written.values() for text in row]
    result = record["result"]
    assert 0 < result["avg@2"] < 1 and result["avg@2"] == pytest.approx(sum(scores) / 20)
    assert result["pass@2"] == pytest.approx(
        sum(max(scores[2 * n : 2 * n + 2]) for n in range(10)) / 10
    )
    assert result["unscored"] == 0 and record["verdicts"] == {"judged": 20}
    assert (
        record["problems"],
        record["dropped"],
        record["skipped"],
        record["published_problems"],
    ) == (10, 0, 0, None)
    made_by = record["made_by"]
    assert (
        made_by["grader"] == {"name": "early_grader:early", "seconds": 5.0}
        and made_by["template"] == "{problem}="
    )
    assert {
        k: made_by[k]
        for k in ("samples", "temperature", "top_p", "top_k", "new_tokens", "seed", "dtype")
    } == {
        "samples": 2,
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": None,
        "new_tokens": 12,
        "seed": 0,
        "dtype": "float32",
    }
    assert all(
        len(made_by[k]) == 64 for k in ("model_sha256", "data_sha256", "chat_template_sha256")
    )
    assert (workdir / "suites.md").read_text().splitlines()[2].startswith("| words | 10 | 1 | 2 | ")


def test_a_killed_evaluation_goes_on_to_the_same_numbers_on_another_number_of_devices(
    place, whole, tmp_path
):
    workdir, record = whole
    hold = tmp_path / "hold"
    hold.touch()
    program = [
        sys.executable,
        "-m",
        "scope_jax.evaluate_suites",
        *arguments(place, tmp_path / "out"),
    ]
    env = environment(tmp_path)
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(place)])
    process = subprocess.Popen(
        program,
        env={**env, "HOLD": str(hold)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 200
        samples = tmp_path / "out" / "samples"
        while not (files := [path for path in samples.glob("*.jsonl") if path.stat().st_size]):
            assert process.poll() is None, process.stderr.read().decode()[-2000:]
            assert time.monotonic() < deadline, "no chunk was written"
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    hold.unlink()
    before = files[0].read_bytes()
    assert before.count(b"\n") == 1 and not (tmp_path / "out" / "suites.json").exists()
    with files[0].open("ab") as file:
        file.write(b'{"key": "torn')  # what a kill within a write leaves
    done = subprocess.run(program, env=env, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert files[0].read_bytes().startswith(before) and list(samples.iterdir()) == files
    # One device there, eight here: every text is the same, and so are the figures.
    assert texts(tmp_path / "out") == texts(workdir)
    again = json.loads((tmp_path / "out" / "suites.json").read_text())[0]
    assert (
        again["result"] == record["result"]
        and again["key"] == record["key"]
        and again["made_by"] == record["made_by"]
    )
    assert again["verdicts"] == {"judged": 12}  # the first chunk was not judged again
    assert done.stdout == (workdir / "suites.md").read_text()


def test_tokens_depend_on_problem_and_sample_only(place, whole, tmp_path):
    """Not on how many samples there are, on chunks, on seats, or on a limit."""
    written = texts(whole[0])
    run(place, tmp_path / "a", samples=3, rows=100, seats=4, limit=4)
    more = texts(tmp_path / "a")
    assert list(more) == ["w-0", "w-1", "w-2", "w-3"]
    assert {name: row[:2] for name, row in more.items()} == {name: written[name] for name in more}
    assert len({text for row in more.values() for text in row}) == 12
    # The limit is lifted in the same workdir: the four are kept, the others follow.
    record = run(place, tmp_path / "a", samples=3, rows=100, seats=4, limit=7)[0]
    assert record["problems"] == 7 and record["verdicts"] == {"judged": 9}
    # Other settings in the same workdir: a record beside the first one, which stays as it is.
    both = run(place, tmp_path / "a", seed=1, limit=2)
    assert [record["made_by"]["seed"] for record in both] == [0, 1] and both[0] == record
    assert len((tmp_path / "a" / "suites.md").read_text().splitlines()) == 4
    (seeded,) = [
        path for path in (tmp_path / "a" / "samples").iterdir() if both[1]["key"] in path.name
    ]
    assert json.loads(seeded.read_text().splitlines()[0])["results"][0]["texts"] != written["w-0"]


def test_folders_of_ones_own_are_evaluated_into_the_workdir(place, tmp_path):
    """By path, absolute or not, two of the same last name beside each other."""
    rows = [{"prompt": f"ab{n}", "answer": "x"} for n in range(2)]
    own = [tmp_path / "elsewhere/own", tmp_path / "own"]
    for folder in own:
        jsonl(folder / "test.jsonl", rows)
    near = os.path.relpath(own[1], place / "data")
    names = [str(own[0]), near]
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    workdir = tmp_path / "not/there/yet"
    records = run(place, workdir, suites=f"{own[0]}/,{near},{own[0]}")
    assert [record["suite"] for record in records] == names
    assert [record["problems"] for record in records] == [2, 2]
    written = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    samples = [path for path in written if path.parent == workdir / "samples"]
    assert len(samples) == 2 and all("own-" in path.name for path in samples)
    tables = [workdir / "suites.json", workdir / "suites.md"]
    assert set(written) == {*before, *samples, *tables}
    stamps = [path.stat().st_mtime_ns for path in samples]
    again = run(place, workdir, suites=",".join(names))  # goes on: nothing is done again
    assert [r["result"] for r in again] == [r["result"] for r in records]
    assert stamps == [path.stat().st_mtime_ns for path in samples]


def test_names_of_suites_in_names_of_files():
    plain = ["aime24", "my suite", "Own_2.v1", "größe"]
    assert [file_stem(name) for name in plain] == plain
    paths = [
        *("/data/own", "/other/own", "../own", "../../own", "a/b", "a_b/c", "a/b_c"),
        *("..", ".", ".own", "/", "x" * 201, "/" + "y" * 300, "é/" * 90, "a\nb/c"),
    ]
    stems = [file_stem(name) for name in paths]
    assert len(set(stems)) == len(paths)
    for stem in stems:
        assert re.fullmatch(r"[\w.-]+-[0-9a-f]{8}", stem) and stem[0] not in ".-"
        assert len(stem.encode()) <= 200
    assert stems[0].startswith("data_own-") and stems[2].startswith("own-")


def test_a_workdir_that_cannot_be_written_shows_before_the_model_is_read(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr(models, "load", lambda *args, **kwargs: pytest.fail("it was read"))
    (tmp_path / "file").write_text("")
    (tmp_path / "table/suites.md").mkdir(parents=True)
    (tmp_path / "records/suites.json").mkdir(parents=True)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/samples").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "nowhere")
    for name, says in (
        ("file", "file: file exists"),
        ("file/below", "file/below: not a directory"),
        ("table", "table/suites.md: is a directory"),
        ("records", "records/suites.json: is a directory"),
        ("samples", "samples/samples: file exists"),
        ("nowhere/below", "nowhere"),
    ):
        with pytest.raises(OSError, match=re.escape(str(tmp_path))) as caught:
            evaluate_suites.main(arguments(place, tmp_path / name))
        line, code = failures.ending(caught.value)
        assert line is not None and f"error: {tmp_path}/{says}" in line and code == 2


def test_other_programs_try_their_place_too(tmp_path):
    (tmp_path / "file").write_text("")
    item = {"id": "a", "problem": "p", "steps": ["x"], "label": -1, "final_answer_correct": True}
    (tmp_path / "gsm8k.json").write_text(json.dumps([item | {"generator": "g"}]))
    data = [f"--data={tmp_path / 'gsm8k.json'}", "--model=nowhere"]
    with pytest.raises(FileExistsError, match="file"):
        evaluate_prm.main([*data, f"--json={tmp_path / 'file/record.json'}"])
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        evaluate_prm.main([*data, f"--json={tmp_path}"])
    config = read_config("grpo,arithmetic", "run.py")
    with pytest.raises(FileExistsError, match="file"):
        evaluate.command(config, str(tmp_path / "file"), SimpleNamespace(model="nowhere"))
    topology = SimpleNamespace(topology="v5e:2x4")
    with pytest.raises(FileExistsError, match="file"):
        fit.command(config, str(tmp_path / "file"), topology)


def test_graders_and_settings_of_each_suite(place, tmp_path):
    more = {
        "samples": None,
        "grader": None,
        "template": None,
        "limit": 2,
        "override": "aime24.samples=2",
    }
    math, letters = run(place, tmp_path, suites="aime24,arc_c", **more)
    assert (math["title"], math["samples"], letters["samples"], letters["published_problems"]) == (
        "AIME24",
        2,
        1,
        1172,
    )
    assert math["made_by"]["grader"]["name"] == "math" and math["made_by"]["grader"]["rules"] == 2
    assert letters["made_by"]["grader"] == {"name": "choice", "rules": 2}
    assert "letter of your choice" in letters["made_by"]["template"] and math["verdicts"] == {
        "judged": 4
    }
    assert math["result"]["avg@2"] == 0 and math["result"]["truncated_share"] > 0
    assert len((tmp_path / "suites.md").read_text().splitlines()) == 4


def test_records_of_an_earlier_version_are_gone_on_with(place, whole, tmp_path):
    """It called a suite a benchmark. Nothing that it did is done again, and its file stays."""
    _, record = whole
    old = dict(record, benchmark=record["suite"], key="0" * 16)
    del old["suite"]
    before = json.dumps([old])
    (tmp_path / "benchmarks.json").write_text(before)
    shutil.copytree(whole[0] / "samples", tmp_path / "samples")
    records = run(place, tmp_path)
    assert [r["key"] for r in records] == [old["key"], record["key"]]
    assert [r["suite"] for r in records] == ["words", "words"] and "benchmark" not in records[0]
    assert records[1]["result"] == record["result"] and records[1]["verdicts"] == {}
    assert (tmp_path / "benchmarks.json").read_text() == before
    assert run(place, tmp_path) == records  # from the new file


def test_records_that_cannot_be_read_are_one_line(place, tmp_path):
    (tmp_path / "benchmarks.json").write_text('[{"key": "x"}]')
    with pytest.raises(
        ValueError, match=r"^[^\n]*benchmarks.json: no records of suites \(KeyError\)[^\n]*\Z"
    ):
        run(place, tmp_path)


def test_a_prm_chooses_and_votes(place, whole, tmp_path):
    write_checkpoint("qwen", tmp_path / "prm")
    record = run(place, tmp_path / "out", prm=tmp_path / "prm", **{"prm-aggregate": "min"})[0]
    assert texts(tmp_path / "out") == texts(whole[0]) and record["key"] != whole[1]["key"]
    assert record["made_by"]["prm"] | {"sha256": ""} == {
        "sha256": "",
        "format": "qwen",
        "aggregate": "min",
    }
    prm = ProcessRewardModel.load(tmp_path / "prm")
    right = []
    for n in range(10):
        pair = texts(whole[0])[f"w-{n}"]
        score, valid, _ = prm.score(
            ["ab" * (n % 3 + 1) + str(n)] * 2, [text.split("\n\n") for text in pair]
        )
        weight = [score[i][valid[i]].min() if valid[i].any() else 0.0 for i in range(2)]
        right.append(pair[int(weight[1] > weight[0])][:1].lower() < "h")
    assert record["result"]["bon@2"] == pytest.approx(sum(right) / 10)
    assert record["result"]["vote@2"] == 0.0  # no text has a box, so nobody votes
    assert "| bon@n | vote@n |" in (tmp_path / "out" / "suites.md").read_text()

    two, none = step_weights(prm, ["1+1?", "1+1?"], ["One.\n\nTwo.\n\n", "\n\n"], "product")
    score, _, _ = prm.score(["1+1?"], [["One.", "Two."]])
    assert two == pytest.approx(float(score[0, 0]) * float(score[0, 1])) and none is None


# ---- settings and errors


def test_settings_are_the_fields_then_the_flags_then_the_overrides():
    assert settings_for("aime24", {}) == Settings(
        samples=32, temperature=0.6, top_p=0.95, new_tokens=8192
    )
    assert settings_for("math500", {}).samples == 1
    names = ["aime24", "math500"]
    overrides = ["aime24.samples=4", "aime24.temperature=0.7", "math500.grader=exact"]
    assert settings_for("aime24", {"samples": 8, "seed": 3}, overrides, names) == Settings(
        samples=4, temperature=0.7, seed=3
    )
    assert settings_for("math500", {"samples": 8}, overrides, names) == Settings(
        samples=8, grader="exact"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"suites": "wrds"}, "wrds: no such folder: put the published files of wrds there"),
        ({"suites": ","}, "--suites names no suite"),
        ({"suites": "w\udce9"}, r"--suites: 'w\udce9' has a character that cannot be printed"),
        ({"override": "words.sample=2"}, "unknown key 'sample'; the nearest known one is samples"),
        ({"override": "aime24.samples=2"}, "'aime24' is not among --suites=words"),
        ({"override": "samples=2"}, "expected suite.key=value"),
        ({"override": "words.samples=two"}, "'two' is not of type int"),
        ({"samples": 0}, "samples 0: expected 1 to 4096"),
        ({"temperature": 0}, "2 samples at temperature 0 are all alike"),
        ({"top-p": 0}, "top_p 0.0 must be in"),
        ({"grader": "mathematics"}, "grader 'mathematics' is unknown"),
        ({"grader": "no_such_module:f"}, "ModuleNotFoundError: No module named 'no_such_module'"),
        ({"template": "Solve."}, "expected the place {problem}"),
        ({"prompt-tokens": 2}, "all 10 prompts are longer than prompt_tokens = 2"),
        ({"model": "nowhere"}, "nowhere: no such model directory"),
        (
            {"prm-aggregate": "best"},
            "--prm_aggregate=best: value should be one of <min|product|last|mean>",
        ),
        ({"sampels": 2}, "Unknown command line flag 'sampels'. Did you mean: samples ?"),
        ({"data": None}, "--data is missing: directory with one folder per suite"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line(place, tmp_path, more, message):
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError)) as caught:
        evaluate_suites.main(arguments(place, tmp_path / "out", **more))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "suites.json").exists()


def test_the_command_line_says_one_line_and_ends_with_2(place, tmp_path):
    program = [
        sys.executable,
        "-m",
        "scope_jax.evaluate_suites",
        *arguments(place, tmp_path / "out", suites="wrds"),
    ]
    done = run_program(program, tmp_path, code=2)
    assert (
        done.stdout == ""
        and done.stderr.splitlines()[-1].startswith("error: ")
        and "Traceback" not in done.stderr
    )


def test_prompts_that_are_too_long_are_left_out_and_counted_and_positions_limit_the_tokens(
    place, tmp_path, capsys
):
    record = run(
        place, tmp_path, **{"prompt-tokens": 6, "new-tokens": 1000, "samples": 1, "temperature": 0}
    )[0]
    assert record["dropped"] == 3 and record["problems"] == 7  # "abababN=" has 8 tokens, "ababN=" 6
    assert (
        record["made_by"]["new_tokens"] == 394
        and "394 new tokens at most" in capsys.readouterr().err
    )
