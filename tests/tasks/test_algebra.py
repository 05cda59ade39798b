"""The domain algebra: problems, labels, the program that solves them, its task and its base."""

import re

import numpy as np
import pytest

from scope_jax.data.load import TaskSpec, generated_domain, load_task
from scope_jax.tasks.algebra import STYLES, TEMPLATES, Algebra, Draw, Problem, split_of
from scope_jax.tasks.algebra_steps import next_line
from scope_jax.text import split_steps

DOMAIN = Algebra()
PROBLEM = Problem("p", "3(x-2)=x+4:", "x=5")
RIGHT = "3x-6=x+4\n2x-6=4\n2x=10\nx=5"


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        (RIGHT, True),
        ("3x-6=x+4\n3x=x+10\n2x=10\nx=5", True),
        ("x=5", True),
        ("3x-2=x+4\n2x=6\nx=3", False),
        ("3x-2=x+4\n2x-6=4\n2x=10\nx=5", False),  # the right end of a wrong way
        ("3x-6=x+4\n2x-6=4\n2x=10", False),  # ends too early
        (RIGHT + "\n", False),  # does not end
        ("x=10/2", False),
        ("", False),
        ("5", False),
    ],
)
def test_verifier_checks_the_whole_solution(completion, verdict):
    assert DOMAIN.verify([PROBLEM], [completion]) == [verdict]
    steps = split_steps(completion, "\n")
    assert (bool(steps) and all(DOMAIN.check_steps(PROBLEM, steps))) is verdict


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        (["3x-6=x+4\n", "2x-6=4\n", "2x=10\n", "x=5"], [True] * 4),
        (["3x-6=x+4\n", "4x-6=4\n", "2x=10\n", "x=5"], [True, False, False, False]),
        (["3x-6=x+4\n", "2x=10\n"], [True, False]),
        (["3x-6=x+4\n", "x=5\n"], [True, False]),
        (["3x-6=x+4\n", "x=5\n", "x=5"], [True, False, False]),
        (["what\n", "x=5"], [False, False]),
        ([], []),
    ],
)
def test_step_check(steps, labels):
    assert DOMAIN.check_steps(PROBLEM, steps) == labels


def test_step_check_of_a_prefix():
    assert DOMAIN.check_steps(PROBLEM, ["3x-6=x+4\n"], complete=False) == [True]
    assert DOMAIN.check_steps(PROBLEM, ["3x-6=x+4\n", "x=5\n"], complete=False) == [True, False]


def test_answer_marker_path_and_equations():
    assert DOMAIN.answer_of(RIGHT) == "x=5" and DOMAIN.answer_of("x=3 or x=-2") == "x=-2 or x=3"
    assert DOMAIN.answer_of("2x=10") is None and DOMAIN.answer_of(RIGHT + "\n") is None
    assert DOMAIN.answer_of("hello") is None
    assert DOMAIN.answer_marker("x=5\n") and not DOMAIN.answer_marker("2x=10\n")
    path = DOMAIN.solution_path(PROBLEM, RIGHT)
    assert path == ("3x-6=x+4", "2x-6=4", "2x=10", "x=5")
    assert DOMAIN.solution_path(PROBLEM, RIGHT.replace("2x=10", "2 x = 10")) == path
    assert DOMAIN.solution_path(PROBLEM, "3x-6=x+4\nx=6") is None
    square = Problem("q", "x^2=9:", "x=-3 or x=3")
    assert DOMAIN.solution_path(square, "x=3 or x=-3") == DOMAIN.solution_path(
        square, "x=-3 or x=3"
    )
    assert DOMAIN.equations(RIGHT) == ["3x-6=x+4", "2x-6=4", "2x=10", "x=5"]


@pytest.mark.parametrize("style", STYLES)
def test_programs_write_right_solutions(style):
    generator = rng(2)
    for index in range(24):
        k = 2 + index % 4
        problem = DOMAIN.problem(4, "train", index, k)
        text = DOMAIN.demonstration(problem, generator, style)
        assert DOMAIN.verify([problem], [text]) == [True]
        assert DOMAIN.answer_of(text) == problem.answer
        if style == "x_first":
            assert len(text.split("\n")) == k
        assert len(problem.prompt) <= DOMAIN.prompt_length(k)
        assert len(text) + 1 <= DOMAIN.completion_length(k)
        assert set(problem.prompt + text) <= set(DOMAIN.characters)
        steps = []
        while (step := DOMAIN.next_step(problem, steps, generator, style)) is not None:
            steps.append(step)
        assert DOMAIN.verify([problem], ["".join(steps)]) == [True]


