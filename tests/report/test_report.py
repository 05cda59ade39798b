"""The report: one file, nothing fetched, everything escaped, and the rescue readable in order."""

import html.parser
import re

import pytest

from scope_jax.report.charts import figure_of
from scope_jax.report.page import Report, RolloutGroup, Tile, write_report
from scope_jax.tasks import Problem
from scope_jax.tasks.arithmetic import Arithmetic
from scope_jax.tasks.countdown import Countdown

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


def article(folder, shown):
    """The part of a page that shows one rescue."""
    text = write_report(folder / "r.html", Report("t", gallery=[shown])).read_text()
    return re.search(r"<article.*</article>", text, re.DOTALL)[0]


def figure(folder, curve):
    """The part of a page that shows one chart."""
    text = write_report(folder / "r.html", Report("t", curves=[curve])).read_text()
    return re.search(r"<figure.*</figure>", text, re.DOTALL)[0]


def rollout(**changes):
    base = {"problem": "+7+9=", "answer": "7", "prompt": "+7+9=", "text": "+7 7\n+9 6"}
    return base | {"verdict": True, "reward": 1.0, "tokens": 9, "finished": True} | changes


def test_a_rescue_in_order(tmp_path):
    page = Page(article(tmp_path, item(threshold=0.5)))
    # The steps that both have; then what went wrong, and what came in its place.
    assert page.words == [
        *("rescued", "problem", "+7+9-1+2=", "reference answer", "7"),
        *("The policy begins, and this is kept", "1", "0.98", "✓", "+7 7"),
        *("Then it went wrong", "2", "0.11", "✗", "first wrong step", "+9 2"),
        *("3", "0.40", "thrown away", "-1 1", "✗ wrong answer"),
        "Corrected by the teacher, finished by the policy",
        *("2", "✓", "teacher", "+9 6", "3", "policy, again", "-1 5", "4", "+2 7"),
        "✓ right answer",
    ]
    bars = [attrs["style"] for tag, attrs in page.tags if tag == "i"]
    assert bars == ["width:98%", "width:11%", "width:40%"]
    assert [attrs["style"] for tag, attrs in page.tags if tag == "b" and attrs] == ["left:50%"] * 3
    assert page.tags[0][1]["class"].split()[-1] == "symbols"


def test_word_problems_are_set_as_prose(tmp_path):
    steps = [
        step("The notebooks cost 3 * 4 = 12 dollars.\n", "kept", score=0.9),
        step("She has 100 - 21 = 79 dollars left.", "wrong", score=0.2),
        step("\nShe has 100 - 12 = 88 dollars left.\n\n", "corrected", owner="teacher"),
    ]
    page = Page(article(tmp_path, item(prompt="Maria has 100 dollars.", steps=steps)))
    assert page.tags[0][1]["class"].split()[-1] == "prose"
    assert "She has 100 - 12 = 88 dollars left." in page.words
    # Steps of the teacher have neither a score nor a check: no column is kept for them.
    lists = [attrs["class"].split() for tag, attrs in page.tags if tag == "ol"]
    assert lists == [["steps", "scored"], ["steps", "scored"], ["steps"]]


@pytest.mark.parametrize(
    ("owners", "heading", "label"),
    [
        ("pp", "Corrected by the teacher, finished by the policy", "policy, again"),
        ("tt", "Corrected by the teacher", "teacher, again"),
        ("", "Corrected by the teacher", None),
    ],
)
def test_who_finished_a_rescue(tmp_path, owners, heading, label):
    names = {"p": "policy", "t": "teacher"}
    tail = [step("c", "tail", owner=names[o]) for o in owners]
    steps = [step("a", "wrong"), step("b", "corrected", owner="teacher"), *tail]
    page = Page(article(tmp_path, item(steps=steps)))
    labels = [attrs for tag, attrs in page.tags if attrs.get("class") == "who"]
    assert heading in page.words and len(labels) == 2 + bool(owners)
    assert label is None or page.words.count(label) == 1


