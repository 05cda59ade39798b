"""What fields of data sets hold: numbers become exact text; what is no text is malformed."""

import datetime
import decimal
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest

from scope_jax.data.fields import answer_text, id_text, number_text, text_of
from scope_jax.data.processbench import load_processbench
from scope_jax.data.sources import Source, _plain, read_file, read_source
from scope_jax.data.suites import read_suite
from scope_jax.tasks.visible import is_visible

HALF = r"half of a character \(\\ud83d\) at 14"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (5, "5"),
        (5.0, "5"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (-2.50, "-2.5"),
        (1e16, "10000000000000000"),
        (1.5e22, "15000000000000000000000"),
        (1e-05, "0.00001"),
        (-1.25e-7, "-0.000000125"),
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        (5e-324, "0." + "0" * 323 + "5"),
        (10**30, "1" + "0" * 30),
        (decimal.Decimal("2.50"), "2.5"),
        (decimal.Decimal("1E+3"), "1000"),
    ],
)
def test_numbers_as_text(number, text):
    assert number_text(number) == text_of(number, "x") == text
    assert float(text) == float(number)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, decimal.Decimal("NaN")])
def test_what_is_no_number(number):
    with pytest.raises(ValueError, match=r"the answer: .* is no number: expected text or a number"):
        text_of(number, "the answer")


@pytest.mark.parametrize("value", [None, True, [], {"a": 1}, b"4"])
def test_what_is_no_text(value):
    with pytest.raises(ValueError, match="field 'a': expected text, found"):
        text_of(value, "field 'a'")


def test_texts_that_no_tokenizer_can_encode():
    assert text_of("an emoji \U0001f600", "x") == "an emoji \U0001f600"
    for text in ("\ud83d", "a\udc00b", "\udc00\ud800"):
        with pytest.raises(ValueError, match="x: half of a character"):
            text_of(text, "x")
    for text in ("nan", " NaN "):
        with pytest.raises(ValueError, match="stands for a missing value"):
            answer_text(text, "x")
    assert text_of("nan", "x") == "nan" and answer_text("\\text{banana}", "x") == "\\text{banana}"


@pytest.mark.parametrize("text", ["nan", "NaN", "NAN", "NaT", "<NA>", "null", "NULL", "None"])
@pytest.mark.parametrize(
    "around", ["%s", "%s.", "$%s$", "\\boxed{%s}", "$\\boxed{ %s }$.", "\\(%s\\)", "$$ %s $$"]
)
def test_what_stands_for_a_missing_value(text, around):
    with pytest.raises(ValueError, match=r"x: .* stands for a missing value: expected an answer"):
        answer_text(around % text, "x")


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "NaNO_3",
        "Nancy",
        "no",
        "0",
        "\\text{None of these}",
        "null set",
        "N",
        "x = NaN",
        ".5",
    ],
)
def test_answers_that_look_like_a_missing_value(text):
    assert answer_text(text, "x") == text


@pytest.mark.parametrize(
    "text",
    ["", " ", "\u200b", "\ufeff", "\u0000", "\u2060\n\u00ad", "\u3164", "\u2800", "\U000e0041"],
)
def test_texts_that_show_nothing(text):
    assert not is_visible(text) and is_visible(f"{text}\u65e5") and is_visible(f"-{text}")
    for reads in (text_of, answer_text):
        with pytest.raises(ValueError, match="x is empty"):
            reads(text, "x")
    assert id_text(text, "x", "a-1") == "a-1"


