"""Countdown: the solver against every way of combining numbers, verdicts by hand, programs that
only write right lines."""

import itertools

import numpy as np
import pytest

from scope_jax.data.load import TaskSpec, generated_domain, load_task
from scope_jax.tasks.countdown import STYLES, Countdown, Problem, parse_line, split_of
from scope_jax.text import load_tokenizer, split_steps

DOMAIN = Countdown(operators="+-*", largest_number=9, smallest_target=10, largest=99)
PROBLEM = Problem("p", "3 5 8 2>14:", "14")
RIGHT = "5-3=2 8 2\n8*2=16 2\n16-2=14"


def rng(seed=0):
    return np.random.default_rng(seed)


def every_result(numbers, operators="+-*", largest=99):
    """All values that use every number once: split the numbers in two in every way, combine the
    values of the halves."""
    if len(numbers) == 1:
        return {numbers[0]}
    values = set()
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(range(len(numbers)), size):
            left = every_result([numbers[i] for i in chosen], operators, largest)
            right = every_result(
                [n for i, n in enumerate(numbers) if i not in chosen], operators, largest
            )
            for a, b in itertools.product(left, right):
                results = {"+": a + b, "-": a - b, "*": a * b}
                values |= {results[o] for o in operators if 1 <= results[o] <= largest}
    return values


@pytest.mark.parametrize("operators", ["+-*", "+-"])
def test_targets_against_every_tree(operators):
    domain = Countdown(operators=operators, largest=99)
    generator = rng(1)
    for k in (2, 3, 4, 5):
        for _ in range(6):
            numbers = [int(n) for n in generator.integers(1, 10, k)]
            assert domain.targets(numbers) == sorted(every_result(numbers, operators))


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        (RIGHT, True),
        ("3+5=8 2 8\n2*8=16 8\n16-8=8", False),  # true lines, another target
        ("5-3=2 2 8\n2*8=16 2\n16-2=14", True),  # what is left in another order
        ("3+8=11 5 2\n5-2=3 11\n11+3=14", True),
        ("5-3=2 8 2\n8*2=16 2\n16-2=14\n", False),  # does not end
        ("5-3=2 8 2\n8*2=16 2\n16-2=13", False),  # not true
        ("5-3=3 8 2\n8*2=16 3\n16-2=14", False),
        ("3-5=2 8 2\n8*2=16 2\n16-2=14", False),  # below zero
        ("8*2=16 3 5\n16-2=14", False),  # a number used twice
        ("8+5=13 2\n16-2=14", False),  # a number forgotten
        ("8*2=16 3 5 2", False),
        ("5-3=2 8 2\n8*2=16 2", False),  # ends too early
        ("14", False),
        ("5-3=02 8 2\n8*2=16 2\n16-2=14", False),
        ("5-3=2  8 2\n8*2=16 2\n16-2=14", False),
        ("5-3=2 8 2\n8*2=16 2\n16-2=14 ", False),
        ("", False),
    ],
)
def test_verifier_checks_the_whole_solution(completion, verdict):
    assert DOMAIN.verify([PROBLEM], [completion]) == [verdict]
    steps = split_steps(completion, "\n")
    assert (bool(steps) and all(DOMAIN.check_steps(PROBLEM, steps))) is verdict


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        (["5-3=2 8 2\n", "8*2=16 2\n", "16-2=14"], [True, True, True]),
        (["5-3=2 8 2", "8*2=16 2", "16-2=14"], [True, True, True]),
        (
            ["8*5=40 3 2\n", "40-3=37 2\n", "37-2=35"],
            [False, False, False],
        ),  # true, but 14 is lost: 40 is too much
        (["5-3=2 8 2\n", "8-2=6 2\n", "6*2=12"], [True, False, False]),  # 6 and 2 make 8, 4 or 12
        (["5-3=2 8 2\n", "8*2=17 2\n", "16-2=14"], [True, False, False]),
        (["5-3=2 8\n", "8*2=16\n"], [False, False]),  # a number is forgotten
        (["5-3=2 8 2\n", "8*2=16 2\n", "16-2=14\n"], [True, True, False]),  # does not end
        (["5-3=2 8 2\n", "8*2=16 2\n", "16-2=14\n", "1"], [True, True, False, False]),
        (["5-3=2 8 2\n", "8*2=16 2\n"], [True, False]),  # ends too early
        (["5-3=2 8 2\n", "8*2"], [True, False]),
        (["\n", "8*2=16 2\n"], [False, False]),
        ([], []),
    ],
)
def test_step_check(steps, labels):
    assert DOMAIN.check_steps(PROBLEM, steps) == labels


