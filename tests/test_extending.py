"""The classes of docs/extending.md do what the page says, on hand-made rows."""

import dataclasses
import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from support.hand_made import (
    LAST,
    PROBLEM,
    RIGHT,
    SAMPLE,
    SPEC,
    TOKENIZER,
    WRONG_1,
    WRONG_2,
    groups_of,
    played,
    scene,
    text,
)

from scope_jax.configuration import TrainConfig, default_config, train_config
from scope_jax.configuration.schema import set_value
from scope_jax.correction import LocaliserSpec, make_localiser, rescue
from scope_jax.learning import AdvantageSpec
from scope_jax.learning.credit import advantages
from scope_jax.rollout import from_prompts
from scope_jax.teachers import DemonstrationJob, TeacherSpec
from scope_jax.training.actors import planned_teacher

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
BATCH = (RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
REWARD = [1, 0, 0, 1]


@pytest.fixture(scope="module")
def page() -> dict:
    """What the page's code defines."""
    defined: dict = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S):
        exec(block, defined)
    return defined


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_way_of_giving_credit(page: dict, share: float):
    credit = page["BlameFromTheError"](share)
    groups = groups_of(scene(*BATCH), REWARD)
    got, metrics = advantages(groups, played(), credit, AdvantageSpec(), max_new_tokens=16)
    want = np.zeros((4, 23))
    want[[0, 3], 7:22], want[[1, 2], 7:22] = 0.5, -0.5
    want[1, 7:12] = -0.5 * share  # its first line is right
    np.testing.assert_allclose(got, want)
    assert metrics["scope/unscored"] == 0


def test_the_teacher(page: dict):
    book = {"+7-9+1=+777\n": "-987\n", "+7-9+1=": RIGHT}
    teacher = page["BookTeacher"](book, TeacherSpec(step_tokens=8))
    groups = groups_of(scene(*BATCH), REWARD)
    result = rescue(groups, played(teacher=teacher, policy=LAST), SPEC)
    assert text(result.groups.rollout, 1) == RIGHT + "#"
    assert result.groups.reward_B.tolist() == [1, 1, 0, 1]
    blank = dataclasses.replace(teacher, book={})
    lost = rescue(groups, played(teacher=blank, policy=LAST), SPEC)
    assert lost.metrics["scope/teacher_failed_not_in_the_book"] == 1
    shown = teacher.demonstrate(
        DemonstrationJob(
            [PROBLEM, dataclasses.replace(PROBLEM, prompt="+1=")],
            from_prompts([TOKENIZER.encode(p) for p in ("+7-9+1=", "+1=")], 1, 23),
            TOKENIZER,
            SAMPLE,
            played().domain,
            temperature=1.0,
            key=jax.random.key(0),
            seed=0,
        )
    )
    assert shown.failed == [None, "not_in_the_book"] and text(shown.rollout, 0) == RIGHT + "#"


def test_a_config_names_them(page: dict, monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("of_my_own")
    module.__dict__.update(page)
    monkeypatch.setitem(sys.modules, "of_my_own", module)
    config = default_config("scope")
    set_value(TrainConfig, config, "teacher.kind", "of_my_own:from_my_book")
    set_value(TrainConfig, config, "localiser.kind", "of_my_own:ByReference")
    settings = train_config(config)
    teacher = planned_teacher(settings, None, TOKENIZER, None, None)()
    assert isinstance(teacher, page["BookTeacher"]) and teacher.spec == settings.teacher
    localiser = make_localiser(settings.localiser)
    assert isinstance(localiser, page["ByReference"]) and localiser.spec == settings.localiser
    assert not settings.uses_prm


@pytest.mark.parametrize(
    "kind, message",
    [
        ("nowhere:Nobody", "ModuleNotFoundError: No module named 'nowhere'"),
        ("os:Nobody", "AttributeError: module 'os' has no attribute 'Nobody'"),
        ("os:", "is unknown; one of prm, likelihood, oracle, monte_carlo, function"),
        (":Nobody", "localiser.kind = ':Nobody' is unknown"),
    ],
)
def test_names_of_nothing(kind: str, message: str):
    with pytest.raises(ValueError) as caught:
        make_localiser(LocaliserSpec(kind))
    assert message in str(caught.value)


def test_the_localiser(page: dict):
    solved = dataclasses.replace(PROBLEM, solution=RIGHT)
    groups = groups_of(scene(*BATCH), REWARD, solved)
    by_reference = dataclasses.replace(played(), localiser=page["ByReference"](LocaliserSpec()))
    result = rescue(groups, by_reference, SPEC)
    assert text(result.groups.rollout, 1) == RIGHT + "#"
    assert result.gallery[0]["first_error"] == 1
    unsolved = rescue(groups_of(scene(*BATCH), REWARD), by_reference, SPEC)
    assert unsolved.metrics["scope/located_share"] == 0