@pytest.mark.parametrize("text", ["$$", "\\boxed{}", " . ", "$\\boxed{\u200b}$"])
def test_marks_around_nothing(text):
    with pytest.raises(ValueError, match=r"x: .* holds no answer"):
        answer_text(text, "x")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "half an emoji \ud83d, 2+2?", "answer": "4"}, f"field 'prompt': {HALF}"),
        ({"prompt": "p", "answer": "\ud83d"}, "field 'answer': half"),
        ({"prompt": "p", "answer": "4", "solution": "so \udc00"}, "field 'solution': half"),
        ({"prompt": "p", "answer": "4", "id": "\ud83d"}, "field 'id': half"),
        (
            {"prompt": [{"role": "user", "content": "half an emoji \ud83d"}], "answer": 4},
            f"field 'prompt': {HALF}",
        ),
        ({"prompt": "p", "answer": math.nan}, "field 'answer': nan is no number"),
        ({"prompt": "p", "answer": [math.nan]}, "field 'answer': nan is no number"),
        ({"prompt": "p", "answer": -math.inf}, "field 'answer': -inf is no number"),
        ({"prompt": math.nan, "answer": 4}, "field 'prompt': nan is no number"),
        ({"prompt": "p", "answer": "NaN"}, "stands for a missing value"),
        ({"prompt": "p", "answer": "$\\boxed{NaN}$."}, "stands for a missing value"),
        ({"prompt": "p\u200b", "answer": "\ufeff"}, "field 'answer' is empty"),
        ({"prompt": "\u200b\u2060 ", "answer": "4"}, "field 'prompt' is empty"),
    ],
)
def test_a_malformed_row_is_counted_with_file_and_line(tmp_path, row, reason):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"prompt": "2+2?", "answer": 4})
    path.write_text("\n".join([good, json.dumps(row), good]))
    with pytest.warns(UserWarning, match=rf"a\.jsonl: line 2: .*{reason}") as caught:
        problems = read_file(path)
    assert len(caught) == 1 and problems.skipped == 1
    assert [(p.id, p.answer) for p in problems] == [("a-1", "4"), ("a-3", "4")]