def test_step_check_of_a_prefix():
    assert DOMAIN.check_steps(PROBLEM, ["5-3=2 8 2\n", "8*2=16 2\n"], complete=False) == [
        True,
        True,
    ]
    assert DOMAIN.check_steps(PROBLEM, ["5-3=2 8 2\n", "8-2=6 2\n"], complete=False) == [
        True,
        False,
    ]
    assert DOMAIN.check_steps(PROBLEM, split_steps(RIGHT + "\n", "\n"), complete=False) == [
        True,
        True,
        False,
    ]


def test_equations_are_operations_with_their_results():
    assert DOMAIN.equations("5-3=2 8 2\n2+2=4 8\nwhat\n8-4=4") == ["5-3=2", "2+2=4", "8-4=4"]


def test_labels_are_what_is_still_possible():
    """A true first line is right exactly if what it leaves makes the target in some way."""
    problem = DOMAIN.make_problem([3, 5, 8, 2], 14)
    seen = set()
    for (i, a), (j, b) in itertools.permutations(enumerate([3, 5, 8, 2]), 2):
        for operator, result in (("+", a + b), ("-", a - b), ("*", a * b)):
            if 1 <= result <= 99:
                left = [n for m, n in enumerate([3, 5, 8, 2]) if m not in (i, j)]
                step = f"{a}{operator}{b}={result} {left[0]} {left[1]}\n"
                label = 14 in every_result([result, *left])
                assert DOMAIN.check_steps(problem, [step], complete=False) == [label]
                seen.add(label)
    assert seen == {True, False}


def test_answer_and_marker():
    assert DOMAIN.answer_of(RIGHT) == "14" and DOMAIN.answer_of("8+2=10") == "10"
    assert (
        DOMAIN.answer_of("8+2=10 5") is None
        and DOMAIN.answer_of(RIGHT + "\n") is None
        and DOMAIN.answer_of("") is None
    )
    assert DOMAIN.answer_marker("16-2=14") and DOMAIN.answer_marker("16-2=14\n")
    assert not DOMAIN.answer_marker("8*2=16 2\n") and not DOMAIN.answer_marker("16-2\n")


