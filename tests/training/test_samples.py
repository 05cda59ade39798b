"""Which rollouts of a step are shown, and what the file says of them."""

import json

import numpy as np
import pytest
from support.hand_made import NAN, PROBLEM, RIGHT, TOKENIZER, WRONG_2, WRONG_3, groups_of, scene

from scope_jax.configuration import TrainConfig, default_config, train_config
from scope_jax.correction import Groups
from scope_jax.report import read_sample_file
from scope_jax.training.actors import Actors
from scope_jax.training.samples import Samples, first_rows, kinds_of, rollout_items

ACTORS = Actors(None, {}, TOKENIZER, None, None, None)


def config_of(**samples: int) -> TrainConfig:
    config = default_config("scope" if "show_every" in samples else "grpo")
    config.steps = 6
    config.samples.update({"every": 2} | samples)
    return train_config(config)


def four() -> Groups:
    """Right, wrong, cut off, and one that could not be judged."""
    return groups_of(scene(RIGHT + "#", WRONG_2 + "#", "+777\n-98", WRONG_3 + "#"), [1, 0, 0, NAN])


def test_every_kind_is_shown():
    items = rollout_items(four(), ACTORS, 2)
    shown = [(i["kind"], i["text"], i["verdict"], i["reward"], i["tokens"]) for i in items]
    assert shown == [
        ("right", "+777\n-987\n+198", True, 1.0, 14),
        ("wrong", "+777\n-988\n+199", False, 0.0, 14),
        ("cut_off", "+777\n-98", False, 0.0, 8),
        ("not_judged", "+777\n-987\n+190", None, None, 14),
    ]
    assert [i["finished"] for i in items] == [True, True, False, True]
    assert {(i["problem"], i["prompt"], i["answer"]) for i in items} == {
        ("+7-9+1=", "+7-9+1=", "98")
    }


def test_the_prompt_is_shown_as_it_was_sampled_from():
    """With all that a chat template puts around the problem: here, a mark before it."""
    groups = four()
    rows = groups.rollout
    mark = rows.tokens_BT.at[:, 0].set(1)  # "+" became the mark of a step
    changed = Groups(
        rows.replace(tokens_BT=mark),
        4,
        groups.problems,
        *(
            getattr(groups, name)
            for name in ("reward_B", "right_B", "include_B", "own_B", "metrics")
        ),
    )
    (first, *_) = rollout_items(changed, ACTORS, 1)
    assert first["problem"] == PROBLEM.prompt
    assert first["prompt"] == TOKENIZER.decode([1]) + "7-9+1=" != PROBLEM.prompt


def test_the_first_of_each_group_come_before_the_second_of_any():
    kinds = ["right", "right", "wrong", "right", "wrong", "wrong", "right", "right", "right"]
    assert first_rows(kinds, "right", 3, 9) == [0, 3, 6, 1, 7, 8]
    assert first_rows(kinds, "right", 3, 2) == [0, 3]
    assert first_rows(kinds, "wrong", 3, 2) == [2, 4]
    assert first_rows(kinds, "cut_off", 3, 2) == []


def test_a_row_that_was_cut_off_is_that_whatever_it_says():
    groups = four()
    assert kinds_of(groups, np.zeros(4, bool)) == ["cut_off"] * 4
    assert kinds_of(groups, np.ones(4, bool)) == ["right", "wrong", "wrong", "not_judged"]


def test_files_are_due_every_so_often_and_at_the_end():
    config = config_of()
    assert [n for n in range(6) if Samples.of_step(n, config).due] == [0, 2, 4, 5]


def test_a_rescue_on_the_terminal_every_so_often(tmp_path, capsys):
    config = config_of(show_every=2)
    assert [n for n in range(6) if Samples.of_step(n, config).shown] == [0, 2, 4]
    assert not any(Samples.of_step(n, config_of()).shown for n in range(6))
    lost = {"prompt": "one", "steps": [], "verdict_after": False, "verdict_before": False}
    Samples(shown=True, rescues=[lost, lost | {"prompt": "two", "verdict_after": True}]).show(4)
    Samples(shown=True).show(6)
    Samples(rescues=[lost]).show(7)
    first, problem, none = capsys.readouterr().err.splitlines()
    assert first.startswith("step 4, ") and "two" in problem
    assert none == "step 6: no failure was attempted, so there is none to show"
    (tmp_path / "samples").mkdir()
    Samples(shown=True, rescues=[lost]).write(tmp_path, 4, config)
    assert not [*(tmp_path / "samples").iterdir()]  # what is shown is not due


def test_a_file_of_a_step(tmp_path):
    (tmp_path / "samples").mkdir()
    config = config_of(per_file=1, rollouts=1)
    samples = Samples.of_step(4, config)
    samples.keep(four(), ACTORS, config)
    lost = {"prompt": "p", "steps": [], "verdict_after": False, "verdict_before": False}
    samples.rescues = [lost, lost | {"verdict_after": True}]
    samples.write(tmp_path, 4, config)
    [path] = (tmp_path / "samples").iterdir()
    assert path.name == "step_000004.json" and json.loads(path.read_text())["step"] == 4
    found = read_sample_file(path)
    assert [item["verdict_after"] for item in found.rescues] == [True]
    assert found.rollouts == rollout_items(four(), ACTORS, 1) and len(found.rollouts) == 4


@pytest.mark.parametrize(("number", "rollouts"), [(1, 2), (2, 0)], ids=["not due", "none wanted"])
def test_no_file_where_there_is_nothing_to_show(tmp_path, number, rollouts):
    (tmp_path / "samples").mkdir()
    config = config_of(rollouts=rollouts)
    samples = Samples.of_step(number, config)
    samples.keep(four(), ACTORS, config)
    samples.write(tmp_path, number, config)
    assert not [*(tmp_path / "samples").iterdir()]
