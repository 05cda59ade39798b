"""Records and summaries that are cut, or are no records: one line with the file's name."""

import json
from pathlib import Path

import pytest

from scope_jax import sweep
from scope_jax.report.run_page import write_run_report
from scope_jax.sweep import slices
from scope_jax.sweep.__main__ import main
from scope_jax.sweep.records import read_records

RUN = sweep.Run("a/b", "configs/run.py:grpo,arithmetic", {"seed": 7}, {"method": "grpo"})
CUT = ["", "{", "{}", "[]", "null", "3", '"text"', "[" * 99999, '{"name": "a/b"', "\0"]


def summary_and_metrics(folder: Path, steps: list[int], summary: str) -> None:
    folder.mkdir(exist_ok=True)
    lines = [{"step": step, "time/total": 1.0, "reward/mean": 0.5} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(summary)


@pytest.mark.parametrize("name", ["b.json", "b.failed.json"])
@pytest.mark.parametrize(
    "text", [*CUT, '{"name": "a/b", "settings": null, "reason": null}'], ids=range(11)
)
def test_a_cut_record_is_no_finished_run(tmp_path: Path, name: str, text: str):
    path = tmp_path / "a" / name
    path.parent.mkdir()
    path.write_text(text)
    for check in (
        lambda: sweep.check_records([RUN], tmp_path),
        lambda: sweep.work([RUN], tmp_path / "work", tmp_path),
    ):
        with pytest.raises(ValueError, match=r"not a whole record \(.*; delete it, and") as caught:
            check()
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert path.read_text() == text and not (tmp_path / "work").exists()


def test_the_command_line_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, records = tmp_path / "s.py", tmp_path / "records"
    body = f"Run({RUN.name!r}, {RUN.config!r}, {RUN.overrides!r}, {RUN.labels!r})"
    file.write_text(f"from scope_jax.sweep import Run\nsweep = lambda: [{body}]\n")
    sweep.write_failure(records, RUN, "it gave up")
    command = [f"--sweep={file}", f"--workdir={tmp_path}", f"--records={records}", "--list"]
    assert main(command) == 0 and capsys.readouterr().out == "failed  a/b\n"
    (records / "a" / "b.failed.json").write_text('{"labels": {"met')
    assert main(command) == 2
    assert slices.main(["plan", f"--sweep={file}", f"--records={records}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith(f"error: {records}/a/b.failed.json: not a whole record (JSONDecode")


WHOLE = {"steps": 2, "updates": 2, "skipped": 0, "device": "8 x TPU"}


def test_a_run_without_a_whole_summary_has_no_record(tmp_path: Path):
    for text in [*CUT, json.dumps({"steps": 2}), json.dumps(WHOLE | {"updates": "2"})]:
        summary_and_metrics(tmp_path / "run", [0, 1], text)
        with pytest.raises(ValueError, match=r"run/summary\.json: not the summary of a run \("):
            slices.record(RUN, tmp_path / "run", tmp_path / "records")
    assert not (tmp_path / "records").exists()
    summary_and_metrics(tmp_path / "run", [0, 1], json.dumps(WHOLE))
    slices.record(RUN, tmp_path / "run", tmp_path / "records")
    sweep.check_records([RUN], tmp_path / "records")


@pytest.mark.parametrize("steps", [[], [0], [1], [0, 2], [1, 0], [0, 0], [0, 1, 2]])
def test_a_run_without_a_line_for_each_step_has_no_record(tmp_path: Path, steps: list[int]):
    summary_and_metrics(tmp_path / "run", steps, json.dumps(WHOLE))
    with pytest.raises(ValueError, match=f"a/b: {len(steps)} lines of metrics of 2 steps"):
        slices.record(RUN, tmp_path / "run", tmp_path / "records")


def test_a_report_names_a_summary_that_cannot_be_read(tmp_path: Path):
    for text in CUT:
        if text == "{}":
            continue  # an object, of no figures
        summary_and_metrics(tmp_path, [0, 1], text)
        page = write_run_report(tmp_path).read_text()
        assert "summary.json: not the summary of a run (" in page and ">Reward<" in page


def test_records_of_another_kind_of_sweep_are_named(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "labels": {"method": "grpo"}}))
    assert len(read_records(tmp_path)[0]) == 1
    with pytest.raises(ValueError, match=r"a\.json: its run has no label 'domain', 'switches'"):
        read_records(tmp_path, ("method", "domain", "switches"))
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "labels": "grpo"}))
    with pytest.raises(ValueError, match=r"not a record of scope_jax\.sweep"):
        read_records(tmp_path)