def test_a_rollout_that_was_not_repaired(tmp_path):
    steps = [step("a", "wrong", score=float("nan")), step("b", "discarded")]
    shown = item(steps=steps, verdict_before=None, verdict_after=None, first_error=None)
    page = Page(article(tmp_path, shown))
    assert page.words[-5:] == ["thrown away", "b", "? not judged", "No correction", "not rescued"]
    assert page.words.count("The policy went wrong at once") == 1
    assert not [tag for tag, _ in page.tags if tag == "i"]  # No bar for a score that is no number.


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("leak", "the teacher's step gave the answer away"),
        ("incomplete_step", "the teacher's step had no end, or nothing in it"),
        ("teacher_too_long", "the teacher's step was too long"),
        ("teacher_not_in_the_book", "the teacher refused: not in the book"),
        ("tail_wrong", "the new answer is wrong too"),
        ("tail_cut_off", "the new end was cut off"),
        ("no_room", "there was no room left for the policy to go on"),
        ("of another version", "of another version"),
    ],
)
def test_a_row_says_why_it_was_not_rescued(tmp_path, reason, words):
    page = Page(article(tmp_path, item(verdict_after=False, not_rescued=reason)))
    assert page.words[0] == "not rescued" and page.words[-1] == f"not rescued: {words}"


def test_a_step_that_was_refused_is_shown_as_that(tmp_path):
    steps = [step("a", "kept"), step("b", "wrong")]
    shown = item(steps=steps, verdict_after=False, not_rescued="leak", refused="it is 7\n")
    page = Page(article(tmp_path, shown))
    assert page.words[-5:-1] == ["No correction", "2", "teacher, refused", "it is 7"]


def test_rollouts_with_their_verdicts(tmp_path):
    groups = [
        RolloutGroup("Step 9", [rollout(), rollout(text="+7 8", verdict=False, reward=0.25)]),
        RolloutGroup(
            "Step 0",
            [
                rollout(prompt="<user>+7+9=", finished=False, verdict=False, reward=0.0, tokens=1),
                rollout(verdict=None, reward=None),
            ],
            folded=True,
        ),
    ]
    page = Page(write_report(tmp_path / "r.html", Report("t", samples=groups)).read_text())
    after = page.words[page.words.index("What the policy writes") + 1 :]
    answer = ["reference answer", "7"]
    facts = "ended by itself · 9 tokens"
    assert after == [
        *("Step 9", "✓ right", f"{facts} · reward 1", "+7+9=", "+7 7\n+9 6", *answer),
        *("✗ wrong", f"{facts} · reward 0.25", "+7+9=", "+7 8", *answer),
        *("Step 0", "✗ wrong", "cut off · 1 token · reward 0", "+7+9="),
        *("the prompt as the policy was shown it", "<user>+7+9=", "+7 7\n+9 6", *answer),
        *("? not judged", facts, "+7+9=", "+7 7\n+9 6", *answer),
    ]
    # The older step and the longer prompt are closed.
    assert [attrs for tag, attrs in page.tags if tag == "details"] == [{}, {}]


def test_an_unknown_status_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="step 0: status 'good'; one of kept, wrong"):
        article(tmp_path, item(steps=[step("a", "good")]))


def test_chart_by_hand(tmp_path):
    seeds = [[0.0, 1.0, None], [0.0, 3.0, float("nan")]]
    series = [{"label": "a", "x": [0, 10, 20], "y_by_seed": seeds}]
    curve = {"title": "t", "x_label": "step", "y_label": "y", "series": series}
    axes = figure_of(curve).axes[0]
    # The mean goes from 0 to 2, the band from 0 to 1 and 3; nobody has a value at 20.
    [line], [band] = axes.lines, axes.patches
    assert line.get_xydata().tolist() == [[0, 0], [10, 2]]
    assert band.get_xy().tolist() == [[0, 0], [10, 3], [10, 1], [0, 0]]
    page = Page(figure(tmp_path, curve))
    assert {"a (2 seeds)", "t", "step", "y"} <= set(page.words)
    assert {"0", "1", "2", "3", "10"} <= set(page.words)  # the ticks
    # Drawn area x 46..450, where the values lie at 0..10; y 208..8 for -0.18..3.18.
    paths = [attrs["d"] for tag, attrs in page.tags if tag == "path"]
    assert {"M 46 197.2 L 450 18.7 L 450 137.7 z", "M 46 197.2 L 450 78.2"} <= set(paths)
    styles = [attrs["style"] for tag, attrs in page.tags if tag == "path"]
    assert all("var(--" in style and "#" not in style for style in styles)


