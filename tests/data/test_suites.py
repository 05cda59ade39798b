"""Readers of the published files, and what becomes of results."""

import json
import math
import warnings

import pytest
from support.suite_files import jsonl, parquet, write_all

from scope_jax.data.suites import BOXED, LETTER, MAX_MALFORMED, SUITES, read_suite
from scope_jax.report.samples import ResultsFile, markdown_table, summarise


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    return folder


WANTED = {
    # name: ids, answers, the first question
    "aime24": (["60", "61"], ["060", "061"], "Find 60."),
    "aime25": (["0", "1", "2"], ["70", "71", "72"], "Find $70$."),
    "amc23": (["27", "28"], ["27", "28"], "What is 27?"),
    "math500": (
        ["test/precalculus/807.json", "test/algebra/1349.json"],
        [r"\left( 3, \frac{\pi}{2} \right)", r"\text{Evelyn}"],
        "Convert $(0,3)$ to polar coordinates.",
    ),
    "minerva": (["minerva-0", "minerva-1"], ["1.33", "m r^{2}"], "How far, in pc?"),
    "olympiadbench": (["1606", "1709"], ["2", "(1,8), (2,7)"], "Find it."),
    "arc_c": (
        ["Mercury_7175875", "Mercury_7175875_2"],
        ["B", "B"],
        "Which gas?\n\nA. oxygen\nB. carbon dioxide\nC. iron",
    ),
    "mmlu_pro": (
        ["70", "71"],
        ["I", "I"],
        "Typical?\n\n" + "\n".join(f"{c}. option {n}" for n, c in enumerate("ABCDEFGHIJ")),
    ),
    "gsm8k": (["gsm8k-0", "gsm8k-1"], ["18", "70000"], "Janet's ducks?"),
}


@pytest.mark.parametrize("name", WANTED)
def test_published_files(data, name):
    ids, answers, question = WANTED[name]
    read = read_suite(name, data)
    assert [problem.id for problem in read.problems] == ids
    assert [problem.answer for problem in read.problems] == answers
    assert read.questions[0] == question and read.skipped == 0
    template = LETTER if read.suite.grader == "choice" else BOXED
    assert read.problems[0].prompt == template.replace("{problem}", question)
    assert len(read.files) == 1 and len(read.digest) == 64


def test_the_field_s_settings():
    assert {name: b.samples for name, b in SUITES.items() if b.samples > 1} == {
        "aime24": 32,
        "aime25": 32,
        "amc23": 32,
    }
    assert {name for name, b in SUITES.items() if b.grader == "choice"} == {
        "arc_c",
        "gpqa_diamond",
        "mmlu_pro",
    }


def test_the_context_of_an_olympiad_problem_comes_first(data):
    assert read_suite("olympiadbench", data).questions[1] == "Let n be a number.\n\nFind all."


def test_choices_of_gpqa_are_shuffled_by_the_record_id_alone(data, tmp_path):
    read = read_suite("gpqa_diamond", data)
    assert [problem.id for problem in read.problems] == [
        "recgpqa_diamond0",
        "recgpqa_diamond1",
        "recgpqa_diamond2",
    ]
    for n, (question, problem) in enumerate(zip(read.questions, read.problems)):
        lines = question.split("\n")
        assert lines[:3] == ["Which, of these,", f"is number {n}?", ""]
        assert sorted(line[3:] for line in lines[3:]) == [
            f"right {n}",
            'wrong "3"',
            "wrong 1",
            "wrong, 2",
        ]
        assert [line[:3] for line in lines[3:]] == ["A. ", "B. ", "C. ", "D. "]
        assert lines[3 + "ABCD".index(problem.answer)][3:] == f"right {n}"
    # Known order, so that a change of the rule is noticed: a shuffle is part of the suite.
    assert "".join(problem.answer for problem in read.problems) == "ACB"
    text = (data / "gpqa_diamond/gpqa_diamond.csv").read_text()
    head, rest = text.split("\n", 1)
    records = rest.split("old,")[1:]
    (tmp_path / "gpqa_diamond.csv").write_text(
        "\n".join([head, "".join("old," + record for record in reversed(records))])
    )
    backwards = read_suite("gpqa_diamond", tmp_path)
    assert backwards.problems == read.problems[::-1] and backwards.digest != read.digest


