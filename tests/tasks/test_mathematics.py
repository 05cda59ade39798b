import pathlib
import time

import numpy as np
import pytest

from scope_jax.configs import checkpoints, methods, run, tasks
from scope_jax.configs.run import get_config
from scope_jax.configuration import default_config, train_config
from scope_jax.configuration.supervision import supervise_config
from scope_jax.data.load import TaskSpec, load_task
from scope_jax.tasks.answers import boxed_solution, hash_answer, last_boxed, normal_answer
from scope_jax.tasks.domain import Problem
from scope_jax.tasks.mathematics import SYSTEM, Mathematics

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{5}", "5"),
        ("\\boxed{1} and then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, \\{2\\}\\}}", "\\{1, \\{2\\}\\}"),
        ("\\fbox {7}", "7"),
        ("\\boxed{\\boxed{3} m}", "\\boxed{3} m"),
        ("\\boxed{4} but \\boxed{unclosed", "4"),
        ("thus $\\boxed 9$.", "9"),
        ("$\\boxed 9$, or \\boxed{8}", "8"),
        ("\\boxed{}", None),
        ("\\boxed", None),
        ("} { \\fbox{4} {", "4"),
        ("\\boxed{1} then \\boxed{ 2 }", "2"),
        ("no box, 5", None),
    ],
)
def test_the_last_box_with_balanced_braces(text, answer):
    assert last_boxed(text) == answer


def test_many_open_boxes_are_read_in_one_pass():
    """Of 100 kB: a search that starts anew at each open box takes minutes."""
    begin = time.monotonic()
    assert last_boxed("\\boxed{" * 14_000) is None
    assert last_boxed("\\boxed{1}" + "\\boxed{" * 14_000) == "1"
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a\n#### 42", "42"),
        ("a\n#### 1,234,567", "1234567"),
        ("a\n#### -3.5  \n", "-3.5"),
        ("#### 1\nno\n####2", "2"),
        ("#### 1, 2", "1, 2"),
        ("a\n #### 5", "5"),
        ("\t#### 5\r\n", "5"),
        ("#### 5\n##### 7", "5"),
        ("##### 7", None),
        ("######", None),
        ("in a line #### 4", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_number_after_the_hashes(text, answer):
    assert hash_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\dfrac{1}{2}", "\\frac12"),
        ("$ 10\\,000 $", "10,000"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("90^\\circ", "90^{\\circ}"),
        ("50\\%", "50"),
        ("\\text{blue} ", "blue."),
        ("1{,}000", "1000"),
    ],
)
def test_one_spelling(one, other):
    assert normal_answer(one) == normal_answer(other)


def test_other_answers_stay_different():
    texts = ["1", "-1", "0.5", "\\frac{1}{2}", "1,2", "12", "(1,2)", "[1,2]", "x", "x^2"]
    assert len({normal_answer(text) for text in texts}) == len(texts)


def test_the_domain():
    domain = Mathematics()
    assert (domain.name, domain.separator, domain.system) == ("math", "\n\n", SYSTEM)
    assert "\\boxed{}" in SYSTEM
    problem = Problem(
        "p", "What is 1/4 + 1/4?", "\\frac{1}{2}", "Add: <<1/4+1/4=1/2>>1/2.\n#### 1/2"
    )
    completions = ["It is \\boxed{0.5}", "\\boxed{\\dfrac12}", "\\boxed{2}", "nothing"]
    assert domain.verify([problem] * 4, completions) == [True, True, False, False]
    # The gold is the reference: (gold, prediction) is not symmetric, and a gold that cannot be
    # read leaves it open.
    assert domain.verify([Problem("q", "?", "")], ["\\boxed{1}"]) == [None]
    assert domain.verify([], []) == []
    assert domain.answer_of("first \\boxed{3}, then \\boxed{ \\dfrac{1}{2} }") == "\\frac{1}{2}"
    assert domain.answer_of("none") is None
    assert domain.answer_marker("so \\boxed{4") and not domain.answer_marker("so it is 4")
    assert (
        domain.check_steps(problem, ["a"]) is None
        and domain.next_step(problem, [], np.random.default_rng(0), "") is None
    )
    shown = domain.demonstration(problem, np.random.default_rng(0))
    assert shown == "Add: 1/2.\n\nThe final answer is $\\boxed{\\frac{1}{2}}$."
    assert domain.verify([problem], [shown]) == [True]
    assert domain.demonstration(Problem("q", "?", "1"), np.random.default_rng(0)) is None


