"""A rescue on a terminal, to the letter."""

import io
import re
import sys

import pytest

from scope_jax.report.terminal import rescue_text
from scope_jax.run.metrics import in_colour, progress, say_beside_bars

RESCUED = {
    "prompt": "2+3-4=",
    "answer": "1",
    "steps": [
        {"text": "2+3=5;", "status": "kept", "score": 0.98, "owner": "policy"},
        {"text": "5-4=2;", "status": "wrong", "score": 0.125, "owner": "policy"},
        {"text": "2", "status": "discarded", "score": None, "owner": "policy"},
        {"text": "5-4=1;", "status": "corrected", "owner": "teacher"},
        {"text": "1", "status": "tail", "owner": "policy"},
    ],
    "verdict_before": False,
    "verdict_after": True,
    "not_rescued": None,
}
REFUSED = RESCUED | {
    "steps": RESCUED["steps"][:2],
    "verdict_after": False,
    "not_rescued": "leak",
    "refused": "so it is 1\x1b[2J\u202e\nat once",
}


def test_without_colours():
    assert rescue_text(RESCUED, "step 40", width=80, colour=False) == (
        "step 40, rescued\n"
        "problem      2+3-4=  (answer: 1)\n"
        " 1 kept      2+3=5;  [0.98]\n"
        " 2 wrong     ~~5-4=2;~~  [0.12]\n"
        " 3 discarded ~~2~~\n"
        " 2 teacher   5-4=1;\n"
        " 3 new end   1"
    )


def test_with_colours_the_wrong_step_is_struck_out_and_the_words_are_the_same():
    text = rescue_text(RESCUED, "step 40", width=80, colour=True)
    assert " 2 wrong     \x1b[31;9m5-4=2;  [0.12]\x1b[0m\n" in text
    assert " 2 teacher   \x1b[1;32m5-4=1;\x1b[0m\n" in text
    plain = rescue_text(RESCUED, "step 40", width=80, colour=False)
    assert re.sub(r"\x1b\[[\d;]+m", "", text) == plain.replace("~~", "")


@pytest.mark.parametrize("colour", [False, True])
def test_what_a_model_wrote_cannot_steer_the_terminal(colour):
    lines = rescue_text(REFUSED, "step 1", width=80, colour=colour).splitlines()
    assert "not rescued (the teacher's step gave the answer away)" in lines[0]
    assert "so it is 1 [2J  at once" in lines[-1]
    assert re.sub(r"\x1b\[[\d;]+m", "", "".join(lines)).isprintable()


def test_long_texts_are_wrapped_beside_their_name():
    step = {"text": "word " * 30, "status": "kept", "owner": "policy"}
    lines = rescue_text(RESCUED | {"steps": [step]}, "step 1", width=60, colour=False).splitlines()
    assert len(lines[2:]) == 4 and all(len(line) <= 60 for line in lines)
    assert lines[2].startswith(" 1 kept      word") and lines[3].startswith(" " * 13 + "word")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("no_colour", "term", "kind", "coloured"),
    [
        ("", "xterm", Terminal, True),
        ("1", "xterm", Terminal, False),
        ("", "dumb", Terminal, False),
        ("", "xterm", io.StringIO, False),
    ],
)
def test_colours_only_where_they_are_wanted(monkeypatch, no_colour, term, kind, coloured):
    monkeypatch.setattr(sys, "stderr", kind())
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setenv("TERM", term)
    assert in_colour() == coloured


def test_it_stands_above_the_bar_and_the_bar_is_drawn_again(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(4, desc="run") as bar:
        bar.update(1)
        say_beside_bars(rescue_text(RESCUED, "step 40", width=80, colour=True))
        drawn = sys.stderr.getvalue()
    before, _, after = drawn.partition("step 40, rescued")
    assert before.rstrip("\x1b[1m").endswith("\r")  # the bar's line was cleared
    assert after.rstrip("\x1b[A").split("\r")[-1].startswith("run:")
