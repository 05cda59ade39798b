"""Whole salvages of hand-written rollouts, with models on disk that are certain of what they write:
every id, owner and label is written down here."""

import json

import pytest
from support import salvage_files
from support.fixtures import mesh_of
from support.hand_made import PROBLEM, RIGHT, TOKENIZER, WITH_4, WRONG_1, WRONG_2, WRONG_3
from support.salvage_files import (
    WRITTEN,
    Interrupted,
    logged,
    read_lines,
    settings_of,
    write_models,
    write_rollouts,
)

from scope_jax.salvage.run import salvage
from scope_jax.salvage.settings import Settings

PROMPT = TOKENIZER.encode(PROBLEM.prompt)
FILES = ("mixed.jsonl", "pairs.jsonl", "steps.jsonl", "outcomes.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def run(settings: Settings):
    return salvage(settings, mesh_of("1"))


def written_rows(**more):
    return [logged(text, reward, n, **more) for n, (text, reward, _) in enumerate(WRITTEN)]


def outcomes(out):
    return {line["line"]: line["outcome"] for line in read_lines(out / "outcomes.jsonl")}


def test_every_row_has_its_literal_fate(folder, tmp_path):
    rollouts = write_rollouts(tmp_path / "r.jsonl", written_rows())
    summary = run(settings_of(folder, rollouts, tmp_path / "out"))
    found = read_lines(tmp_path / "out" / "outcomes.jsonl")
    assert [line.get("first_error") for line in found] == [error for _, _, error in WRITTEN]
    assert [line["outcome"] for line in found] == [
        "right",
        *["rescued"] * 3,
        "no_good_step",
        "rescued",
    ]
    assert (summary["rows"], summary["right"], summary["failed"], summary["rescued"]) == (
        6,
        1,
        5,
        4,
    )
    assert summary["not_tried"]["no_good_step"] == 1 and summary["bad_lines"] == 0
    mixed = read_lines(tmp_path / "out" / "mixed.jsonl")
    first, last = mixed[0], mixed[2]
    # The error in the second line: one line kept, one corrected, the policy writes the third.
    assert first["token_ids"] == PROMPT + TOKENIZER.encode(RIGHT) + [0]
    assert first["owners"] == [1] * 7 + [2] * 5 + [3] * 5 + [4] * 5
    assert (first["id"], first["verified"], first["reward"], first["finished"]) == (
        "r1",
        True,
        1.0,
        True,
    )
    assert first["texts"] == {
        "prompt": "+7-9+1=",
        "policy": "+777\n",
        "teacher": "-987\n",
        "tail": "+198",
    }
    assert (first["text"], first["wrong_step"]) == (RIGHT, "-988\n")
    # The error in the last line: the teacher's step ends the solution, and nothing follows.
    assert last["owners"] == [1] * 7 + [2] * 10 + [3] * 5 and last["texts"]["tail"] == ""
    assert read_lines(tmp_path / "out" / "pairs.jsonl")[:2] == [
        {
            "prompt": "+7-9+1=+777\n",
            "chosen": "-987\n",
            "rejected": wrong,
            "id": name,
            "verified": True,
        }
        for name, wrong in (("r1", "-988\n"), ("r2", "-984\n"))
    ]
    labels = read_lines(tmp_path / "out" / "steps.jsonl")
    assert [(x["id"], x["source"], x["completions"], x["labels"]) for x in labels[:2]] == [
        ("r1", "failed", ["+777", "-988"], [True, False]),
        ("r1", "rescued", ["+777", "-987", "+198"], [True] * 3),
    ]
    assert ("r4", "failed", ["+778"], [False]) in [
        (x["id"], x["source"], x["completions"], x["labels"]) for x in labels
    ]
    # In the policy's ids: four steps of the program with two end tokens, two tails.
    assert summary["cost"]["teacher_tokens"] == 4 * 5 and summary["cost"]["tail_tokens"] == 2 * 5
    assert summary["cost_per_usable_row"]["tail_tokens"] == 2.5


def test_a_process_reward_model_and_a_model_as_teacher(folder, tmp_path):
    rollouts = write_rollouts(
        tmp_path / "r.jsonl", [logged(WITH_4, 0, 1), logged(WRONG_2, 0, 2), logged("+774", 0, 3)]
    )
    summary = run(
        settings_of(
            folder,
            rollouts,
            tmp_path / "out",
            localiser="prm",
            prm=str(folder / "prm"),
            teacher=str(folder / "teacher"),
            style="",
        )
    )
    lines = read_lines(tmp_path / "out" / "outcomes.jsonl")
    assert [line["outcome"] for line in lines] == ["rescued", "no_error_found", "no_good_step"]
    # Good steps: the sigmoid of 3; from the first 4 on: next to nothing.
    assert lines[0]["scores"][0] == pytest.approx(0.9526, abs=1e-4)
    assert max(lines[0]["scores"][1:]) < 0.01
    assert summary["cost"]["prm_tokens"] == 3 * 7 + 14 + 14 + 4


def test_without_a_policy_nothing_is_verified(folder, tmp_path):
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(WRONG_2, 0, 1)])
    summary = run(
        settings_of(
            folder, rollouts, tmp_path / "out", policy=None, tokenizer=str(folder / "policy")
        )
    )
    assert (summary["rescued"], summary["unverified"], summary["verified_by"]) == (0, 1, None)
    (row,) = read_lines(tmp_path / "out" / "mixed.jsonl")
    assert (row["verified"], row["reward"], row["finished"]) == (False, None, False)
    assert row["text"] == "+777\n-987\n" and 4 not in row["owners"]
    (pair,) = read_lines(tmp_path / "out" / "pairs.jsonl")
    assert pair["verified"] is False
    assert [x["source"] for x in read_lines(tmp_path / "out" / "steps.jsonl")] == ["failed"]


