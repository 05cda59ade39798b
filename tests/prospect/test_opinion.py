"""What is said of which figures."""

import dataclasses
import re
from pathlib import Path

import pytest

from scope_jax.prospect import opinion as thresholds
from scope_jax.prospect.figures import Cost, Figures, Places, Policy, Precision, Rescues
from scope_jax.prospect.opinion import RESTS_ON, opinion, percent, salvage

ROOT = Path(__file__).resolve().parents[2]

# Like the first batches of SCOPE on signed terms.
SIGNED_TERMS = Figures(
    seed=0,
    batches=4,
    localiser="prm",
    good_steps=1,
    candidates=1,
    policy=Policy(64, 8, 38, 26, 0, 0, 452, 60, 0.117, 0.01, 0.406, 0.06),
    found=Places(440, 12, 130, (200, 90, 80, 40, 30)),
    checked=Places(452, 0, 134, (200, 90, 90, 42, 30)),
    precision=Precision(452, 410, 10, 20, 12, 60, 10),
    right_asked=60,
    right_flagged=10,
    rescues=Rescues(0, 0, 12, 0, 130, 310, 100, 0, 100, 100, 52, {}),
    dead_before=0.59,
    dead_after=0.26,
    cost=Cost(13600, 800, 0, 400, 9900, 0, {}, False),
)


def changed(section: str = "", **values) -> Figures:
    """The same with other values, in a section."""
    if not section:
        return dataclasses.replace(SIGNED_TERMS, **values)
    part = dataclasses.replace(getattr(SIGNED_TERMS, section), **values)
    return dataclasses.replace(SIGNED_TERMS, **{section: part})


def test_like_the_runs_that_were_ahead():
    assert opinion(SIGNED_TERMS) == [
        "Groups all failed: 59 %. GRPO learns nothing from most groups; this is where SCOPE was"
        " ahead, far ahead where it lasted, and level once GRPO had found the way by itself.",
        "70 % of the failures have a good step before the error (by the step check).",
        "The PRM finds 91 % of the first errors exactly.",
        "Salvage rate 0.52: as in the first batches of runs that ended ahead of GRPO (0.51,"
        " 0.34 and 0.24), and of one task, Countdown with six numbers (0.41), that ended level"
        " with it. Groups without an advantage: 59 % before, 26 % after.",
        RESTS_ON,
    ]


@pytest.mark.parametrize(
    ("figures", "line", "said"),
    [
        (changed("policy", all_failed=8, mixed=56), 0, "Groups all failed: 12 %. GRPO learns alr"),
        (changed("policy", all_failed=20, mixed=44), 0, "31 %. GRPO learns from the others; ther"),
        (changed("policy", all_failed=2, all_right=40), 0, "62 %. Most problems are too easy for"),
        (changed("checked", first_step=280), 1, "Most failures (62 %, by the step check) err in "),
        (
            changed(checked=None),
            1,
            "70 % of the failures have a good step before the error (by the",
        ),
        (changed("checked", rows=9), 1, "Only 9 failures have a first error by the step check"),
        (changed("rescues", cut_off=300), 1, "Most failures (66 %) were cut off by length and can"),
        # Of the 112 in groups that may be corrected.
        (changed("rescues", cut_off=90, elsewhere=340), 1, "Most failures (80 %) were cut off by"),
        (
            changed("precision", exact=180),
            2,
            "40 % of the first errors exactly: fewer than in any run",
        ),
        (
            changed("precision", later=90),
            2,
            "91 % of the first errors exactly; 20 % too late, which ",
        ),
        (changed("precision", false_alarms=40), 2, "exactly; it doubts 67 % of the right rows."),
        (
            changed(precision=None),
            2,
            "Nothing checks the first errors of the PRM here; it finds on",
        ),
        (changed(precision=None, right_flagged=40), 2, "67 % of the right rows. It doubts most ri"),
        (changed(precision=None, right_asked=3), 2, "Whether the PRM is right cannot be said her"),
        (changed("rescues", rescued=10), 3, "Salvage rate 0.10: as where the policy corrected it"),
        (changed("rescues", rescued=20), 3, "Salvage rate 0.20: between the runs that were ahead"),
        (
            changed(dead_after=0.7),
            3,
            "59 % before, 70 % after. Rescues make whole groups right: set",
        ),
        (changed("rescues", selected=4), 3, "Only 4 failures were chosen for a rescue: too few f"),
        (changed("policy", failed=12), 0, "Only 12 failures: too few to say more than that there"),
    ],
)
def test_what_is_said(figures: Figures, line: int, said: str):
    lines = opinion(figures)
    assert said in lines[line] and lines[-1] == RESTS_ON


def test_a_localiser_by_any_other_name():
    mine = changed(localiser="my_localisers:ByReference", precision=None, checked=None)
    assert "(by ByReference)" in opinion(mine)[1] and "of ByReference here" in opinion(mine)[2]
    # The step check is not measured against itself.
    exact = opinion(changed(localiser="oracle", precision=None, checked=None))
    assert len(exact) == 4 and "(by the step check)" in exact[1]


def test_shares():
    assert [percent(x) for x in (0, 0.004, 0.006, 0.5, 0.994, 0.996, 1)] == [
        "0 %",
        "<1 %",
        "1 %",
        "50 %",
        "99 %",
        ">99 %",
        "100 %",
    ]
    assert salvage(Rescues(*[0] * 11, {})) == 0


def test_thresholds_rest_on_what_the_page_says():
    """The figures that the opinion names stand in the page of results."""
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "results.md").read_text())
    assert "62 % of the base's failures on Countdown err in the first of three lines" in page
    assert "0.6 ± 0.4), `scope_first` by 3.9 ± 1.6 and 1.4 ± 0.5" in page
    assert "`scope` leads GRPO by 39.0 ± 15.1 then" in page and "still by 34.1 ± 14.5" in page
    assert "half of the errors misplaced on purpose +0.6 ± 1.8" in page
    assert "half misplaced -0.8 ± 1.2" in page


def test_the_page_has_every_threshold():
    page = (ROOT / "docs" / "prospect.md").read_text()
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| ([\d., ]+) \|", page, flags=re.M)
    shown = {
        (name.strip("`"), float(value))
        for names, values in rows
        for name, value in zip(names.split(", "), values.split(", "), strict=True)
    }
    known = {
        (name, float(value))
        for name, value in vars(thresholds).items()
        if name.isupper() and isinstance(value, int | float)
    }
    assert shown == known and len(known) == 8