def test_solution_path_is_the_set_of_operations():
    path = DOMAIN.solution_path(PROBLEM, RIGHT)
    assert path == ((5, "-", 3), (8, "*", 2), (16, "-", 2))
    assert DOMAIN.solution_path(PROBLEM, "5-3=2 2 8\n2*8=16 2\n16-2=14") == path
    assert (
        DOMAIN.solution_path(PROBLEM, "8*2=16 3 5\n5-3=2 16\n16-2=14") == path
    )  # the first two do not need each other
    other = DOMAIN.solution_path(PROBLEM, "3+8=11 5 2\n5-2=3 11\n11+3=14")
    assert other == ((5, "-", 2), (8, "+", 3), (11, "+", 3))
    assert DOMAIN.solution_path(PROBLEM, "3+5=8 2 8\n2*8=16 8\n16-8=8") is None
    assert (
        DOMAIN.solution_path(PROBLEM, RIGHT + "\n") is None
        and DOMAIN.solution_path(PROBLEM, "") is None
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("domain", [DOMAIN, Countdown()], ids=["products", "default"])
def test_programs_write_right_solutions(domain, style):
    generator = rng(2)
    for index in range(60):
        problem = domain.problem(4, "train", index, (2, 3, 4, 5))
        k = len(problem.prompt.split(">")[0].split())
        text = domain.demonstration(problem, generator, style)
        assert domain.verify([problem], [text]) == [True] and len(text.split("\n")) == k - 1
        assert all(domain.check_steps(problem, split_steps(text, "\n")))
        assert len(problem.prompt) <= domain.prompt_length(k) and len(
            text
        ) + 1 <= domain.completion_length(k)
        steps = []
        while (step := domain.next_step(problem, steps, generator, style)) is not None:
            steps.append(step)
        assert domain.verify([problem], ["".join(steps)]) == [True]


def test_lengths_are_the_longest_solution():
    # 11 + 12 and so on do not fit below 20, so lines are shorter than the bound; these are as long
    # as it says.
    wide = Countdown("+-", 12, 1, 99)
    assert (
        wide.prompt_length(4) == len("12 12 12 12>48:")
        and wide.completion_length(2) == len("12+12=24") + 1
    )
    assert wide.completion_length(4) == len("12+12=24 12 12\n24+12=36 12\n36+12=48") + 1
    assert DOMAIN.completion_length(3) == len("9*9=81 9\n81+9=90") + 1


def test_styles():
    def step(style, steps=(), wrong=None):
        return DOMAIN.next_step(PROBLEM, list(steps), rng(), style, wrong)

    assert step("sorted") == "8+5=13 3 2\n"  # 13 + 3 - 2
    assert step("backwards") == "2*5=10 8 3\n"  # 3*8 - 10
    assert step("same_numbers", (), "8+2=10 3 5\n") == "8-2=6 3 5\n"  # 6 + 3 + 5
    assert step("same_numbers", (), "5") == step("same_numbers") == "8+5=13 3 2\n"
    mixed = {DOMAIN.next_step(PROBLEM, [], rng(seed), "mixed") for seed in range(200)}
    assert {line.split("=")[0] for line in mixed} >= {"5-3", "8+5", "5+8"} and all(
        DOMAIN.check_steps(PROBLEM, [line], complete=False) == [True] for line in mixed
    )
    with pytest.raises(ValueError, match="style 'terse'"):
        DOMAIN.demonstration(PROBLEM, rng(), "terse")


def test_next_step_goes_on_from_what_is_written():
    def step(steps, style="sorted", wrong=None):
        return DOMAIN.next_step(PROBLEM, steps, rng(), style, wrong)

    assert step(["5-3=2 8 2\n", "8*2=16 2\n"]) == "16-2=14"  # the last line has no newline
    assert step(["5-3=2 8 2\n", "8*2=17 3\n"]) == "17-3=14"  # an error before stays there
    assert step(["5-3=2 8 2\n", "8-2=6 2\n"]) is None  # 14 is out of reach
    assert step(RIGHT.split("\n")) is None and step(["5-3\n"]) is None
    assert (
        step(["5-3=2 8 2 7 7 7 7 7 7 7 7 7 7\n"]) is None and step(["5-3=2\n"]) is None
    )  # not three numbers


def test_every_distinct_way_is_found():
    paths = {
        DOMAIN.solution_path(PROBLEM, DOMAIN.demonstration(PROBLEM, rng(seed), "mixed"))
        for seed in range(400)
    }
    assert None not in paths and len(paths) > 5


def test_haste_takes_true_lines_without_looking_ahead():
    hasty = Countdown("+-*", 9, 10, 99, misconception=1.0, misconception_kind="haste")
    problems = [DOMAIN.problem(0, "test", i, 4) for i in range(300)]
    texts = [hasty.demonstration(problem, rng(i)) for i, problem in enumerate(problems)]
    assert 0.02 < np.mean(DOMAIN.verify(problems, texts)) < 0.10  # 0.05 by simulation
    for problem, text in zip(problems, texts):
        state = sorted(map(int, problem.prompt.split(">")[0].split()))
        for line in map(parse_line, text.split("\n")):
            a, operator, b = line.operation
            assert line.result == {"+": a + b, "-": a - b, "*": a * b}[operator]
            assert sorted([a, b, *line.left]) == state
            state = sorted(line.state)
        assert len(state) == 1
    # With two numbers left nobody is hasty.
    pairs = [DOMAIN.problem(0, "test", i, 2) for i in range(50)]
    assert all(DOMAIN.verify(pairs, [hasty.demonstration(problem, rng()) for problem in pairs]))


def test_slips_are_subtractions_one_too_high():
    slip = Countdown(misconception=1.0)
    problem = Problem("p", "9 2 3>10:", "10")
    lines = {slip.next_step(problem, [], rng(seed)) for seed in range(40)}
    assert "9-2=8 3\n" in lines and "9-2=7 3\n" not in lines
    assert all(
        DOMAIN.check_steps(problem, [line], complete=False) == ["-" not in line] for line in lines
    )


def test_problem_is_a_pure_function_and_can_be_solved():
    for index in range(40):
        problem = DOMAIN.problem(3, "train", index, (3, 4))
        assert problem == DOMAIN.problem(3, "train", index, (3, 4))
        numbers = [int(n) for n in problem.prompt.split(">")[0].split()]
        assert len(numbers) in (3, 4) and all(1 <= n <= 9 for n in numbers)
        assert problem.prompt.endswith(f">{problem.answer}:") and 10 <= int(problem.answer) <= 99
        assert int(problem.answer) in every_result(numbers)
    assert DOMAIN.problem(0, "train", 0, 4) != DOMAIN.problem(1, "train", 0, 4)
    # Written down: changes of numpy or of this file must not change the problems of a run that is
    # resumed.
    assert DOMAIN.problem(0, "train", 0, 4) == Problem("train-0-0", "9 8 8 8>33:", "33")
    assert Countdown().problem(0, "train", 0, 4) == Problem("train-0-0", "11 8 3 2>14:", "14")


def test_splits_share_no_problem():
    seen = {}
    for split in ("train", "validation", "test"):
        problems = [DOMAIN.problem(seed, split, i, 4) for seed in (0, 1) for i in range(300)]
        seen[split] = {(tuple(sorted(p.prompt.split(">")[0].split())), p.answer) for p in problems}
        assert len(seen[split]) > 250
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert split_of([3, 5, 8], 16) == split_of([8, 3, 5], 16)


def test_bad_arguments_are_named():
    for kwargs, message in [
        ({"operators": "+/"}, "operators '\\+/'"),
        ({"largest": 100}, "largest = \\(12, 1, 100\\)"),
        ({"smallest_target": 0}, "largest = \\(12, 0, 20\\)"),
        ({"misconception": 1.5}, "misconception 1.5"),
        ({"misconception_kind": "borrow"}, "misconception_kind 'borrow'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Countdown(**kwargs)
    for k in (1, 8, ()):
        with pytest.raises(ValueError, match="expected 2 to 7 numbers"):
            DOMAIN.problem(0, "train", 0, k)
    with pytest.raises(ValueError, match="split 'dev'"):
        DOMAIN.problem(0, "dev", 0, 4)
    with pytest.raises(ValueError, match="no problem with k=2"):
        Countdown("-", 9, 10, 99).problem(
            0, "train", 0, 2
        )  # a difference of two digits needs more than 9
    for prompt in ("3 5>", "5>5:", "1 1 1 1 1 1 1 1>8:"):
        with pytest.raises(ValueError, match=f"prompt '{prompt}'"):
            DOMAIN.check_steps(Problem("p", prompt, "8"), [])


SIZES = {"train_size": 12, "validation_size": 2, "test_size": 4, "test_ood_size": 3}


def test_a_task_from_a_config(tmp_path):
    options = {**SIZES, "lengths": [3, 4], "ood_lengths": [5], "seed": 5, "smallest_target": 10}
    task = load_task(TaskSpec("countdown", str(tmp_path), options=options))
    domain = Countdown(smallest_target=10)
    assert task.domain == domain
    assert list(task.train) == [domain.problem(5, "train", i, (3, 4)) for i in range(12)]
    assert list(task.evaluation["test_ood"]) == [
        domain.problem(5, "test_ood", i, 5) for i in range(3)
    ]
    assert len(task.evaluation["test"]) == 4
    folder = next((tmp_path / "countdown").iterdir()).name
    assert folder == "n12.2.4.3-k3.4-ood5-seed5-oppm-max12-target10.20"


def test_options_that_make_no_sense_write_nothing(tmp_path):
    for options, message in (
        ({"moduli": (10, 9)}, "config.task.options.moduli: unknown; known: .*largest_number"),
        ({"operators": "../"}, "operators '../'"),
        ({"test_size": 0}, "expected at least one problem"),
    ):
        with pytest.raises(ValueError, match=message):
            load_task(TaskSpec("countdown", str(tmp_path), options=options))
    with pytest.raises(ValueError, match="the task 'countdown' has none"):
        TaskSpec("countdown", str(tmp_path), train={"a": {"path": "a.jsonl"}})
    assert not list(tmp_path.iterdir())


def test_generated_domains_by_name():
    assert generated_domain("countdown", {"misconception": 0.5}) == Countdown(misconception=0.5)
    assert generated_domain("arithmetic", {"moduli": [8, 7]}).moduli == (8, 7)
    with pytest.raises(ValueError, match="'math' is unknown; known: arithmetic, countdown"):
        generated_domain("math")
    with pytest.raises(ValueError, match=r"options\.start: unknown; known: largest"):
        generated_domain("countdown", {"start": "zero"})


def test_a_base_policy_is_trained_by_the_same_program(tmp_path):
    from scope_jax.configs import checkpoints
    from scope_jax.supervise import supervise

    config = checkpoints.get_config("base,countdown")
    config.update({"steps": 3, "batch": 4, "micro_batches": 1})
    config.model.update(
        {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "ffn_size": 16}
    )
    config.optimizer.warmup_steps = 1
    summary = supervise(config, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert summary["steps"] == 3 and 2 < summary["loss"] < 4  # log 24 = 3.2 where nothing is known
    assert [tokenizer.decode([i]) for i in tokenizer.encode("8 5>3:\n")] == list("8 5>3:\n")