def test_demonstrations_keep_what_has_a_box():
    text = "Half.\n\nSo \\boxed{1}"
    assert boxed_solution(text, "1") == text


def test_templates():
    problem = Problem("p", "2 + {problem}?", "1")
    assert Mathematics().policy_prompt(problem) == problem.prompt
    assert (
        Mathematics(template="Q: {problem}\nA:").policy_prompt(problem) == "Q: 2 + {problem}?\nA:"
    )
    with pytest.raises(ValueError, match=r"expected a text that holds {problem}"):
        Mathematics(template="Q:")
    with pytest.raises(ValueError, match="seconds -1"):
        Mathematics(seconds=-1)


# ---- from a config to a task


def write(path: pathlib.Path, rows: list[tuple[str, str]]) -> str:
    import json

    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    return path.name


def test_a_task_from_its_config(tmp_path):
    a = write(tmp_path / "a.jsonl", [("one and one", "2"), ("two and two", "4")])
    b = write(tmp_path / "b.jsonl", [("three?", "3")])
    test = write(tmp_path / "t.jsonl", [("Two and two!", "4")])
    settings = {
        "train": {"a": {"path": a, "weight": 3.0}, "b": {"path": b}},
        "evaluation": {"test": {"path": test}},
        "options": {"template": "Q: {problem}"},
    }
    task = load_task(TaskSpec("math", str(tmp_path), **settings))
    assert isinstance(task.domain, Mathematics) and task.domain.template == "Q: {problem}"
    assert sorted(p.id for p in task.train) == ["a/a-1", "a/a-2", "b/b-1"] and list(
        task.evaluation
    ) == ["test"]
    assert [p.id[0] for p in task.train.draw(0, 0, 8)].count(
        "a"
    ) == 6 and task.contamination is None
    reported = load_task(TaskSpec("math", str(tmp_path), **settings, decontaminate="report"))
    assert len(reported.train) == 3 and reported.contamination[0]["overlapping"] == 1
    removed = load_task(TaskSpec("math", str(tmp_path), **settings, decontaminate="remove"))
    assert (
        sorted(p.id for p in removed.train) == ["a/a-1", "b/b-1"]
        and removed.contamination[0]["removed"] == 1
    )
    assert [record["source"] for record in removed.contamination] == ["a", "b"]


