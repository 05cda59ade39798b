"""The classes of docs/extending.md do what the page says, on hand-made rows."""

import dataclasses
import json
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
from scope_jax.data.load import TaskSpec, domain_of, load_task
from scope_jax.learning import AdvantageSpec
from scope_jax.learning.credit import advantages
from scope_jax.rollout import from_prompts
from scope_jax.tasks import Domain
from scope_jax.teachers import DemonstrationJob, TeacherSpec
from scope_jax.text import split_steps
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


def test_a_variant_of_method_that_inherits_it_is_the_credit_of_the_run(page: dict):
    credit = page["BlameFromTheError"]
    blame = dataclasses.make_dataclass(
        "Blame", [("name", str, "blame")], bases=(credit,), frozen=True
    )(share=0.25)
    config = dataclasses.replace(TrainConfig(), method=blame)
    assert config.credit is blame and config.uses_localiser
    assert not TrainConfig().credit.scores_steps


def test_the_kind_of_problem(page: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    module = types.ModuleType("of_my_own")
    module.__dict__.update(page)
    monkeypatch.setitem(sys.modules, "of_my_own", module)
    lines = [{"prompt": "Capital of France?", "answer": "Paris"}]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = default_config("grpo")
    for key, value in {
        "task.name": "of_my_own:LastLine",
        "task.options": {"exact": False},
        "task.data": str(tmp_path),
        "task.train": {"mine": {"path": "few.jsonl"}},
    }.items():
        set_value(TrainConfig, config, key, value)
    task = load_task(train_config(config).task)
    problems = [task.train[0]] * 2
    assert task.domain.verify(problems, ["It is\nPARIS\n", "Paris\nLyon"]) == [True, False]
    assert split_steps("It is\nPARIS", task.domain.divider) == ["It is\n", "PARIS"]
    strict = TaskSpec("of_my_own:LastLine", options={"exact": True}, train={"x": {"path": "y"}})
    assert domain_of(strict).verify(problems[:1], ["It is\nPARIS"]) == [False]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("of_my_own:BookTeacher", {}, "not a class that inherits tasks.Domain"),
        ("of_my_own:Nobody", {}, "has no attribute 'Nobody'"),
        ("of_my_own:LastLine", {"exakt": True}, "options.exakt: unknown; known: exact, separator"),
        ("of_my_own:Half", {}, "abstract method"),
        ("of_my_own:NoName", {}, "of_my_own:NoName': its name is None; a text is expected"),
        ("of_my_own:NoSeparator", {}, "its separator is None; a text is expected"),
        ("maths", {}, "config.task.name = 'maths' is unknown; one of arithmetic, "),
    ],
)
def test_kinds_of_problem_that_are_none(
    page: dict, monkeypatch: pytest.MonkeyPatch, name: str, options: dict, message: str
):
    module = types.ModuleType("of_my_own")
    judged = {"verify": lambda self, problems, completions: []}
    bad = {"Half": {}, "NoName": judged | {"separator": "."}, "NoSeparator": judged | {"name": "x"}}
    made = {name: type(name, (Domain,), members) for name, members in bad.items()}
    module.__dict__.update(page | made)
    monkeypatch.setitem(sys.modules, "of_my_own", module)
    with pytest.raises(ValueError, match=r"config\.task") as caught:
        TaskSpec(name, options=options, train={"mine": {"path": "few.jsonl"}})
    assert message in str(caught.value)


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