def test_chart_gaps_constants_and_long_series(tmp_path):
    def lines(x, *seeds):
        series = [{"label": "a", "x": x, "y_by_seed": list(seeds)}]
        curve = {"title": "t", "series": series}
        chart = figure(tmp_path, curve)
        assert "nan" not in chart and "inf" not in chart
        return [line.get_xydata().tolist() for line in figure_of(curve).axes[0].lines]

    gap, dot = lines([0, 1, 2, 3], [1, 2, None, 5])
    assert gap == [[0, 1], [1, 2]] and dot == [[3, 5], [3, 5]]  # a lone point is a dot
    assert lines([5], [0.3]) == [[[5, 0.3]] * 2]
    dots = [
        attrs["d"] for tag, attrs in Page((tmp_path / "r.html").read_text()).tags if "d" in attrs
    ]
    assert dots[-1] == "M 248 108 L 248 108"  # in the middle
    assert lines([], []) == [] and lines([0, 1], [None, None]) == []
    assert len(lines(range(1000), range(1000))[0]) == 334  # bins of three
    with pytest.raises(ValueError, match="chart 't', series 'a': 2 x and 1 y values"):
        lines([0, 1], [1])


def test_the_page_is_one_file_and_nothing_in_it_runs(tmp_path):
    evil_steps = [
        step(EVIL, status, owner=EVIL, score=0.5)
        for status in ("kept", "wrong", "corrected", "tail")
    ]
    report = Report(
        title=EVIL,
        intro=[EVIL],
        highlights=[EVIL],
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
        gallery=[
            item(prompt=EVIL, answer=EVIL, steps=evil_steps, not_rescued=EVIL),
            item(steps=evil_steps[:2], refused=EVIL, not_rescued=f"teacher_{EVIL}"),
        ],
        facts=[(EVIL, EVIL)],
        warnings=[EVIL],
        tiles=[Tile(EVIL, EVIL, EVIL)],
        main_curves=[{"title": EVIL, "value": EVIL, "note": EVIL, "series": []}],
        samples=[RolloutGroup(EVIL, [rollout(problem=EVIL, answer=EVIL, prompt=EVIL * 2)])],
        figures=[(EVIL, EVIL)],
        how_to_read=EVIL,
        notes=[EVIL],
    )
    path = write_report(tmp_path / "deep" / "report.html", report)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "img", "link", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    attributes = [(name, value) for _, attrs in page.tags for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name in ("src", "href") or name.startswith("on")]
    assert not re.search(r"url\(|@import", text)
    assert (
        sum(EVIL.replace("_", " ") in word.replace("_", " ") for word in page.words) >= 30
    )  # Shown, as text, everywhere it was given.
    assert {"0.412", "–", "3.2e-05", "7"} <= set(page.words)


def test_a_row_of_another_length_is_an_error(tmp_path):
    table = {"columns": ["a", "b"], "rows": [[1, 2], [3]]}
    with pytest.raises(ValueError, match="table, row 1: 1 values for 2 columns"):
        write_report(tmp_path / "r.html", Report("t", table=table))
    assert not (tmp_path / "r.html").exists()


def test_how_to_read_a_step_is_true_of_its_domain():
    for moduli in ((10, 9), (5, 4)):
        domain = Arithmetic(start="zero", moduli=moduli)
        shown = domain.how_to_read.split()[0]
        problem = domain.make_problem([shown[:2], "-1"])
        assert domain.check_steps(problem, [shown + "\n"], complete=False) == [True]
    domain = Countdown()
    shown = " ".join(domain.how_to_read.split()[:3])
    problem = Problem("", "8 5 4 3>2:", "2")
    assert domain.check_steps(problem, [shown + "\n"], complete=False) == [True]