def test_other_mirrors_and_own_data(tmp_path):
    jsonl(
        tmp_path / "aime24.jsonl",
        [{"ID": "2024-I-1", "Problem": "Find it.", "Solution": "", "Answer": 204}],
    )
    assert read_suite("aime24", tmp_path).problems[0].answer == "204"
    jsonl(tmp_path / "aime25/aime2025-II.jsonl", [{"question": "two", "answer": "2"}])
    jsonl(tmp_path / "aime25/aime2025-I.jsonl", [{"question": "one", "answer": "1"}])
    assert [p.id for p in read_suite("aime25", tmp_path).problems] == ["aime25-0", "aime25-1"]
    assert read_suite("aime25", tmp_path).questions == ("one", "two")
    jsonl(
        tmp_path / "math500/test.jsonl",
        [{"problem": "p", "solution": r"first \boxed{1}, then $\boxed{\frac{1}{2}}$."}],
    )
    assert read_suite("math500", tmp_path).problems[0].answer == r"\frac{1}{2}"
    (tmp_path / "own.json").write_text(
        json.dumps(
            [{"prompt": "Say 1.", "answer": "1"}, {"prompt": "Say 2.", "answer": ["2", "3"]}]
        )
    )
    own = read_suite("own", tmp_path, template="Q: {problem}\nA:")
    assert [(p.id, p.prompt, p.answer) for p in own.problems] == [
        ("own-0", "Q: Say 1.\nA:", "1"),
        ("own-1", "Q: Say 2.\nA:", "2, 3"),
    ]
    first_release = {
        "id": "a",
        "question": {
            "stem": "S?",
            "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}],
        },
        "answerKey": "B",
    }
    jsonl(tmp_path / "arc_c/ARC-Challenge-Test.jsonl", [first_release])
    assert read_suite("arc_c", tmp_path).questions == ("S?\n\nA. x\nB. y",)


def test_malformed_rows_are_named_skipped_and_counted_up_to_a_limit(tmp_path):
    good = json.dumps({"problem": "p", "answer": "1"})
    bad = [
        "{",
        "[1]",
        json.dumps({"problem": " ", "answer": "1"}),
        json.dumps({"problem": "p"}),
        "[" * 100_000,
        '{"problem": "p", "answer": true}',
    ]
    (tmp_path / "aime25.jsonl").write_text("\n".join([good, *bad, good]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = read_suite("aime25", tmp_path)
    assert read.skipped == len(bad) == len(caught) and [p.id for p in read.problems] == [
        "aime25-0",
        "aime25-7",
    ]
    assert "aime25.jsonl: line 2: not JSON" in str(caught[0].message)
    assert "line 5: no text in field 'solution' or 'Solution'; skipped" in str(caught[3].message)
    (tmp_path / "aime25.jsonl").write_text("\n".join(["{"] * (MAX_MALFORMED + 1)))
    with (
        warnings.catch_warnings(),
        pytest.raises(
            ValueError,
            match=f"line {MAX_MALFORMED + 1}: not JSON.*more than {MAX_MALFORMED} malformed",
        ),
    ):
        warnings.simplefilter("ignore")
        read_suite("aime25", tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "q", "answer": "18"}, "has no '####'"),
        (
            "arc_c",
            {
                "question": "q",
                "choices": {"text": ["x", "y"], "label": ["A", "B"]},
                "answerKey": "E",
            },
            "answerKey 'E' is not among",
        ),
        (
            "arc_c",
            {"question": "q", "choices": {"text": ["x"], "label": ["A", "B"]}, "answerKey": "A"},
            "as many labels as texts",
        ),
        (
            "arc_c",
            {"question": "q", "choices": ["x", "y"], "answerKey": "A"},
            "expected choices with a label and a text each",
        ),
        (
            "mmlu_pro",
            {"question": "q", "options": ["x", "y"], "answer_index": 2, "answer": "C"},
            "'answer_index' within it",
        ),
        (
            "mmlu_pro",
            {"question": "q", "options": ["x", "y"], "answer_index": 1, "answer": "A"},
            "is not that of answer_index 1",
        ),
        (
            "gpqa_diamond",
            {"Question": "q", "Correct Answer": "x", "Record ID": "r"},
            "no text in field 'Incorrect Answer 1'",
        ),
        ("olympiadbench", {"question": "q"}, "no field 'final_answer'"),
        ("olympiadbench", {"question": "q", "final_answer": [""]}, "an answer is empty"),
    ],
)
def test_rows_that_are_not_of_the_suite(tmp_path, name, row, message):
    jsonl(tmp_path / f"{name}.jsonl", [row])
    with (
        pytest.warns(UserWarning, match=message),
        pytest.raises(ValueError, match="no problem in 1 files"),
    ):
        read_suite(name, tmp_path)


