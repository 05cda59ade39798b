"""reasoning-gym as a task: parts, order, held-out problems, and a tiny run."""

import json

import numpy as np
import pytest

pytest.importorskip("reasoning_gym")

from scope_jax.configs.run import get_config
from scope_jax.configuration import TrainConfig, default_config, train_config
from scope_jax.configuration.schema import set_value
from scope_jax.data import gym_problems
from scope_jax.data.gym_problems import CHUNK, HELD_OUT, OF_A_SEED, SPARE, SPARES, in_a_row
from scope_jax.data.load import TaskSpec, domain_of, load_task

MIXTURE = {
    "chain_sum": {"weight": 2.0},
    "leg_counting": {},
    "long": {"dataset": "chain_sum", "settings": {"min_terms": 6, "max_terms": 8}},
}


def task(options=None, train=None, evaluation=None):
    return load_task(
        TaskSpec(
            "reasoning_gym", options=options or {}, train=train or {}, evaluation=evaluation or {}
        )
    )


def number_of(problem) -> int:
    """The number that stands in an id."""
    _, seed, index = problem.id.rsplit("-", 2)
    return int(seed) + int(index)


# ---- order


def test_the_order_is_a_function_of_seed_and_position():
    made = task({"test_problems": 4}, MIXTURE)
    whole = made.train.draw(3, 0, 24)
    pieces = [made.train.draw(3, position, 6) for position in (0, 6, 12, 18)]
    assert [p for piece in pieces for p in piece] == whole
    assert task({"test_problems": 4}, MIXTURE).train.draw(3, 12, 6) == pieces[2]
    parts = [problem.id.split("/")[0] for problem in whole]
    assert {name: parts.count(name) for name in MIXTURE} == {
        "chain_sum": 12,
        "leg_counting": 6,
        "long": 6,
    }
    others = made.train.draw(4, 0, 24)
    assert not {p.id for p in whole} & {p.id for p in others}
    assert len({p.id for p in whole}) == 24
    terms = [
        p.prompt.rpartition(":")[2].count("+") + p.prompt.rpartition(":")[2].count(" - ")
        for p, part in zip(whole, parts)
        if part == "long"
    ]
    assert all(5 <= count <= 7 for count in terms)


def test_an_epoch_has_every_problem_once():
    order = in_a_row(7, 0, 2 * CHUNK + 30)
    assert sorted(order) == list(range(2 * CHUNK + 30)) and order[0] in (0, CHUNK)
    starts = {int(in_a_row(seed, 0, 100 * CHUNK)[0]) for seed in range(50)}
    assert len(starts) > 20 and all(start % CHUNK == 0 for start in starts)
    made = task({"dataset": "chain_sum", "problems": 6, "test_problems": 1, "held_out": "seeds"})
    ids = [problem.id for problem in made.train.draw(0, 0, 12)]
    assert ids[:6] == ids[6:] == [f"chain_sum-0-{index}" for index in range(6)]
    assert len(made.train) == 6