def test_lengths_are_the_longest_solution():
    longest = {
        2: ("x^2-18x+81=0", "(x+8)(x+9)=0\nx=-9 or x=-8"),
        3: ("(x^2-17x+72)/(x-9)=0", "x^2+17x+72=0, x!=-9\n(x+8)(x+9)=0, x!=-9\nx=-8"),
        4: ("x(x-18)=-9x-81", "x^2+12x=-5x-72\nx^2+17x+72=0\n(x+8)(x+9)=0\nx=-9 or x=-8"),
        5: (
            "324/(x+9)=x+9",
            "324=(x+9)(x+9)\n324=x^2+18x+81\nx^2+18x-243=0\n(x-9)(x+27)=0\nx=-27 or x=9",
        ),
    }
    for k, (prompt, text) in longest.items():
        assert len(prompt) + 1 <= DOMAIN.prompt_length(k) <= len(prompt) + 2
        assert len(text) + 1 == DOMAIN.completion_length(k)
    wide = Algebra(largest=99)
    for k in (2, 3, 4, 5):
        for index in range(6):
            problem = wide.problem(0, "train", index, k)
            assert len(problem.prompt) <= wide.prompt_length(k)
            assert len(wide.demonstration(problem, rng())) + 1 <= wide.completion_length(k)


def test_styles_and_going_on_from_what_is_written():
    def step(steps, style="x_first"):
        return DOMAIN.next_step(PROBLEM, list(steps), rng(), style)

    assert step(["3x-6=x+4\n"]) == "2x-6=4\n"
    assert step(["3x-6=x+4\n"], "numbers_first") == "3x=x+10\n"
    assert step(["3x-6=x+4\n", "2x=10\n"]) == "x=5"  # the last line has no newline
    assert step(["3x-2=x+4\n"]) == "2x-2=4\n"  # an error before stays there
    assert step(["x=5\n"]) is None and step(["what\n"]) is None and step(["x^2=2\n"]) == "x^2-2=0\n"
    mixed = {DOMAIN.next_step(PROBLEM, ["3x-6=x+4\n"], rng(seed), "mixed") for seed in range(20)}
    assert mixed == {"2x-6=4\n", "3x=x+10\n"}
    with pytest.raises(ValueError, match="style 'terse'"):
        DOMAIN.demonstration(PROBLEM, rng(), "terse")


def test_misconceptions_are_lines_that_do_not_follow():
    for kind, wrong in (("sign", "4x-6=4"), ("bracket", "3x-2=x+4")):
        domain = Algebra(misconception=1.0, misconception_kind=kind)
        text = domain.demonstration(PROBLEM, rng(), "x_first")
        assert wrong in text.split("\n")
        assert domain.verify([PROBLEM], [text]) == [False]
    sometimes = Algebra(misconception=0.5)
    texts = [sometimes.demonstration(PROBLEM, rng(seed)) for seed in range(30)]
    assert 0.1 < np.mean(DOMAIN.verify([PROBLEM] * 30, texts)) < 0.6  # 1/4 and chance


def test_problem_is_a_pure_function():
    for index in range(12):
        problem = DOMAIN.problem(3, "train", index, (3, 4))
        assert problem == DOMAIN.problem(3, "train", index, (3, 4))
    assert DOMAIN.problem(0, "train", 0, 4) != DOMAIN.problem(1, "train", 0, 4)
    # Written down: changes of numpy or of this file must not change the problems of a run that is
    # resumed.
    found = [DOMAIN.problem(0, "train", 0, k) for k in (2, 3, 4, 5)]
    assert [(problem.prompt, problem.answer) for problem in found] == WRITTEN_DOWN


WRITTEN_DOWN = [
    ("x^2+15x+56=0:", "x=-8 or x=-7"),
    ("x^2+x=2x+20:", "x=-4 or x=5"),
    ("5(x+8)=3x+54:", "x=7"),
    ("10/(x+9)=x+6:", "x=-11 or x=-4"),
]