def test_bad_settings_of_a_task(tmp_path):
    path = write(tmp_path / "a.jsonl", [("p", "2")])
    train = {"a": {"path": path}}
    for settings, message in (
        ({}, "config.task.train is empty"),
        (
            {"train": {"a": {"path": path, "splt": "x"}}},
            "config.task.train.a.splt: unknown key; the nearest known one is",
        ),
        ({"train": train, "evaluation": {"t": {}}}, "config.task.evaluation.t: path is empty"),
        ({"train": {"a": 3}}, "config.task.train.a = 3: expected the settings of a source"),
        (
            {"train": train, "options": {"sytem": "x"}},
            (
                "config.task.options.sytem: unknown; known: boundary, seconds, separator, system,"
                " template"
            ),
        ),
        (
            {"train": train, "options": {"separator": ""}},
            "math: separator '': expected a non-empty text",
        ),
        (
            {"train": train, "options": {"boundary": "(["}},
            "math: boundary '([': not a pattern of re",
        ),
        ({"train": train, "options": {"boundary": "x*"}}, "math: boundary 'x*' matches everywhere"),
        (
            {"train": train, "decontaminate": "yes"},
            "config.task.decontaminate = 'yes' is unknown; one of off, report, remove",
        ),
        (
            {"train": train, "decontaminate": "remove"},
            "config.task.decontaminate = 'remove' needs evaluation sets",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            load_task(TaskSpec("math", str(tmp_path), **settings))
        assert message in str(caught.value) and "\n" not in str(caught.value)


def domain_named(task: str) -> str:
    """The domain of a task of an embedded one."""
    return task.removesuffix("_long").removesuffix("_six")


@pytest.mark.parametrize("task", tasks.TASKS)
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_runs_on_every_task(method, task):
    config = get_config(f"{method},{task}")
    if task == "countdown_six" and "distill" in method:
        with pytest.raises(ValueError, match=r"teacher\.kind 'model', not 'program'"):
            train_config(config)  # which has no log-probs
    else:
        assert train_config(config).task.name in ("math", domain_named(task))


@pytest.mark.parametrize("words", checkpoints.CHECKPOINTS)
def test_every_checkpoint_is_one_that_its_program_makes(words):
    name, task = words.split(",")
    config = supervise_config(checkpoints.get_config(words))
    assert config.task.name == domain_named(task)
    assert config.target.name == ("prm" if name == "prm" else "policy")


@pytest.mark.parametrize(("module", "file"), [(run, "run.py"), (checkpoints, "checkpoints.py")])
def test_the_file_of_a_config_says_its_command(module, file):
    assert "python -m scope_jax." in module.__doc__ and f"configs/{file}:" in module.__doc__


def test_mistakes_in_a_source_are_found_before_anything_is_loaded():
    config = get_config("scope,math_1_5b")
    config.task.train.math.were = {"level": ("Level 3",)}
    with pytest.raises(
        ValueError,
        match=r"config\.task\.train\.math\.were: unknown key; the nearest known one is .*\.where",
    ):
        train_config(config)
    config = get_config("policy_gradient,gsm8k")
    config.task.evaluation.test.answer_from = "guess"
    with pytest.raises(ValueError, match=r"config\.task\.evaluation\.test: answer_from = 'guess'"):
        train_config(config)
    config = get_config("policy_gradient,gsm8k")
    config.task.trian = {}
    with pytest.raises(
        ValueError,
        match=r"config\.task\.trian: unknown key; the nearest known one is config\.task\.",
    ):
        train_config(config)


def test_a_tiny_run_on_files(tmp_path):
    """The program itself on a mixture of two files: prompts through a chat template, verdicts of
    math_verify, overlaps removed and written down, evaluation sets under their names, the count of
    problems consumed."""
    import json

    import jax
    from support.tokenizer_fixtures import byte_level

    from scope_jax import models
    from scope_jax.run import read_metrics
    from scope_jax.text import save_tokenizer
    from scope_jax.train import train

    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos=None, eos="<|endoftext|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor"
        " %}<|im_start|>assistant\n"
    )
    model = models.ModelConfig(264, 16, 1, 2, 1, 8, 16, end_ids=(0,))
    models.save(tmp_path / "policy", model, models.init(model, jax.random.key(0)))
    save_tokenizer(tokenizer, tmp_path / "policy")
    problems = [(f"What is {n} + {n}?", str(2 * n)) for n in range(9)]
    config = default_config()
    config.steps = 2
    config.task.name, config.task.data = "math", str(tmp_path)
    config.task.train = {
        "a": {"path": write(tmp_path / "a.jsonl", problems[:3]), "weight": 3.0},
        "b": {"path": write(tmp_path / "b.jsonl", problems[3:8])},
    }
    config.task.evaluation = {
        "test": {"path": write(tmp_path / "t.jsonl", problems[7:])},
        "other": {"path": write(tmp_path / "u.jsonl", [("Else?", "1")])},
    }
    config.task.decontaminate = "remove"
    config.task.options = {"system": "Box."}
    config.models.policy = str(tmp_path / "policy")
    config.rollout.update(
        {"prompts": 8, "group": 2, "prompt_tokens": 64, "new_tokens": 4, "chat": True}
    )
    config.evaluation.update({"samples": 2, "rows_at_once": 4, "problems": 2})
    train(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["data/prompts"] for row in rows] == [8, 16] and rows[-1]["data/dropped"] == 0
    assert all(row["reward/mean"] == 0 and row["reward/unscored"] == 0 for row in rows)
    assert rows[-1]["eval/problems"] == 2 and rows[-1]["eval_other/problems"] == 1
    record = json.loads((tmp_path / "run" / "decontamination.json").read_text())
    assert [(part["source"], part["checked"], part["removed"]) for part in record] == [
        ("a", 3, 0),
        ("b", 5, 1),
    ]
    assert record[1]["overlaps"] == [
        {"train": "b-5", "set": "test", "evaluation": "t-1", "text": "what is 7 + 7"}
    ]
    saved = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [
        0,
        2,
    ]  # <|im_end|> ends a turn too, which the base model's files did not say
