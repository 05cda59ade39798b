"""The settings of the reward: what they mean, and what is refused before anything is loaded."""

import re
from pathlib import Path
from typing import Any

import pytest

from scope_jax.configuration import TrainConfig, default_config, train_config
from scope_jax.configuration.schema import set_value
from scope_jax.rewards import Part, RewardSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"


def test_without_a_word_it_is_the_verifier():
    spec = RewardSpec()
    assert spec.parts == (Part("outcome", "outcome"),) and spec.is_default and not spec.uses_prm
    assert (spec.verdict_by, spec.verdict_range, spec.threshold) == ("outcome", (0, 1), 1)
    assert train_config(default_config()).reward == spec


def test_one_function_alone():
    spec = RewardSpec("mine.rewards:Judge.closeness")
    assert spec.parts == (Part("closeness", "mine.rewards:Judge.closeness"),)
    assert (spec.verdict_by, spec.threshold, spec.is_default) == ("total", 1, False)
    assert RewardSpec("m:mean").parts[0].name == "function"  # reward/mean is taken
    assert RewardSpec("prm").uses_prm


MIXTURE: dict[str, Any] = {
    "outcome": {},
    "form": {"function": "format", "pattern": "a+", "weight": 0.5},
    "short": {"function": "m:short", "weight": 0.25, "range": [-2, 0]},
    "again": {"function": "m:again", "weight": -0.5, "range": (0, 3)},
    "seen": {"function": "m:seen", "weight": 0},
    "plain": "m:plain",
}


def test_parts_with_weights_and_ranges():
    spec = RewardSpec(functions=MIXTURE)
    assert spec.parts == (  # in the order of their names
        Part("again", "m:again", -0.5, (0.0, 3.0)),
        Part("form", "format", 0.5, pattern="a+"),
        Part("outcome", "outcome"),
        Part("plain", "m:plain"),
        Part("seen", "m:seen", 0.0),
        Part("short", "m:short", 0.25, (-2.0, 0.0)),
    )
    assert (spec.verdict_by, spec.threshold) == ("outcome", 1)
    # 1 + 0.5 + 0 + 0 + 1, and 0 + 0 - 0.5 - 1.5 + 0.
    total = RewardSpec(functions=MIXTURE, accept_by="total")
    assert total.verdict_range == (-2.0, 2.5) and total.threshold == 2.5
    again = RewardSpec(functions=MIXTURE, accept_by="short", accept=-0.5)
    assert (again.verdict_range, again.threshold) == ((-2, 0), -0.5)
    without = {name: part for name, part in MIXTURE.items() if name != "outcome"}
    assert RewardSpec(functions=without).verdict_by == "total"


def test_prm_settings():
    [part] = RewardSpec(functions={"prm": {"steps": "min", "weight": 2}}).parts
    assert part == Part("prm", "prm", 2.0, steps="min")