def test_missing_numbers_of_parquet(tmp_path):
    """A column of numbers with gaps: nulls, or NaN as pandas writes them; ids become 3.0."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "id": pyarrow.array([1.0, math.nan, 3.0, 4.0], pyarrow.float64()),
            "prompt": ["a", "b", "c", "d"],
            "answer": pyarrow.array([0.5, 2.0, math.nan, None], pyarrow.float64()),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match=r"a\.parquet: line [34]: ") as caught:
        problems = read_file(tmp_path / "a.parquet")
    assert [str(w.message).split("line ")[1] for w in caught] == [
        "3: field 'answer': nan is no number: expected text or a number; skipped",
        "4: no field 'answer'; skipped",
    ]
    assert [(p.id, p.answer) for p in problems] == [("1", "0.5"), ("a-2", "2")]
    assert problems.skipped == 2


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("nested", [False, True])
def test_numbers_of_few_bits_have_their_own_digits(tmp_path, kind, nested):
    import pyarrow
    import pyarrow.parquet

    own = getattr(pyarrow, kind)()
    answers: Any = pyarrow.array([1.1, 0.3, 2.0, None], own)
    if nested:
        lists = [[1.1], [0.3], [2.0], [None]]
        answers = pyarrow.array(
            [{"values": values} for values in lists],
            pyarrow.struct([("values", pyarrow.list_(own))]),
        )
    table = pyarrow.table({"prompt": ["a", "b", "c", "d"], "answer": answers})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    fields = {"answer": "answer.values.0"} if nested else {}
    with pytest.warns(UserWarning, match="line 4: no field"):
        problems = read_file(tmp_path / "a.parquet", fields=fields)
    assert [p.answer for p in problems] == ["1.1", "0.3", "2"]


def test_numbers_of_numpy_in_records():
    record = {
        "a": np.float32(1.1),
        "b": np.array([[0.1, np.nan]], np.float32),
        "c": np.float64(1.1),
    }
    plain = _plain(record)
    assert plain["a"] == plain["c"] == 1.1
    assert plain["b"][0][0] == 0.1 and math.isnan(plain["b"][0][1])


def test_columns_that_nobody_reads_may_hold_anything(tmp_path):
    import pyarrow
    import pyarrow.parquet

    bad = pyarrow.array([b"fine", b"\xff\xfe"]).cast(pyarrow.string(), safe=False)
    late = pyarrow.array([0, 1 << 60], pyarrow.timestamp("ms"))
    columns = {"prompt": ["a", "b"], "answer": ["1", "2"], "bad": bad, "late": late}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert [p.answer for p in read_file(tmp_path / "a.parquet")] == ["1", "2"]
    for name, value in (("bad", "fine"), ("late", datetime.datetime(1970, 1, 1))):
        with pytest.warns(
            UserWarning, match=r"a\.parquet: line 2: not a value of Python: "
        ) as said:
            problems = read_file(tmp_path / "a.parquet", where={name: value})
        assert [p.answer for p in problems] == ["1"] and len(said) == 1
        assert len(str(said[0].message).splitlines()) == 1


def test_a_list_is_among_no_values(tmp_path):
    lines = [{"prompt": "p", "answer": 1, "kind": kind} for kind in (["a"], {"a": 1}, "a", None)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for allowed in ("a", ("a", "b"), {"a"}, ["a"]):
        problems = read_source(Source(str(tmp_path / "a.jsonl"), where={"kind": allowed}))
        assert [p.id for p in problems][-1:] == ["a-3"]


def test_suites_and_processbench(tmp_path):
    rows = [
        {"problem": "half an emoji \ud83d", "answer": "4"},
        {"problem": "p", "answer": math.nan},
        {"problem": "p", "answer": ["1", math.inf]},
        {"problem": "p", "answer": 1e16},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match=r"own\.jsonl: line 1: .*half of a character"):
        read = read_suite("own", tmp_path)
    assert read.skipped == 3 and [p.answer for p in read.problems] == ["10000000000000000"]
    item = {"problem": "p", "steps": ["a", "b"], "label": 1}
    items = [
        item | {"id": math.nan, "final_answer_correct": math.nan},
        item | {"steps": ["a", "\ud83d"]},
        item | {"problem": "\ud83d"},
    ]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, items)))
    with pytest.warns(UserWarning, match=r"gsm8k\.jsonl: line 2: field 'steps': half"):
        (subset,) = load_processbench(tmp_path / "gsm8k.jsonl")
    assert len(subset.items) == 1 and subset.skipped == 2
    assert subset.items[0].id == "gsm8k-1" and subset.items[0].final_answer_correct is None


# ---- rows that repeat


def row(identity, prompt="2+2?", answer="4", **more) -> str:
    return json.dumps({"id": identity, "prompt": prompt, "answer": answer} | more)


def test_rows_that_repeat_count_once_and_it_is_said(tmp_path):
    """DAPO-Math-17k is published with every problem many times."""
    path = tmp_path / "dapo.jsonl"
    lines = [row("a"), row("b", "3+3?", 6)] * 100 + [row("a", solution="another one")]
    path.write_text("\n".join(lines))
    with pytest.warns(UserWarning) as caught:
        problems = read_file(path)
    assert [p.id for p in problems] == ["a", "b"] and problems.skipped == 0
    (message,) = [str(w.message) for w in caught]
    assert message.endswith(
        "dapo.jsonl: rows that repeat an earlier one in id, prompt and answer, left out: 199;"
        " problems left: 2"
    )


@pytest.mark.parametrize("other", [row("a", "2+3?"), row("a", answer="5")])
def test_one_id_of_two_problems_names_both_places(tmp_path, other):
    (tmp_path / "train.jsonl").write_text("\n".join([row("a"), row("b")]))
    (tmp_path / "train_more.jsonl").write_text("\n".join([row("c"), other]))
    with pytest.raises(
        ValueError,
        match=r"train_more\.jsonl: line 2: id 'a' is that of another problem at"
        r" \S*train\.jsonl: line 1: expected one problem per id",
    ):
        read_source(Source(str(tmp_path)))


def test_rows_of_a_suite_that_repeat(tmp_path):
    lines = [json.dumps({"id": n % 2, "problem": f"p{n % 2}", "answer": 1}) for n in range(4)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="left out: 2; problems left: 2"):
        read = read_suite("own", tmp_path)
    assert [p.id for p in read.problems] == ["0", "1"]
    assert len(read.questions) == len(read.rows) == 2


def test_rows_without_ids_are_problems_of_their_own(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps({"prompt": "p", "answer": 1})] * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [p.id for p in read_file(tmp_path / "a.jsonl")] == ["a-1", "a-2"]