def test_fractions_and_every_kind_are_among_the_problems():
    problems = [DOMAIN.problem(1, "test", index, (3, 4)) for index in range(120)]
    prompts = [problem.prompt for problem in problems]
    assert 0.03 < np.mean(["/" in problem.answer for problem in problems]) < 0.3
    rational = [")/(" in prompt or re.search(r"\d/\(", prompt) is not None for prompt in prompts]
    square = ["x^2" in prompt or "x(" in prompt for prompt in prompts]
    assert np.mean(rational) > 0.2 and np.mean(square) > 0.2
    assert all("x^2" not in p.prompt for p in (Algebra(("linear",)).problem(0, "train", i, 3)
                                               for i in range(20)))  # fmt: skip


def test_every_template_takes_its_number_of_lines():
    bits = np.random.Philox(5)
    for k, kinds in TEMPLATES.items():
        for template in kinds.values():
            texts = [template(Draw(bits.random_raw(12).tolist(), 9)) for _ in range(12)]
            assert any(texts), (k, template)
            for text in filter(None, texts):
                lines = [text]
                while (line := next_line(lines[-1])) is not None:
                    lines.append(line)
                assert len(lines) - 1 == k, lines


def test_splits_share_no_problem():
    seen = {
        split: {DOMAIN.problem(seed, split, i, 3).prompt for seed in (0, 1) for i in range(40)}
        for split in ("train", "validation", "test", "test_ood")
    }
    assert not seen["train"] & (seen["test"] | seen["validation"] | seen["test_ood"])
    assert not seen["validation"] & seen["test"]
    assert {split_of(prompt.removesuffix(":")) for prompt in seen["test"]} == {"test"}


def test_bad_arguments_are_named():
    for kwargs, message in [
        ({"kinds": ("cubic",)}, "kinds \\('cubic',\\)"),
        ({"kinds": ()}, "kinds \\(\\)"),
        ({"largest": 1}, "largest 1: expected 2 to 99"),
        ({"misconception": 1.5}, "misconception 1.5"),
        ({"misconception_kind": "borrow"}, "misconception_kind 'borrow'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Algebra(**kwargs)
    for k in (1, 6, ()):
        with pytest.raises(ValueError, match="expected 2 to 5 lines"):
            DOMAIN.problem(0, "train", 0, k)
    with pytest.raises(ValueError, match=r"no equation of \('linear',\) takes 5 lines"):
        Algebra(("linear",)).problem(0, "train", 0, (3, 5))
    with pytest.raises(ValueError, match="split 'dev'"):
        DOMAIN.problem(0, "dev", 0, 4)
    with pytest.raises(ValueError, match=r"prompt '2\+:'.*expected like"):
        DOMAIN.check_steps(Problem("p", "2+:", "8"), ["x=2"])
    with pytest.raises(ValueError, match=r"'x\^2=2': its solutions are no fractions"):
        DOMAIN.make_problem("x^2=2")


SIZES = {"train_size": 12, "validation_size": 2, "test_size": 4, "test_ood_size": 3}


def test_a_task_from_a_config(tmp_path):
    options = {**SIZES, "lengths": [3, 4], "ood_lengths": [5], "seed": 5, "largest": 8}
    task = load_task(TaskSpec("algebra", str(tmp_path), options=options))
    domain = Algebra(largest=8)
    assert task.domain == domain
    assert list(task.train) == [domain.problem(5, "train", i, (3, 4)) for i in range(12)]
    assert list(task.evaluation["test_ood"]) == [
        domain.problem(5, "test_ood", i, 5) for i in range(3)
    ]
    folder = next((tmp_path / "algebra").iterdir()).name
    assert folder == "n12.2.4.3-k3.4-ood5-seed5-lqr-max8"
    assert generated_domain("algebra", {"kinds": ["linear"]}).kinds == ("linear",)


def test_a_base_and_a_teacher_are_trained_by_the_same_program(tmp_path):
    from scope_jax.configs import checkpoints
    from scope_jax.supervise import supervise

    for name, start in (("base", None), ("teacher", str(tmp_path / "base"))):
        config = checkpoints.get_config(f"{name},algebra")
        config.update({"steps": 3, "batch": 4, "micro_batches": 1, "start": start})
        config.model.update(
            {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "ffn_size": 16}
        )
        config.optimizer.warmup_steps = 1
        summary = supervise(config, tmp_path / name)
        assert summary["steps"] == 3 and 2 < summary["loss"] < 4  # log 29 = 3.4: nothing is known
