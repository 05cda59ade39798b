"""The report: one file, nothing fetched, everything escaped, and the rescue readable in order."""

import html.parser
import json
import re

import pytest

from scope_jax.report.charts import line_chart
from scope_jax.report.gallery import rescue
from scope_jax.report.page import write_report, write_run_report
from scope_jax.run.metrics import MetricsWriter

EVIL = "<script>alert('x')</script><img src=http://evil/>\"&"


class Page(html.parser.HTMLParser):
    """Tags with attributes, the text without styles, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.words.append(data.strip())


def step(text, status, owner="policy", score=None, correct=None):
    return {"text": text, "score": score, "owner": owner, "status": status, "correct": correct}


def item(**changes):
    steps = [
        step("+7 7\n", "kept", score=0.98, correct=True),
        step("+9 2\n", "wrong", score=0.11, correct=False),
        step("-1 1", "discarded", score=0.4),
        step("+9 6\n", "corrected", owner="teacher", correct=True),
        step("-1 5\n", "tail"),
        step("+2 7", "tail"),
    ]
    base = {"prompt": "+7+9-1+2=", "answer": "7", "steps": steps, "first_error": 1}
    return base | {"verdict_before": False, "verdict_after": True} | changes


def test_a_rescue_in_order():
    page = Page(rescue(item(threshold=0.5)))
    # Row by row, left and right: the kept step twice, then wrong | teacher, thrown away | policy
    # again, nothing | tail.
    assert page.words == [
        *("+7+9-1+2=", "reference answer: 7 · first error at step 2"),
        *("before: the failed rollout", "after: the repaired one"),
        *("+7 7", "0.98", "✓", "+7 7"),
        *("first wrong step", "+9 2", "0.11", "✗", "teacher", "+9 6", "✓"),
        *("thrown away", "-1 1", "0.40", "policy, again", "-1 5"),
        "+2 7",
        *("✗ wrong answer", "✓ verified"),
    ]
    bars = [attrs["style"] for tag, attrs in page.tags if tag == "i"]
    assert bars == ["width:98%", "width:11%", "width:40%"]
    assert [attrs["style"] for tag, attrs in page.tags if tag == "b"] == ["left:50%"] * 3


def test_a_rollout_that_was_not_repaired():
    steps = [step("a", "wrong", score=float("nan")), step("b", "discarded")]
    page = Page(
        rescue(item(steps=steps, verdict_before=None, verdict_after=None, first_error=None))
    )
    assert page.words[-5:] == ["a", "not repaired", "thrown away", "b", "? not judged"]
    assert not [tag for tag, _ in page.tags if tag == "i"]  # No bar for a score that is no number.


def test_an_unknown_status_is_an_error():
    with pytest.raises(ValueError, match="step 0: status 'good'; one of kept, wrong"):
        rescue(item(steps=[step("a", "good")]))


def test_chart_by_hand():
    chart = line_chart(
        {
            "title": "t",
            "x_label": "step",
            "y_label": "y",
            "series": [
                {
                    "label": "a",
                    "x": [0, 10, 20],
                    "y_by_seed": [[0.0, 1.0, None], [0.0, 3.0, float("nan")]],
                }
            ],
        }
    )
    page = Page(chart)
    # Drawn area x 52..448, where the values lie at 0..10; y 230..10 for -0.18..3.18. The mean goes
    # from 0 to 2.
    line = next(attrs["points"] for tag, attrs in page.tags if tag == "polyline")
    assert line == "52.0,218.2 448.0,87.3"
    band = next(attrs["points"] for tag, attrs in page.tags if tag == "polygon")
    assert band == "52.0,218.2 448.0,21.8 448.0,152.7 52.0,218.2"
    assert "a (2 seeds)" in page.words and {"0", "1", "2", "3", "10"} <= set(page.words)


def test_chart_gaps_constants_and_long_series():
    def lines(x, *seeds):
        chart = line_chart(
            {"title": "t", "series": [{"label": "a", "x": x, "y_by_seed": list(seeds)}]}
        )
        assert "nan" not in chart and "inf" not in chart.replace("infinite", "")
        return [attrs["points"].split() for tag, attrs in Page(chart).tags if tag == "polyline"]

    assert [len(points) for points in lines([0, 1, 2, 3], [1, 2, None, 5])] == [
        2,
        2,
    ]  # A lone point is a dot.
    assert lines([5], [0.3])[0][0] == "250.0,120.0"  # In the middle.
    assert lines([], []) == [] and lines([0, 1], [None, None]) == []
    assert len(lines(range(1000), range(1000))[0]) == 334  # Bins of three.
    with pytest.raises(ValueError, match="chart 't', series 'a': 2 x and 1 y values"):
        lines([0, 1], [1])


def test_the_page_is_one_file_and_nothing_in_it_runs(tmp_path):
    evil_steps = [
        step(EVIL, status, owner=EVIL, score=0.5)
        for status in ("kept", "wrong", "corrected", "tail")
    ]
    path = write_report(
        tmp_path / "deep" / "report.html",
        title=EVIL,
        intro=[EVIL],
        table={
            "columns": [EVIL, "v"],
            "rows": [[EVIL, 0.41234], [EVIL, None], ["tiny", 3.2e-5], ["int", 7]],
        },
        curves=[
            {
                "title": EVIL,
                "x_label": EVIL,
                "y_label": EVIL,
                "series": [{"label": EVIL, "x": [0, 1], "y_by_seed": [[0, 1]]}],
            }
        ],
        gallery=[item(prompt=EVIL, answer=EVIL, steps=evil_steps)],
        notes=[EVIL],
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "img", "link", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    attributes = [(name, value) for _, attrs in page.tags for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name in ("src", "href") or name.startswith("on")]
    assert not re.search(r"url\(|@import", text)
    assert (
        sum(EVIL in word for word in page.words) >= 14
    )  # Shown, as text, everywhere it was given.
    assert {"0.412", "–", "3.2e-05", "7"} <= set(page.words)


def test_a_row_of_another_length_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="table, row 1: 1 values for 2 columns"):
        write_report(
            tmp_path / "r.html", title="t", table={"columns": ["a", "b"], "rows": [[1, 2], [3]]}
        )
    assert not (tmp_path / "r.html").exists()


def test_report_of_a_run(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for at in range(3):
            writer.write(
                at, {"reward/mean": at / 10, "time/rollout": 1.5, "odd/name": float("nan")}
            )
    (tmp_path / "summary.json").write_text(json.dumps({"eval": {"pass@1": 0.5}, "note": "done"}))
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "000001.json").write_text(json.dumps([item(prompt="older")]))
    (tmp_path / "samples" / "000002.json").write_text(
        json.dumps([item(prompt="not rescued", verdict_after=False), item(prompt="rescued")])
    )
    (tmp_path / "samples" / "000003.json").write_text('[{"prompt": "torn')
    (tmp_path / "samples" / "000004.json").write_text('[{"prompt": "no steps"}]')
    page = Page(write_run_report(tmp_path).read_text(encoding="utf-8"))
    prompts = [
        word for word in page.words if word in ("older", "not rescued", "rescued", "no steps")
    ]
    assert prompts == ["rescued", "not rescued", "older"]
    assert page.words[page.words.index("eval/pass@1") + 1] == "0.500"
    captions = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert captions == ["Reward of the policy's rollouts", "Seconds by phase", "odd/name"]
    assert any(
        word.startswith("samples/000003.json could not be read (JSONDecodeError")
        for word in page.words
    )
    assert any(
        word.startswith("samples/000004.json could not be read (KeyError") for word in page.words
    )
    one = Page(write_run_report(tmp_path, most_samples=1).read_text(encoding="utf-8"))
    assert "rescued" in one.words and "older" not in one.words


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither metrics\.jsonl nor summary\.json"):
        write_run_report(tmp_path)
