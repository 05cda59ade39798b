"""`task.options` and sources as the command line gives them: what is taken, and one line for what
is not."""

import pytest

from scope_jax.configuration import TrainConfig, train_config
from scope_jax.configuration.files import read_config
from scope_jax.configuration.schema import set_value
from scope_jax.data.load import TaskSpec, domain_of
from scope_jax.data.sources import source_of


def task_of(words: str, *given: tuple[str, str]):
    config = read_config(words, "run.py")
    for name, text in given:
        set_value(TrainConfig, config, name, text)
    return train_config(config).task


@pytest.mark.parametrize(
    ("words", "name", "text", "found"),
    [
        ("grpo,arithmetic", "lengths", "5,6", (5, 6)),
        ("grpo,arithmetic", "lengths", "5", (5,)),
        ("grpo,arithmetic", "start", "zero", "zero"),
        ("grpo,arithmetic", "moduli", "(7, 5)", (7, 5)),
        ("grpo,arithmetic", "marks", "true", True),
        ("grpo,arithmetic_long", "marks", "false", False),
        ("grpo,countdown", "ood_lengths", "[5]", (5,)),
        ("grpo,gsm8k", "system", "", ""),
        ("grpo,gsm8k", "system", "None", None),
        ("grpo,gsm8k", "seconds", "2", 2.0),
        ("grpo,gsm8k", "template", "Q: {problem}", "Q: {problem}"),
    ],
)
def test_options_on_the_command_line(words, name, text, found):
    task = task_of(words, (f"task.options.{name}", text))
    domain = domain_of(task)
    if hasattr(domain, name):
        assert getattr(domain, name) == found
    else:
        value = task.options[name]
        assert (tuple(value) if isinstance(value, list | tuple) else (value,)) == found


@pytest.mark.parametrize(
    ("words", "name", "text", "message"),
    [
        ("grpo,arithmetic", "lengths", "x", "lengths = 'x': expected a value of type int"),
        ("grpo,arithmetic", "lengths", "None", "lengths = None: expected a value of type int"),
        ("grpo,arithmetic", "moduli", "5", "moduli = 5: expected 2 values"),
        ("grpo,arithmetic", "start", "5", "start = 5: expected a value of type str"),
        ("grpo,arithmetic", "test_size", "[]", "test_size = []: expected a value of type int"),
        ("grpo,countdown", "bogus", "1", "bogus: unknown; known: largest, largest_number, leng"),
        ("grpo,gsm8k", "seconds", "true", "seconds = True: expected a value of type float"),
    ],
)
def test_options_of_another_type(words, name, text, message):
    with pytest.raises(ValueError) as caught:
        domain_of(task_of(words, (f"task.options.{name}", text)))
    assert str(caught.value).startswith(f"config.task.options.{message}")


def test_a_further_source_on_the_command_line():
    task = task_of(
        "grpo,gsm8k",
        ("task.train.more.path", "more.jsonl"),
        ("task.train.more.fields.prompt", "question"),
        ("task.train.more.weight", "2"),
    )
    assert sorted(task.train) == ["gsm8k", "more"]
    source = source_of(task.train["more"], "config.task.train.more", task.data)
    assert (source.path, source.weight) == (f"{task.data}/more.jsonl", 2)
    assert source.fields == {"prompt": "question"}
    with pytest.raises(ValueError, match=r"more: fields.prompt = 5: expected the data set's name"):
        task_of(
            "grpo,gsm8k",
            ("task.train.more.path", "more.jsonl"),
            ("task.train.more.fields.prompt", "5"),
        )


def test_a_split_that_is_evaluated_or_that_a_task_has_not_is_refused():
    for split in ("test", "test_ood"):
        with pytest.raises(ValueError, match="is what a run is evaluated on"):
            TaskSpec(name="arithmetic", train_split=split)
    assert TaskSpec(name="arithmetic", train_split="validation").train_split == "validation"
    with pytest.raises(ValueError, match=r"config\.task\.train_split = 'validation' is of"):
        TaskSpec(name="math", train={"a": {"path": "x"}}, train_split="validation")
