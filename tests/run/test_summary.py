"""What lies in a folder and says whether a run is finished, or what came of its metrics."""

import json
import warnings

import pytest

from scope_jax.run.session import (
    TRAINED,
    _archive_orphan_metrics,
    finished_summary,
    read_summary,
    write_summary,
)

WHOLE = {"steps": 3, "updates": 6, "skipped": 0, "final": {"reward/mean": 0.5}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("{", "JSONDecodeError: Expecting property name"),
        ("[" * 99999, "RecursionError"),
        ("\ufffe\x00", "JSONDecodeError"),
        ("[]", "an object is expected"),
        ("null", "an object is expected"),
        ("3", "an object is expected"),
        ("{}", "'steps' of type int is expected"),
        (json.dumps(WHOLE | {"steps": "3"}), "'steps' of type int is expected"),
        (json.dumps(WHOLE | {"steps": None}), "'steps' of type int is expected"),
        (json.dumps(WHOLE | {"skipped": True}), "'skipped' of type int is expected"),
        (json.dumps(WHOLE | {"final": [1]}), "'final' of type dict is expected"),
        (json.dumps(WHOLE)[:-1], "JSONDecodeError"),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_summary_is_named_and_says_nothing_of_the_run(tmp_path, text, reason):
    path = tmp_path / "summary.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"summary\.json: not the summary of a run \(") as caught:
        read_summary(path, TRAINED)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=r"summary\.json: not .*; the run counts as not finished"):
        assert finished_summary(tmp_path, needed=TRAINED) is None


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "summary.json").write_bytes(b"\xff\xfe{}")
    with pytest.warns(UserWarning, match="UnicodeDecodeError"):
        assert finished_summary(tmp_path) is None


def test_a_whole_summary_is_taken_as_it_is(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert finished_summary(tmp_path) is None  # none there
        write_summary(tmp_path, WHOLE | {"loss": float("nan")})
        assert finished_summary(tmp_path) == WHOLE | {"loss": None}
        assert finished_summary(tmp_path, lambda: False) is None
        write_summary(tmp_path, {"kind": "policy"})
        assert finished_summary(tmp_path, needed={"kind": str}) == {"kind": "policy"}


def test_metrics_of_each_loss_are_put_aside_under_a_name_of_their_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    names = ["metrics_before.jsonl", "metrics_before_2.jsonl", "metrics_before_3.jsonl"]
    for number, name in enumerate(names):
        lines = f'{{"step": 0, "of": {number}}}\n{{"step": 1}}\n'
        path.write_text(lines)
        with pytest.warns(UserWarning, match=f"2 steps were done and .* metrics are in {name}"):
            _archive_orphan_metrics(tmp_path, 2)
        assert not path.exists() and (tmp_path / name).read_text() == lines
    assert [json.loads((tmp_path / name).open().readline())["of"] for name in names] == [0, 1, 2]
    # Before the first checkpoint nothing is lost; a line that is there twice is one step.
    path.write_text('{"step": 0}\n{"step": 0}\n')
    _archive_orphan_metrics(tmp_path, 2)
    assert path.exists() and len(list(tmp_path.iterdir())) == 4