def test_another_seed_of_the_task_trains_on_other_problems():
    first, second = (
        task({"dataset": "chain_sum", "seed": seed, "test_problems": 3}) for seed in (0, 5)
    )
    assert {number_of(p) // OF_A_SEED for p in first.train.draw(0, 0, 8)} == {0}
    assert {number_of(p) // OF_A_SEED for p in second.train.draw(0, 0, 8)} == {5}
    assert first.evaluation["test"][:] == second.evaluation["test"][:]


# ---- held-out problems


def test_numbers_of_problems_never_meet():
    """The largest of each range is below the smallest of the next."""
    last = gym_problems.SEEDS * OF_A_SEED - 1
    assert last < SPARE == gym_problems._number(0, 1)
    assert gym_problems._number(last, SPARES) < HELD_OUT
    assert gym_problems._number(1, 1) == gym_problems._number(0, SPARES) + 1
    held = gym_problems._number(HELD_OUT + OF_A_SEED - 1, SPARES)
    assert gym_problems._number(HELD_OUT, 1) >= HELD_OUT + OF_A_SEED and held < 2**32
    assert all(number % CHUNK == 0 for number in (OF_A_SEED, SPARE, HELD_OUT))


def test_no_training_problem_is_one_of_an_evaluation_set():
    """One-digit sums of two terms: there are 81 x 2 questions, of which the test set has many, so
    most training problems are drawn from spare numbers."""
    settings = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    options = {"dataset": "chain_sum", "settings": settings, "test_problems": 60}
    made = task(options)
    asked = {p.prompt for p in made.evaluation["test"][:]}
    trained = made.train.draw(0, 0, 200)
    assert not asked & {p.prompt for p in trained}
    assert any(number_of(p) >= SPARE for p in trained) and len({p.id for p in trained}) == 200
    loose = task({**options, "held_out": "seeds"}).train.draw(0, 0, 200)
    assert asked & {p.prompt for p in loose}
    assert all(number_of(p) < SPARE for p in loose)
    with pytest.raises(ValueError, match="all have questions of an evaluation set"):
        task({**options, "test_problems": 3000}).train.draw(0, 0, 200)


def test_evaluation_sets():
    made = task(
        {"test_problems": 8},
        MIXTURE,
        {
            "test": {},
            "long": {"problems": 3},
            "test_ood": {"dataset": "chain_sum", "settings": {"min_terms": 9, "max_terms": 9}},
        },
    )
    sets = made.evaluation
    assert {name: len(problems) for name, problems in sets.items()} == {
        "long": 3,
        "test": 8,
        "test_ood": 8,
    }
    assert all(number_of(p) >= HELD_OUT for problems in sets.values() for p in problems)
    keys = [p.id.split("-")[0] for p in sets["test"][:]]
    assert sorted(keys.count(key) for key in set(keys)) == [2, 2, 4]
    assert sets["test"][2:5] == [sets["test"][n] for n in (2, 3, 4)]
    assert {p.id.split("-")[0] for p in sets["long"]} < set(keys)  # the part's own settings
    for problems in sets.values():
        chosen = problems[:3]
        texts = [f"<answer>{p.answer}</answer>" for p in chosen]
        assert made.domain.verify(chosen, texts) == [True] * 3
    trained = made.train.draw(0, 0, 8)
    texts = [f"<answer>{p.answer}</answer>" for p in trained]
    assert made.domain.verify(trained, texts) == [True] * 8


def test_a_generator_that_raises_is_passed_over_and_said(monkeypatch):
    made = task({"dataset": "chain_sum", "test_problems": 1})
    real = type(made.domain).problems

    def problems(self, entries):
        return [
            (None, "RuntimeError: no") if entry.seed < SPARE and entry.index == 1 else found
            for entry, found in zip(entries, real(self, entries))
        ]

    monkeypatch.setattr(type(made.domain), "problems", problems)
    with pytest.warns(UserWarning, match=r"could not make problem \d+ \(RuntimeError: no\)"):
        drawn = made.train.draw(0, 0, 3)
    assert [number_of(p) >= SPARE for p in drawn] == [False, True, False]


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {}}, "dataset and config.task.train: set one of them"),
        ({"options": {"dataset": "gcd"}, "train": {"gcd": {}}}, "set one of them"),
        ({"options": {"dataset": {"gcd": 2}}}, "expected a name; several, with weights, are"),
        ({"options": {"datset": "gcd"}}, "config.task.options.datset: unknown; known: after,"),
        ({"options": {"dataset": "gcx"}}, "options.dataset: reasoning-gym has no generator 'gcx'"),
        ({"options": {"dataset": "gcd", "problems": 0}}, "problems = 0: expected 1 to 1,000,000"),
        ({"options": {"dataset": "gcd", "seed": 64}}, "seed = 64: expected 0 to 63"),
        ({"options": {"dataset": "gcd", "held_out": "x"}}, "held_out = 'x' is unknown; one of"),
        ({"options": {"settings": {"a": 1}}, "train": {"gcd": {}}}, "settings stand there"),
        ({"train": {"gcd": {"wait": 1}}}, "config.task.train.gcd.wait: unknown; known: dataset"),
        (
            {"train": {"gcd": {"weight": 0}}},
            "config.task.train.gcd.weight = 0: expected a positive",
        ),
        ({"train": {"gcd": 2}}, "config.task.train.gcd = 2: expected a dictionary of dataset"),
        ({"train": {"a": {"dataset": "gcd"}, "gcd": {}}}, "config.task.train.gcd: the same"),
        (
            {"options": {"dataset": "gcd"}, "evaluation": {"test": {"problems": 0}}},
            "config.task.evaluation.test.problems = 0: expected 1 to",
        ),
        (
            {"train": {"gcd": {}}, "evaluation": {"hard": {"settings": {"min_value": 5}}}},
            "config.task.evaluation.hard.dataset: missing",
        ),
        ({"options": {"dataset": "gcd"}, "data": "x"}, "config.task.data = 'x'"),
        ({"options": {"dataset": "gcd"}, "decontaminate": "report"}, "held_out = 'problems' keeps"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_loaded(settings, message):
    with pytest.raises(ValueError) as caught:
        TaskSpec("reasoning_gym", **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.task.")


def test_the_config_of_the_command_line():
    config = get_config("scope,reasoning_gym")
    made = train_config(config).task
    assert domain_of(made).reward == "score"
    for name, text in (
        ("task.options.dataset", "None"),
        ("task.train", "{'chain_sum': {'weight': 2.0}, 'gcd': {}}"),
        ("task.train.gcd.settings.max_numbers", "3"),
        ("task.options.format", "boxed"),
    ):
        set_value(TrainConfig, config, name, text)
    domain = domain_of(train_config(config).task)
    assert [generator.name for generator in domain.generators] == ["chain_sum", "gcd"]
    assert domain.generators[1].settings == '{"max_numbers": 3}' and domain.format == "boxed"
    assert "boxed" in domain.system
    config.task.train.gcd.settings.max_numbrs = 3
    with pytest.raises(ValueError, match=r"config\.task\.train\.gcd: gcd has no setting"):
        train_config(config)


# ---- solutions


def test_worked_solutions_can_be_learned_from():
    """gsm_symbolic's own, ended in the format; a mixture's problems without one are counted."""
    from support.tokenizer_fixtures import byte_level

    from scope_jax.supervision.batches import BatchSpec, DemonstrationBatches

    made = task({"test_problems": 1}, {"gsm_symbolic": {}, "chain_sum": {}})
    tokenizer = byte_level(["<|endoftext|>"], bos=None, eos="<|endoftext|>")
    spec = BatchSpec("", False, True, False, 2000, 0)
    batches = DemonstrationBatches(made.domain, made.train, tokenizer, spec, batch=3, seed=1)
    batch = next(batches)
    texts = [tokenizer.decode(t[w > 0]) for t, w in zip(batch["tokens"], batch["weight"])]
    problems = [p for p in made.train.draw(1, 0, batches.position) if p.solution is not None]
    assert len(texts) == 3 and batches.dropped["no_solution"] == batches.position - 3
    plain = [text.removesuffix("<|endoftext|>") for text in texts]
    assert made.domain.verify(problems[:3], plain) == [True] * 3


# ---- a tiny run


def write_policy(folder):
    """A policy that writes a digit from 1 to 4 after a prompt, each as often, and ends: its layers
    add nothing, so the last token says the next one."""
    import jax
    from support.tokenizer_fixtures import byte_level

    from scope_jax import models
    from scope_jax.text import save_tokenizer

    tokenizer = byte_level(["<|endoftext|>"], bos=None, eos="<|endoftext|>")
    config = models.ModelConfig(264, 16, 1, 2, 1, 8, 16, end_ids=(0,))
    params = jax.tree.map(lambda x: np.zeros_like(x), models.init(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    for norm in ("attention_norm", "ffn_norm"):
        params["layers"][norm] += 1
    params["final_norm"] += 1
    for name in ("query", "key", "value", "gate", "up"):
        params["layers"][name] += 0.1 * rng.standard_normal(params["layers"][name].shape)
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "1234"]
    params["embed"][:, 0] = 1  # sqrt(16) = 4 long after the last norm
    params["embed"][digits] = np.eye(16)[1]
    params["head"][0, digits] = 3
    params["head"][1, 0] = 3
    models.save(folder, config, params)
    save_tokenizer(tokenizer, folder)


@pytest.mark.long
def test_a_tiny_run_learns_the_most_frequent_answer(tmp_path):
    """GRPO on greatest common divisors, nearly all of which are 1, beside palindromes, whose scorer
    gives 0.02 to a text that is none: rewards are real numbers, the policy comes to write 1, and is
    evaluated on held-out problems."""
    from scope_jax.run import read_metrics
    from scope_jax.train import train

    write_policy(tmp_path / "policy")
    config = default_config("grpo")
    config.steps = 20
    config.task.name = "reasoning_gym"
    config.task.train = {
        "gcd": {"weight": 3.0, "settings": {"min_numbers": 5, "max_numbers": 5}},
        "palindrome_generation": {"settings": {"min_length": 3, "max_length": 4}},
    }
    config.task.evaluation = {"test": {"problems": 16}, "gcd": {"problems": 24}}
    config.task.options = {"format": "whole", "template": "{problem}\n"}
    config.models.policy = str(tmp_path / "policy")
    config.rollout.update({"prompts": 8, "group": 8, "prompt_tokens": 400, "new_tokens": 4})
    config.optimizer.update({"learning_rate": 0.02, "warmup_steps": 0})
    config.evaluation.update({"samples": 4, "rows_at_once": 64, "problems": 24, "at_start": True})
    train(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    reward = [row["reward/mean"] for row in rows]
    assert len(reward) == 20 and all(row["reward/unscored"] == 0 for row in rows)
    # 48 of a step's 64 rows are right or wrong; the others have 0.02 where they are no palindrome.
    shares = [64 * value % 1 for value in reward]
    assert any(0.01 < share < 0.99 for share in shares)
    started = json.loads((tmp_path / "run" / "evaluation_at_start.json").read_text())
    before, after = started["eval_gcd/pass@1"], rows[-1]["eval_gcd/pass@1"]
    print("reward", np.round(reward, 2), "pass@1 on held-out gcd", before, after)
    assert before < 0.5 and after > 0.7
    assert np.mean(reward[-5:]) > 1.5 * np.mean(reward[:5])
    assert rows[-1]["eval/problems"] == 16 and rows[-1]["eval_gcd/problems"] == 24
    assert rows[-1]["data/prompts"] == 160 and rows[-1]["data/dropped"] == 0


def test_what_is_partly_right_has_failed_and_keeps_its_reward():
    """The reward of a run: three rows of one problem, the second of which holds the answer in a
    longer text."""
    from scope_jax.rewards import Reward, Rows

    made = task({"dataset": "chain_sum", "test_problems": 1, "format": "whole"})
    [problem] = made.train.draw(0, 0, 1)
    texts = [problem.answer, f"{problem.answer} or so", "none"]
    share = len(problem.answer) / len(texts[1])
    rows = Rows(made.domain, [problem] * 3, texts, [[1]] * 3, np.ones(3, bool))
    judged = Reward().judge(rows)
    assert judged.reward_B.tolist() == pytest.approx([1.0, share, 0.0]) and 0 < share < 1
    assert judged.right_B.tolist() == [True, False, False]