WRONG = [
    (
        {"function": "mine"},
        "reward.function = 'mine': expected outcome, format, prm, or a function",
    ),
    ({"function": "m:f g"}, "reward.function = 'm:f g': expected outcome, format, prm, or"),
    ({"function": "format"}, "reward.function.pattern = None: expected a pattern of re"),
    (
        {"function": "m:f", "functions": {"outcome": {}}},
        "reward.function and reward.functions: one",
    ),
    ({"functions": {"x": {}}}, "reward.functions.x.function = None: expected outcome"),
    ({"functions": {"x": 3}}, "reward.functions.x = 3: expected module:function, or the settings"),
    ({"functions": {"mean": "m:f"}}, "reward.functions.mean: 'mean' cannot be the name of a part"),
    ({"functions": {"a/b": "m:f"}}, "reward.functions.a/b: 'a/b' cannot be the name of a part"),
    (
        {"functions": {"outcome": {"wieght": 1}}},
        "reward.functions.outcome.wieght: unknown key; the nearest known one is weight",
    ),
    ({"functions": {"outcome": {"weight": "1"}}}, "outcome.weight = '1': expected a number"),
    ({"functions": {"outcome": {"weight": True}}}, "outcome.weight = True: expected a number"),
    (
        {"functions": {"outcome": {"weight": float("nan")}}},
        "outcome.weight = nan: expected a number",
    ),
    ({"functions": {"outcome": {"weight": 0}}}, "reward.functions: every weight is 0"),
    (
        {"functions": {"outcome": {"range": (0, 2)}}},
        "outcome.range: the values of 'outcome' lie in",
    ),
    ({"functions": {"x": {"function": "m:f", "range": (1, 0)}}}, "x.range = (1, 0): expected the"),
    ({"functions": {"x": {"function": "m:f", "range": (0, "1")}}}, "x.range = (0, '1'): expected"),
    ({"functions": {"x": {"function": "m:f", "range": 1}}}, "x.range = 1: expected the lowest"),
    ({"functions": {"x": {"function": "m:f", "pattern": "a"}}}, "x.pattern is for the function"),
    ({"functions": {"outcome": {"steps": "min"}}}, "outcome.steps is for the function 'prm'"),
    (
        {"functions": {"prm": {"steps": "max"}}},
        "prm.steps = 'max' is unknown; one of mean, min, last",
    ),
    ({"functions": {"format": {"pattern": "(a"}}}, "format.pattern = '(a': not a pattern of re ("),
    ({"functions": {"format": {"pattern": 1}}}, "format.pattern = 1: expected a pattern"),
    (
        {"accept_by": "format"},
        "reward.accept_by = 'format' is no part of the reward; one of total,",
    ),
    (
        {"accept": 0.0},
        "reward.accept = 0: 'outcome' has values from 0 to 1; expected a number above",
    ),
    ({"accept": 1.5}, "reward.accept = 1.5: 'outcome' has values from 0 to 1"),
    ({"accept": float("nan")}, "reward.accept = nan"),
    ({"seconds": 0.0}, "reward.seconds = 0.0 must be a number above 0"),
    ({"memory_mb": 0}, "reward.memory_mb = 0 must be at least 1"),
    ({"workers": 0}, "reward.workers = 0 must be at least 1"),
]


@pytest.mark.parametrize(("settings", "said"), WRONG, ids=[said[:50] for _, said in WRONG])
def test_what_makes_no_sense_is_refused_in_one_line(settings, said):
    config = default_config()
    for name, value in settings.items():
        with config.unlocked(), config.reward.ignore_type():
            config.reward[name] = value
    with pytest.raises(ValueError) as caught:
        train_config(config)
    line = str(caught.value)
    assert line.startswith("config.reward.") and said in line and "\n" not in line, line


def test_a_prm_among_the_parts_needs_a_model():
    config = default_config()
    config.reward.functions = {"outcome": {}, "prm": {}}
    with pytest.raises(ValueError, match=r"config\.models\.prm is None; a part of the reward is"):
        train_config(config)
    config.models.prm = "prm"
    assert train_config(config).uses_prm and not train_config(config).uses_localiser


def test_parts_on_the_command_line():
    config = default_config("scope")
    for name, text in (
        ("reward.functions.outcome.weight", "0.5"),
        ("reward.functions.short.function", "m:short"),
        ("reward.functions.short.range", "(-1, 0)"),
        ("reward.functions.form.function", "format"),
        ("reward.functions.form.pattern", "[a-z]+ 7"),
        ("reward.accept", "0.5"),
        ("reward.accept_by", "outcome"),
    ):
        set_value(TrainConfig, config, name, text)
    spec = train_config(config).reward
    assert spec.parts == (
        Part("form", "format", pattern="[a-z]+ 7"),
        Part("outcome", "outcome", 0.5),
        Part("short", "m:short", 1.0, (-1.0, 0.0)),
    )
    assert (spec.threshold, spec.verdict_by) == (0.5, "outcome")


def test_the_mixture_of_the_page_is_a_config():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    [code] = [block for block in blocks if "get_config" in block]
    defined: dict[str, Any] = {}
    exec(code, defined)
    spec = train_config(defined["get_config"]()).reward
    assert [(part.name, part.weight) for part in spec.parts] == [
        ("brief", 0.1),
        ("format", 0.2),
        ("outcome", 1.0),
        ("totals", 0.5),
    ]
    assert re.fullmatch(spec.parts[1].pattern or "", "+777\n-987\n+198")