@pytest.mark.parametrize(
    ("change", "rows", "expected"),
    [
        ({"teacher": "stubborn", "style": ""}, [WITH_4], ["same_step"]),
        ({"policy": "idle"}, [WRONG_2, WRONG_3], ["tail_cut_off", "rescued"]),
        ({"teacher": "idle", "style": ""}, [WRONG_2], ["incomplete_step"]),
        ({"good_steps": 0}, [WRONG_1], ["rescued"]),
        ({"teacher": "reference", "style": ""}, [WRONG_2], ["teacher_no_solution"]),
    ],
)
def test_why_a_row_is_not_rescued(folder, tmp_path, change, rows, expected):
    there = {k: str(folder / v) if v in ("stubborn", "idle") else v for k, v in change.items()}
    rollouts = write_rollouts(
        tmp_path / "r.jsonl", [logged(text, 0, n) for n, text in enumerate(rows)]
    )
    summary = run(settings_of(folder, rollouts, tmp_path / "out", **there))
    assert list(outcomes(tmp_path / "out").values()) == expected
    # Where teacher and localiser contradict each other, nothing is labelled.
    labelled = (tmp_path / "out" / "steps.jsonl").read_text() != ""
    assert labelled == (expected != ["same_step"])
    counted = summary["refused_by_teacher"] | summary["tail_failed"]
    counted |= {"rescued": summary["rescued"]} if summary["rescued"] else {}
    assert counted == {name: 1 for name in expected}


def test_rows_without_a_reward_are_judged_and_bad_lines_counted(folder, tmp_path):
    rows = [
        *[logged(text, None, n) for n, (text, _, _) in enumerate(WRITTEN)],
        "nonsense",
        logged("+777\n" * 9, 0, 7),  # longer than --new-tokens
        logged("seven", 0, 8),  # no tokens for it
        logged(WRONG_2, 0, 9, cut_off=True),
        logged("unused", 0, 10, completion_ids=[900]),
        {"problem": PROBLEM.prompt, "reward": 1, "answer": "98"},
    ]
    rollouts = write_rollouts(tmp_path / "r.jsonl", rows)
    out = tmp_path / "out"
    summary = run(settings_of(folder, rollouts, out, right_steps=True))
    assert list(outcomes(out).values()) == [
        "right",
        *["rescued"] * 3,
        "no_good_step",
        "rescued",
        "bad_line",
        "bad_line",
        "bad_line",
        "cut_off",
        "bad_line",
        "bad_line",
    ]
    reasons = [x["reason"] for x in read_lines(out / "outcomes.jsonl") if "reason" in x]
    assert reasons == [
        "not JSON: Expecting value at column 1",
        "the completion has 46 tokens, more than --new-tokens=16",
        "the completion cannot be written in the tokens of --tokenizer",
        f"a token id of 900, the vocabulary has {len(TOKENIZER)}",
        "field 'completion' is missing",
    ]
    parts = ("bad_lines", "right", "not_judged", "failed")
    assert summary["rows"] == 12 == sum(summary[name] for name in parts)
    reasons = [
        summary[name].values() for name in ("not_tried", "refused_by_teacher", "tail_failed")
    ]
    assert summary["failed"] == sum(map(sum, reasons)) + summary["rescued"]
    first = read_lines(out / "steps.jsonl")[0]
    assert (first["source"], first["completions"]) == ("right", ["+777", "-987", "+198"])


