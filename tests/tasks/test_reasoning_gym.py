"""reasoning-gym's generators and scorers in worker processes."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym")
import reasoning_gym

from scope_jax.tasks import gym_catalogue, gym_entries, verdicts, worker_loop
from scope_jax.tasks.gym_catalogue import check_generator, generators, runs_code
from scope_jax.tasks.gym_pool import Entry, Generator, GymPool
from scope_jax.tasks.reasoning_gym import LONGEST_ANSWER, ReasoningGym

# These say no answer of their own: only their scorer knows what is right.
WITHOUT_ANSWER = ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour")


@pytest.fixture(scope="module")
def pool():
    with GymPool(workers=1) as made:
        yield made


def gym(*names: str, **options) -> ReasoningGym:
    return ReasoningGym(generators=tuple(Generator(name) for name in names), **options)


def problem_of(domain: ReasoningGym, index: int = 0, seed: int = 0):
    [(problem, _)] = domain.problems([Entry(domain.generators[0], seed, index)])
    return problem


# ---- every generator


def test_every_generator_makes_problems_and_accepts_its_own_answers(pool):
    """Problem 0 of each: the same in two processes with different pasts, another one with another
    seed, and the score of its own answer is 1."""
    names = generators()
    assert len(names) > 100 and "composite" not in names
    entries = [Entry(Generator(name), 0, 0) for name in names]
    made = dict(zip(names, pool.problems(entries, 60.0)))
    with GymPool(workers=1) as other:
        again = dict(zip(reversed(names), other.problems(entries[::-1], 60.0)))
    assert again == made
    others = pool.problems([Entry(Generator(name), 7000, 0) for name in names], 60.0)
    assert not [name for name, pair in zip(names, others) if pair == made[name]]
    answers = {name: found["answer"] for name, (found, _) in made.items()}
    assert tuple(name for name in names if answers[name] is None) == WITHOUT_ANSWER
    asked = [name for name in names if answers[name] is not None]
    scores = pool.scores(
        [Entry(Generator(name), 0, 0) for name in asked], [answers[n] for n in asked], 10.0, 60.0
    )
    assert dict(zip(asked, scores)) == dict.fromkeys(asked, 1.0)


@pytest.mark.long
def test_more_answers_of_every_generator_score_1(pool):
    for name in generators():
        entries = [Entry(Generator(name), 2_150_000_000, index) for index in (1, 499)]
        made = [found for found, _ in pool.problems(entries, 60.0)]
        if name not in WITHOUT_ANSWER:
            scores = pool.scores(entries, [found["answer"] for found in made], 10.0, 60.0)
            assert scores == [1.0, 1.0], name


def test_a_problem_is_the_one_that_the_package_makes():
    """chain_sum draws from Random(seed + index) alone: the package, called here, is the oracle."""
    entry = reasoning_gym.create_dataset("chain_sum", seed=500, size=500, min_terms=3)[7]
    generator = Generator.of("chain_sum", {"min_terms": 3})
    domain = ReasoningGym(generators=(generator,))
    [(problem, reason)] = domain.problems([Entry(generator, 500, 7)])
    assert (problem.prompt, problem.answer, reason) == (entry["question"], entry["answer"], "")
    assert problem.id == f"{generator.key}-500-7" and domain.entry_of(problem).seed == 500


def test_global_state_and_hash_seeds_change_nothing(monkeypatch):
    """Of these one draws from Python's global state, one goes through sets, one uses numpy's."""
    names = ("list_functions", "isomorphic_strings", "pool_matrix")
    entries = [Entry(Generator(name), 0, index) for name in names for index in range(6)]
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        with GymPool(workers=1) as made:
            found.append(made.problems(entries, 60.0))
    assert found[0] == found[1]


# ---- verdicts


def test_verdicts_are_right_wrong_or_a_share():
    """By hand: the default scorer gives len(answer)/len(text) to a text that holds
    the answer."""
    domain = gym("chain_sum", format="boxed")
    problem = problem_of(domain)
    right, longer = problem.answer, problem.answer + " it is"
    texts = [f"\\boxed{{{text}}}" for text in (right, longer, "nothing")] + ["no box", right]
    share = len(right) / len(longer)
    assert domain.verify([problem] * 5, texts) == [True, pytest.approx(share), False, False, False]
    assert [type(v) for v in domain.verify([problem] * 2, texts[:2])] == [bool, float]
    assert verdicts(domain, [problem] * 2, texts[:2]) == [True, pytest.approx(share)]
    only = gym("chain_sum", format="boxed", reward="right")
    assert only.verify([problem] * 3, texts[:3]) == [True, False, False]
    easy = gym("chain_sum", format="boxed", reward="right", right_from=share - 0.01)
    assert easy.verify([problem] * 3, texts[:3]) == [True, True, False]
    assert domain.verify([], []) == []


def test_where_the_answer_stands():
    domain = gym("chain_sum", format="whole", after="</think>")
    problem = problem_of(domain)
    texts = [
        f"<think>7</think> {problem.answer}",
        problem.answer,
        f"<think>{problem.answer}</think>",
        f"a</think>1</think>{problem.answer}\n",
    ]
    assert domain.verify([problem] * 4, texts) == [True, False, False, True]
    assert [domain.answer_of(text) for text in (texts[0], texts[1], "x</think> a\n\tb ")] == [
        problem.answer,
        None,
        "a b",
    ]
    too_long = "x</think>" + "1" * (LONGEST_ANSWER + 1)
    assert domain.verify([problem], [too_long]) == [False] and domain.answer_of(too_long) is None


def test_the_reference_solution_of_gsm_symbolic_is_accepted():
    for form in ("answer_tag", "boxed", "answer_is", "last_line", "whole"):
        domain = gym("gsm_symbolic", format=form)
        problem = problem_of(domain, index=3)
        solution = domain.reference_solution(problem)
        assert domain.verify([problem], [solution]) == [True] and "####" not in solution
    assert gym("chain_sum").reference_solution(problem_of(gym("chain_sum"))) is None


def test_a_scorer_that_raises_says_wrong():
    domain = gym("prime_factorization", format="whole")
    problem = problem_of(domain)
    entry = reasoning_gym.create_dataset("prime_factorization", seed=0, size=1)
    with pytest.raises(ValueError):
        entry.score_answer("foo bar", entry[0])
    assert domain.verify([problem], ["foo bar"]) == [False]


def test_a_scorer_that_never_ends_costs_its_row():
    """Powers that nobody can write down; one after another, each at most `seconds`."""
    domain = gym("puzzle24", format="whole", seconds=1.0)
    problem = problem_of(domain)
    start = time.monotonic()
    texts = ["7**7**10", problem.answer, "9**9**9**9", "1"]
    assert domain.verify([problem] * 4, texts) == [None, True, None, pytest.approx(0.01)]
    assert time.monotonic() - start < 30


def test_a_worker_stuck_in_c_code_ends_itself():
    """`sum` of a range looks at no signal: the alarm rings unheard, and the process ends later."""
    file = Path(worker_loop.__file__)
    program = (
        "import runpy, signal\n"
        f"loop = runpy.run_path({str(file)!r})\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "loop['arm'](0.2, 0.3)\n"
        "sum(range(10**11))\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 1 and b"Timeout" in done.stderr
    assert time.monotonic() - start < 20


def test_ids_of_another_task_are_refused():
    domain, other = gym("chain_sum"), gym("gcd")
    problem = problem_of(other)
    with pytest.raises(ValueError, match=r"problem 'gcd-0-0': expected an id .* of chain_sum"):
        domain.verify([problem], ["<answer>1</answer>"])


# ---- a model's text is not run

EVALUATED = (*gym_entries.LISTS, *gym_entries.ARITHMETIC, *gym_entries.FORMULAS)


@pytest.mark.parametrize("name", EVALUATED)
def test_no_scorer_runs_what_a_model_wrote(name, pool, tmp_path):
    entry = Entry(Generator(name), 0, 0)
    folder = str(tmp_path / "made")
    spelled = "+".join(f"chr({ord(letter)})" for letter in folder)
    answers = [
        f"__import__('os').mkdir('{folder}')",
        f"[__import__('os').mkdir('{folder}')]",
        f"__import__(chr(111)+chr(115)).mkdir({spelled})",
        f"exec(chr(105)+{spelled})",
    ]
    assert pool.scores([entry] * 4, answers, 5.0, 60.0) == [0.0] * 4
    assert not Path(folder).exists()


def test_lists_are_still_read(pool):
    """string_insertion gives 0.1 to the right answer written as a list of characters."""
    entry = Entry(Generator("string_insertion"), 0, 0)
    [(found, _)] = pool.problems([entry], 60.0)
    answers = [str(list(found["answer"])), "[1,", found["answer"]]
    assert pool.scores([entry] * 3, answers, 5.0, 60.0) == [0.1, 0.0, 1.0]


def test_what_an_answer_may_be_made_of():
    good = {
        "countdown": ["12*(3 + 4)/2", "-1.5", " 1\n"],
        "simple_integration": ["3*x**2/2 + C", "-exp(2*x)*sin(x)", "log(x)^2", "2.5*X - .5"],
        "chain_sum": ["__import__('os')"],  # nobody evaluates it
    }
    bad = {
        "countdown": ["x", "__import__", "1;2", "[1]", "1e3"],
        "simple_integration": ["x.y", "(x).a", "x[0]", "'x'", "exec(x)", "lambda: 1", "x_", "é"],
    }
    for expected, cases in ((True, good), (False, bad)):
        for name, answers in cases.items():
            found = {answer: gym_entries.safe_answer(name, {}, answer) for answer in answers}
            assert found == dict.fromkeys(answers, expected)
    assert not gym_entries.safe_answer("simple_integration", {}, "2*alpha")
    assert gym_entries.safe_answer("simple_integration", {"symbols": ["alpha"]}, "2*alpha")
    start = time.perf_counter()
    assert not gym_entries.safe_answer("simple_integration", {}, "1" * 100_000 + "'")
    assert not gym_entries.safe_answer("countdown", {}, "1" * 100_000 + "'")
    assert time.perf_counter() - start < 1.0


def test_every_module_that_may_evaluate_text_was_read():
    """All files of the package: a call of `eval`, `exec` or the like stands only where
    `gym_entries` says what is done about it."""
    root = Path(reasoning_gym.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and gym_catalogue._evaluates(node):
                found.add(path.stem)
    known = {*EVALUATED, *gym_entries.RUNS_CODE, *gym_entries.HARMLESS}
    helpers = {"generators_00_49", "generators_50_99"}  # of gsm_symbolic: their own fractions
    assert found - helpers == known
    assert [name for name in generators() if runs_code(name)] == ["codeio"]


# ---- names and settings


def test_bad_names_and_settings_are_one_line():
    for name, settings, message in (
        ("chain_sun", {}, "no generator 'chain_sun'; the nearest are chain_sum"),
        ("composite", {}, "'composite' is a mixture; mix generators in config.task.train"),
        ("chain_sum", {"min_term": 1}, "no setting 'min_term'; known: min_terms, max_terms"),
        ("chain_sum", {"size": 1}, "'size' is set by the task"),
        ("chain_sum", {"min_terms": 0}, "refuses {'min_terms': 0}: min_terms must be positive"),
        ("chain_sum", {"min_terms": "x"}, "refuses {'min_terms': 'x'}: '>' not supported"),
        ("codeio", {}, "set config.task.options.run_code = True"),
    ):
        with pytest.raises(ValueError) as caught:
            check_generator("config.here", name, settings, run_code=False)
        text = str(caught.value)
        assert text.startswith("config.here: ") and message in text and "\n" not in text
    check_generator("config.here", "codeio", {}, run_code=True)


def test_scorers_that_accept_what_is_wrong_are_named(pool):
    for name, answer in (("game_of_life_halting", "no idea"), ("puzzle24", "6*4*1*1")):
        entries = [Entry(Generator(name), 0, index) for index in range(5)]
        assert pool.scores(entries, [answer] * 5, 5.0, 60.0) == [1.0] * 5
        with pytest.warns(UserWarning, match=f"config.here: {name}: its scorer"):
            check_generator("config.here", name, {}, run_code=False)


def test_lists_become_the_tuples_that_a_generator_wants():
    assert gym_entries.config_of("simple_equations", {"operators": ["+", "*"], "min_value": 2}) == {
        "operators": ("+", "*"),
        "min_value": 2,
    }
    ranges = {"rng_difficulty_ranges": [[0.0, 0.1]]}  # a list of tuples
    assert gym_entries.config_of("rearc", ranges) == ranges


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(gym_catalogue.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed; pip install 'reasoning-gym>="):
        check_generator("config.here", "chain_sum", {}, run_code=False)


def test_the_table_of_the_page_is_that_of_the_package():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "reasoning_gym.md").read_text()
    table = page.split("<!-- gym_table -->")[1].split("<!-- /gym_table -->")[0]
    rows = {
        cells[0]: cells
        for line in table.splitlines()
        if line.startswith("| ") and len(cells := line.strip("| ").split(" | ")) > 3
    }
    rows.pop("generator")
    # Of the version that the table names, which is that of constraints.txt.
    [named] = re.findall(r"reasoning-gym ([\d.]+\d),", table)
    assert f"reasoning-gym=={named}\n" in (root / "constraints.txt").read_text()
    if importlib.metadata.version("reasoning-gym") == named:
        assert tuple(rows) == generators()
    guarded = {name for name, cells in rows.items() if cells[-1].endswith(("only", "`run_code`"))}
    assert guarded == {*EVALUATED, *gym_entries.RUNS_CODE}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "box"}, "format = 'box' is unknown; one of answer_tag, boxed"),
        ({"reward": "all"}, "reward = 'all' is unknown; one of score, right"),
        ({"right_from": 0.0}, "right_from = 0.0: expected a score above 0"),
        ({"seconds": 0}, "seconds = 0: expected a positive number"),
        ({"template": "x"}, "template = 'x': expected a text that holds {problem}"),
        ({"separator": ""}, "separator = '': expected a non-empty text"),
        ({"boundary": "("}, "boundary = '(': expected a pattern of re"),
        ({"boundary": "x*"}, "boundary = 'x*': expected a pattern that stands between"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ValueError) as caught:
        ReasoningGym(**options)
    assert f"config.task.options.{message}" in str(caught.value)
    assert "\n" not in str(caught.value)