def test_bad_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"aime42: no such folder.*known: aime24, aime25"):
        read_suite("aime42", tmp_path)
    (tmp_path / "math500").mkdir()
    (tmp_path / "math500/README.md").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no .parquet, .jsonl, .json, .csv file in it"):
        read_suite("math500", tmp_path)
    (tmp_path / "amc23.parquet").write_text("no")
    with pytest.raises(ValueError, match="not a parquet file"):
        read_suite("amc23", tmp_path)
    with pytest.raises(ValueError, match=r"expected the place {problem}"):
        read_suite("amc23", tmp_path, template="Solve this.")
    parquet(tmp_path / "aime24/a.parquet", [{"id": 1, "problem": "p", "answer": "1"}])
    parquet(tmp_path / "aime24/b.parquet", [{"id": 1, "problem": "q", "answer": "1"}])
    with pytest.raises(
        ValueError, match=r"b.parquet: line 1: id '1' is that of another .*a.parquet: line 1"
    ):
        read_suite("aime24", tmp_path)


# ---- results


def result(number, scores, answers, **more):
    n = len(scores)
    return {
        "problem": number,
        "id": f"p{number}",
        "scores": scores,
        "answers": answers,
        "finished": [True] * n,
        "tokens": [10] * n,
        "texts": [""] * n,
        "weights": None,
        **more,
    }


def test_figures_by_hand():
    results = [
        # One of four right, and it loses the vote 1 : 2; with weights it wins, and is the best of
        # four.
        result(
            0,
            [0.0, 1.0, 0.0, None],
            ["3", "4", "3", None],
            weights=[0.1, 0.9, 0.2, 0.3],
            finished=[True, True, False, True],
        ),
        # All right.
        result(1, [1.0] * 4, ["7"] * 4, weights=[0.5, 0.5, 0.5, 0.5]),
        # Tied votes: the earlier answer, which is wrong; a weight is missing.
        result(
            2,
            [0.0, 1.0, 1.0, 0.0],
            ["1", "2", "2", "1"],
            weights=[0.4, 0.2, None, 0.1],
            tokens=[2, 4, 6, 8],
        ),
    ]
    figures = summarise(results)
    assert figures["avg@4"] == pytest.approx((0.25 + 1 + 0.5) / 3)
    assert figures["avg@4/se"] == pytest.approx(
        math.sqrt(((1 / 3) ** 2 + (5 / 12) ** 2 + (1 / 12) ** 2) / 2 / 3)
    )
    assert figures["pass@1"] == pytest.approx(figures["avg@4"])
    assert figures["pass@2"] == pytest.approx(
        (1 - 3 / 6 + 1 + 1 - 1 / 6) / 3
    )  # 1 - C(n - c, 2) / C(4, 2)
    assert figures["pass@4"] == 1.0
    assert figures["maj@4"] == pytest.approx(1 / 3)
    assert figures["bon@4"] == pytest.approx(2 / 3)
    assert figures["vote@4"] == pytest.approx(2 / 3)
    assert figures["truncated_share"] == pytest.approx(1 / 12) and figures[
        "unscored"
    ] == pytest.approx(1 / 12)
    assert figures["tokens"] == pytest.approx(100 / 12)
    record = {"title": "AIME24", "problems": 3, "temperature": 0.6, "samples": 4, "result": figures}
    head, _, row = markdown_table([record]).splitlines()
    assert (
        head == "| suite | problems | T | n | avg@n | pass@n | maj@n | bon@n | vote@n | truncated |"
        " unscored |"
    )
    assert (
        row
        == "| AIME24 | 3 | 0.6 | 4 | 58.3 ± 22.0 | 100.0 ± 0.0 | 33.3 ± 33.3 | 66.7 ± 33.3 | 66.7 ±"
        " 33.3 | 8.3 | 8.3 |"
    )


def test_one_sample_one_problem_and_scores_between():
    figures = summarise([result(0, [0.5], [None])])
    assert (
        figures["avg@1"] == 0.5
        and figures["avg@1/se"] is None
        and figures["pass@1"] == 0.0
        and figures["maj@1"] == 0.0
    )
    assert "bon@1" not in figures and json.loads(json.dumps(figures, allow_nan=False)) == figures
    with pytest.raises(ValueError, match="no result"):
        summarise([])


def test_results_are_kept_and_a_torn_line_is_cut(tmp_path):
    path = tmp_path / "samples" / "x.jsonl"
    kept = ResultsFile(path, "k")
    assert kept.done == {}
    first, second = result(0, [1.0], ["\ud800"]), result(1, [None], [None])
    kept.add([first])
    with path.open("a") as file:
        file.write('{"key": "k", "results": [{"probl')
    again = ResultsFile(path, "k")
    assert again.done == {0: first} and path.read_bytes().endswith(b"\n")
    again.add([second])
    assert ResultsFile(path, "k").done == {0: first, 1: second}
    with pytest.raises(
        ValueError, match=r"x.jsonl:1: not results of this evaluation \(key 'k', here 'other'\)"
    ):
        ResultsFile(path, "other")
    path.write_text("[]\n")
    with pytest.raises(ValueError, match=r"x.jsonl:1: not results"):
        ResultsFile(path, "k")