def test_logged_ids_are_kept_as_they_are(folder, tmp_path):
    ids = TOKENIZER.encode(WRONG_2)
    row = {"prompt_ids": PROMPT, "completion_ids": [*ids, 0], "reward": 0, "answer": PROBLEM.answer}
    rollouts = write_rollouts(tmp_path / "r.jsonl", [row])
    run(settings_of(folder, rollouts, tmp_path / "out"))
    (mixed,) = read_lines(tmp_path / "out" / "mixed.jsonl")
    assert mixed["token_ids"][:12] == [*PROMPT, *ids[:5]] and mixed["problem"] == PROBLEM.prompt


def test_a_reward_function_verifies_and_solutions_are_paired(folder, tmp_path):
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(WRONG_2, 0, 1)])
    summary = run(
        settings_of(
            folder,
            rollouts,
            tmp_path / "out",
            verify="support.salvage_files:reward_of",
            pairs="solutions",
        )
    )
    assert (summary["rescued"], summary["verified_by"]) == (1, "support.salvage_files:reward_of")
    (pair,) = read_lines(tmp_path / "out" / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"]) == ("-987\n+198", "-988\n+199")


# ---- stopped, and gone on with


def many_rows():
    texts = [WRONG_2, WITH_4, RIGHT, WRONG_3, WRONG_1, "nonsense"]
    return [
        text if text == "nonsense" else logged(text, float(text == RIGHT), n)
        for n, text in enumerate(texts * 4)
    ]


def test_what_was_ended_in_the_middle_goes_on_with_nothing_lost_or_doubled(
    folder, tmp_path, monkeypatch
):
    rollouts = write_rollouts(tmp_path / "r.jsonl", many_rows())
    teacher = {"teacher": "support.salvage_files:EndsTheProcess", "style": "", "rows": 3}
    monkeypatch.setattr(salvage_files, "CALLS", 0)
    whole = run(settings_of(folder, rollouts, tmp_path / "whole", **teacher))
    monkeypatch.setattr(salvage_files, "CALLS", 0)
    monkeypatch.setattr(salvage_files, "FAILS_AT", 3)
    cut = settings_of(folder, rollouts, tmp_path / "cut", **teacher)
    with pytest.raises(Interrupted):
        run(cut)
    assert 0 < len(read_lines(tmp_path / "cut" / "outcomes.jsonl")) < 24
    with (tmp_path / "cut" / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "hal')  # as a kill leaves it
    again = run(cut)
    for name in FILES:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(outcomes(tmp_path / "cut")) == 24

    def counted(summary):
        return {
            key: value
            for key, value in summary.items()
            if key not in ("cost", "cost_per_usable_row", "out")
        }

    assert counted(again) == counted(whole)
    tokens = [name for name in whole["cost"] if not name.startswith("seconds")]
    assert [again["cost"][name] for name in tokens] == [whole["cost"][name] for name in tokens]
    # Once more: nothing is left to do.
    assert counted(run(cut)) == counted(whole)
    # Other chunks, the same rows.
    run(settings_of(folder, rollouts, tmp_path / "other", **{**teacher, "rows": 5}))
    for name in FILES:
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_file_that_is_still_written_is_gone_on_with(folder, tmp_path, capsys):
    rows = [logged(text, 0, n) for n, text in enumerate((WRONG_2, WRONG_3, WRONG_2))]
    rollouts = write_rollouts(tmp_path / "r.jsonl", rows)
    whole = (tmp_path / "r.jsonl").read_bytes()
    run(settings_of(folder, rollouts, tmp_path / "whole"))
    (tmp_path / "r.jsonl").write_bytes(whole[:-40])
    settings = settings_of(folder, rollouts, tmp_path / "out")
    first = run(settings)
    assert (first["rows"], first["bad_lines"]) == (2, 0)
    assert first["unread_bytes"] == len(whole) // 3 - 40
    assert f"the last {first['unread_bytes']} bytes are not read" in capsys.readouterr().err
    assert run(settings) == first  # nothing is there yet
    (tmp_path / "r.jsonl").write_bytes(whole)
    again = run(settings)
    assert (again["rows"], again["unread_bytes"]) == (3, 0)
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_settings_are_refused_there(folder, tmp_path):
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(RIGHT, 1, 1)])
    run(settings_of(folder, rollouts, tmp_path / "out"))
    before = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    with pytest.raises(ValueError, match="seed: there 0, here 1"):
        run(settings_of(folder, rollouts, tmp_path / "out", seed=1))
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["task"] == "arithmetic"
