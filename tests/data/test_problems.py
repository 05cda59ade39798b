import json

import numpy as np
import pytest

from scope_jax.data.problems import Problems, batch_indices
from scope_jax.data.sources import read_file, read_tfds
from scope_jax.tasks.domain import Problem


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_jsonl_with_other_field_names(tmp_path):
    rows = [
        {"question": "1+1?", "solution": 2, "level": "Level 3", "key": "a"},
        {"question": "1+2?", "solution": "3", "level": "Level 5"},
        {"question": "1+3?", "solution": "4", "level": "Level 1"},
    ]
    path = write(
        tmp_path / "train.jsonl",
        ["\ufeff" + json.dumps(rows[0]), "", json.dumps(rows[1]), json.dumps(rows[2])],
    )
    fields = {"prompt": "question", "answer": "solution", "id": "key"}
    problems = read_file(path, fields=fields, where={"level": ["Level 3", "Level 5"]})
    assert list(problems) == [Problem("a", "1+1?", "2"), Problem("train-3", "1+2?", "3")]
    assert (
        problems.skipped == 0
        and problems[-1].id == "train-3"
        and [p.id for p in problems[:1]] == ["a"]
    )
    with pytest.raises(IndexError, match="index 2 of 2"):
        problems[2]


def test_malformed_lines_are_named_skipped_and_counted(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"prompt": "p", "answer": "a"})
    lines = [
        good,
        "{broken",
        "[1]",
        '{"prompt": "p"}',
        '{"prompt": " ", "answer": "a"}',
        '{"prompt": 1, "answer": [2, 3]}',
    ]
    path.write_bytes(
        "\n".join(lines).encode() + b'\n{"prompt": "\xff", "answer": "a"}\n' + good.encode()
    )
    with pytest.warns(UserWarning) as caught:
        problems = read_file(path)
    messages = [str(w.message).split("bad.jsonl: ")[1] for w in caught]
    assert messages == [
        "line 2: not JSON: Expecting property name enclosed in double quotes at column 2; skipped",
        "line 3: expected an object, found list; skipped",
        "line 4: no field 'answer' (it has prompt); skipped",
        "line 5: field 'prompt' is empty; skipped",
        "line 6: field 'answer': expected text, found list; skipped",
        "line 7: not UTF-8 at byte 12; skipped",
    ]
    assert [p.id for p in problems] == ["bad-1", "bad-8"] and problems.skipped == 6
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"line 4: no field 'answer' .*; more than 2 malformed"),
    ):
        read_file(path, max_malformed=2)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl: no such file"):
        read_file(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match=r"unknown kind of file: expected \.parquet, \.jsonl"):
        read_file(write(tmp_path / "a.csv", ["x"]))
    with pytest.raises(ValueError, match="no problem in it"):
        read_file(write(tmp_path / "empty.jsonl", [""]))
    row = json.dumps({"id": "same", "prompt": "p", "answer": "a"})
    with pytest.raises(
        ValueError, match=r"line 2: id 'same' is that of another problem at .*: line"
    ):
        read_file(write(tmp_path / "twice.jsonl", [row, row.replace('"a"', '"b"')]))
    with pytest.raises(ValueError, match="fields names 'question'"):
        read_file(write(tmp_path / "one.jsonl", [row]), fields={"question": "prompt"})
    with pytest.raises(FileNotFoundError, match=r"dataset_info\.json"):
        read_tfds(tmp_path)


def test_parquet(tmp_path):
    import pyarrow.parquet

    table = pyarrow.table({"problem": ["1+1", None, "2+2"], "answer": ["2", "3", "4"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match="line 2: no field 'problem'"):
        problems = read_file(tmp_path / "x.parquet", fields={"prompt": "problem"})
    assert list(problems) == [Problem("x-1", "1+1", "2"), Problem("x-3", "2+2", "4")]
    with pytest.raises(ValueError, match="not a parquet file"):
        read_file(write(tmp_path / "y.parquet", ["not parquet at all"]))


def test_every_epoch_is_a_whole_permutation_of_its_own():
    size, batch = 10, 4
    order = np.concatenate(
        [batch_indices(7, position, batch, size) for position in range(0, 40, batch)]
    )
    epochs = order.reshape(4, size)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(size))] * 4
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert (batch_indices(8, 0, 40, size) != order).any()
    assert (
        batch_indices(7, 0, 40, size).tolist() == order.tolist()
    )  # the batch size does not matter
    assert batch_indices(7, 0, 10, 10).tolist() == [
        8,
        4,
        3,
        6,
        2,
        1,
        0,
        5,
        9,
        7,
    ]  # written down: stays for ever


def test_resuming_repeats_and_skips_nothing():
    whole = [batch_indices(0, p, 6, 17).tolist() for p in range(0, 60, 6)]
    position, seen = 0, []
    while position < 60:  # "killed" after every batch: only the position survives
        seen.append(batch_indices(0, position, 6, 17).tolist())
        position += 6
    assert seen == whole
    assert batch_indices(0, 16, 3, 17).tolist() == [
        batch_indices(0, 0, 17, 17)[16],
        *batch_indices(0, 17, 2, 17),
    ]
    assert len(batch_indices(0, 5, 8, 3)) == 8  # more than one epoch in one batch


def test_batch_indices_refuses_nothing_to_draw_from():
    with pytest.raises(ValueError, match="size 0"):
        batch_indices(0, 0, 4, 0)


def test_drawing_is_taking_the_batch_indices():
    problems = Problems.from_list([Problem(str(n), "p", "a") for n in range(7)])
    assert [p.id for p in problems.draw(3, 5, 9)] == [str(i) for i in batch_indices(3, 5, 9, 7)]
