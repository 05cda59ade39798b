"""The settings of both programs: variants, what belongs together, names of earlier versions."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from scope_jax import cli
from scope_jax.configs import methods, run, tasks
from scope_jax.configuration import (
    METHODS,
    TrainConfig,
    default_config,
    set_method,
    supervision,
    train_config,
)
from scope_jax.configuration.files import load_file, read_config
from scope_jax.configuration.renamed import (
    NAMES,
    NONE_GIVEN,
    SUPERVISED_NAMES,
    upgraded,
    upgraded_supervised,
)
from scope_jax.configuration.schema import leaves, set_value
from scope_jax.learning.credit import OutcomeCredit
from scope_jax.train import MAY_DIFFER

HERE = Path(__file__).parent


def flat(tree: Any) -> dict[str, Any]:
    """{dotted name: value as JSON gives it back}."""
    return dict(leaves(json.loads(json.dumps(tree.to_dict()))))


def old(name: str, **changes: Any) -> dict[str, Any]:
    """All settings as version 0.1 wrote them into a workdir, with changes ("__" for a dot)."""
    values = dict(leaves(json.loads((HERE / name).read_text())))
    more = {key.replace("__", "."): value for key, value in changes.items()}
    assert more.keys() <= values.keys()
    return values | more


def test_a_refusal_of_the_whole_config_has_its_name_once():
    config = default_config("scope")
    config.method.place = "append"
    config.training.micro_batches, config.training.mini_batches = 8, 4
    config.rollout.prompts = 12
    with pytest.raises(ValueError) as error:
        train_config(config)
    assert str(error.value).startswith("config.training.micro_batches = 8 does not divide prompts")


# ---- one method at a time


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_its_settings_and_no_others(name):
    config = default_config(name)
    config.demonstrations.verified = True  # luffy's loss clones what is shown
    made = train_config(config)
    assert type(made.method) is METHODS[name] and config.method.name == name
    assert made.credit is made.method or isinstance(made.credit, OutcomeCredit)
    set_method(config, "relift")
    assert train_config(config).method == METHODS["relift"]()


def test_a_schedule_of_relift_needs_its_length():
    """Its supervised updates count, and how many there are nobody knows before."""
    config = default_config("relift")
    config.optimizer.schedule = "linear"
    with pytest.raises(ValueError, match=r"config\.optimizer\.schedule = 'linear': the supervised"):
        train_config(config)
    config.optimizer.steps = 300
    assert train_config(config).optimizer.steps == 300


@pytest.mark.parametrize(
    "name", ["rollout.temperature", "teacher.temperature", "advantage.overlong_penalty"]
)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(name, number):
    with pytest.raises(
        ValueError, match=rf"config\.{name} = -?(nan|inf): expected a finite number"
    ):
        set_value(TrainConfig, default_config("scope"), name, number)
    config = default_config("scope")
    section, last = name.split(".")
    config[section][last] = float(number)
    with pytest.raises(ValueError, match=rf"config\.{name} = .*: expected a finite number"):
        train_config(config)


def test_temperatures_of_one_name_are_one():
    config = default_config()
    config.evaluation.more_temperatures = (0.6, 0.60000001)  # both are eval_t0.6
    with pytest.raises(ValueError, match=r"more_temperatures = .* that differ from each other"):
        train_config(config)


@pytest.mark.parametrize(
    ("method", "key", "nearest"),
    [
        ("luffy", "tail", "name"),
        ("grpo", "select", "resample"),
        ("scope", "per_grup", None),
        ("relift", "per_group", None),
        ("vppo", "process_weight", None),
        ("process", "alpha", None),
    ],
)
def test_settings_of_two_methods_cannot_be_written(method, key, nearest):
    config = default_config(method)
    config.method[key] = 1
    with pytest.raises(
        ValueError, match=rf"config\.method\.{key}: unknown key; the nearest"
    ) as one:
        train_config(config)
    assert nearest is None or f"config.method.{nearest}" in str(one.value)
    with pytest.raises(ValueError, match=rf"config\.method\.{key}: unknown key; the nearest known"):
        set_value(TrainConfig, default_config(method), f"method.{key}", "1")


def test_an_unknown_method_is_named_with_those_that_there_are():
    for make in (default_config, lambda name: set_method(default_config(), name)):
        with pytest.raises(ValueError, match="method 'gpo' is unknown; one of grpo, scope, luffy"):
            make("gpo")
    config = default_config()
    config.method.name = "gpo"
    with pytest.raises(ValueError, match=r"config\.method\.name = 'gpo' is unknown; one of grpo"):
        train_config(config)
    with pytest.raises(ValueError, match=r"'luffy': this config is one of 'scope', .* start from"):
        set_value(TrainConfig, default_config("scope"), "method.name", "luffy")
    with pytest.raises(ValueError, match="target 'reward' is unknown; policy or prm"):
        supervision.default_config("reward")


# ---- from the command line to the tree


def of_command_line(*words: str, config: str = "scope,arithmetic") -> TrainConfig:
    overrides, left = cli.split_overrides(["x", f"--config={config}", *words])
    assert left == ["x", f"--config={config}"]
    made = read_config(config, "run.py")
    for name, text in overrides:
        set_value(TrainConfig, made, name, text)
    return train_config(made)


def test_overrides_are_taken_out_of_the_arguments():
    words = ["x", "--config=a.py:b", "--config.steps=3", "--workdir=w", "--config.loss.ratio"]
    words += ["token", "-config.seed=1", "--config.task.options.a=b=c", "--config.rollout.chat"]
    assert cli.split_overrides(words) == (
        [
            ("steps", "3"),
            ("loss.ratio", "token"),
            ("seed", "1"),
            ("task.options.a", "b=c"),
            ("rollout.chat", "true"),
        ],
        ["x", "--config=a.py:b", "--workdir=w"],
    )
    assert cli.split_overrides(["--config.rollout.chat", "--workdir=w"]) == (
        [("rollout.chat", "true")],
        ["--workdir=w"],
    )


def test_bounds_are_taken_away_and_given_back():
    loss = of_command_line("--config.loss.clip_high=None", "--config.loss.tis_cap=None").loss
    assert (loss.clip_low, loss.clip_high, loss.tis_cap) == (0.2, None, None)
    again = "--config.loss.clip_high=None", "--config.loss.clip_high=0.3"
    loss = of_command_line(
        *again, "--config.loss.tis_cap=2", "--config.loss.old_logp=recompute"
    ).loss
    assert (loss.clip_high, loss.tis_cap) == (0.3, 2.0)
    # LUFFY's config has no bounds: a number may stand where None stood.
    before = train_config(run.get_config("luffy,arithmetic")).loss
    after = of_command_line("--config.loss.clip_low=0.2", config="luffy,arithmetic").loss
    assert before.clip_low is None and after == dataclasses.replace(before, clip_low=0.2)
    for text in ("8", "None"):
        seats = of_command_line(f"--config.rollout.seats={text}").rollout.seats
        assert seats == (8 if text == "8" else None)


def test_tuples_and_what_lies_below_a_free_section():
    made = of_command_line(
        "--config.method.select.quantiles=0,0.5",
        "--config.lora.targets=query,value",
        "--config.task.options.lengths=(3, 4)",
        "--config.task.options.moduli=(10, 9)",
    )
    assert made.method.select.quantiles == (0.0, 0.5) and made.lora.targets == ("query", "value")
    assert made.task.options["lengths"] == (3, 4) and made.task.options["moduli"] == (10, 9)
    assert made.task.options["start"] == "zero"  # the file's own
    made = of_command_line(
        "--config.task.train.math.path=elsewhere",
        "--config.task.train.more.path=m.jsonl",
        "--config.task.train.more.weight=2",
        config="grpo,math_1_5b",
    )
    assert made.task.train["math"]["path"] == "elsewhere"
    assert made.task.train["math"]["answer_from"] == "boxed"
    assert made.task.train["more"] == {"path": "m.jsonl", "weight": 2}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.tis_cap=2.0", "use 'recompute'"),
        ("loss.clip_high=much", "config.loss.clip_high = 'much': expected a value of type float"),
        ("steps=None", "config.steps = 'None': expected a value of type int"),
        ("loss.clip_hihg=0.3", "config.loss.clip_hihg: unknown key; the nearest known one is"),
        ("correction.threshold=0.4", "renamed; it is now config.localiser.threshold"),
        ("correction.select.rule=all", "renamed; it is now config.method.select.rule"),
        ("correction.enabled=True", "renamed; it is now config.method: start from default_config("),
        ("rollout.slots=8", "renamed; it is now config.rollout.seats"),
        ("meshes.prm.fsdp=8", "renamed; it is now config.mesh.prm.fsdp"),
        ("mesh.tensor=0", "config.mesh.tensor = 0 must be at least 1, or -1"),
        ("mesh.data=-2", "config.mesh.data = -2 must be at least 1, or -1"),
        ("seed=-1", "config.seed = -1 must be 0 or more"),
        ("evaluation.temperature=-0.5", "config.evaluation.temperature = -0.5 must be 0 or more"),
        ("rollout.top_k=0", "config.rollout.top_k = 0 must be at least 1"),
        ("method.name=foo", "config.method.name = 'foo' is unknown; one of grpo, scope, luffy"),
        ("method.name=luffy", "start from a config of 'luffy'"),
    ],
)
def test_a_bad_word_is_answered_in_one_line(word, message):
    with pytest.raises(ValueError) as error:
        of_command_line(f"--config.{word}")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        ("grpo", "focal=-1", "config.advantage.focal = -1.0 must be a number of 0 or more"),
        ("grpo", "unique=2", "config.advantage.unique = '2': expected true or false"),
        ("grpo", "pass_k=0", "config.advantage.pass_k = 0 must be at least 1"),
        ("grpo", "pass_k=9", "config.advantage.pass_k = 9 is more than rollout.group = 8"),
        ("dapo", "pass_k=4", "would leave the punishment out: set advantage.overlong_tokens to N"),
        (
            "vppo",
            "unique=true",
            "config.advantage.unique changes the advantage of the outcome, w",
        ),
        ("vppo", "smoothing=0.1", "which method 'vppo' does not use; leave it at its default"),
        ("prm_min", "focal=1 method.outcome_weight=0", "method.outcome_weight = 0 takes away"),
    ],
)
def test_switches_of_the_advantage_that_cannot_be(config, words, message):
    given = [word if word.startswith("method.") else f"advantage.{word}" for word in words.split()]
    with pytest.raises(ValueError) as error:
        of_command_line(*(f"--config.{word}" for word in given), config=f"{config},arithmetic")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_pass_k_takes_the_verifier_alone():
    config = run.get_config("grpo,arithmetic")
    config.advantage.pass_k = config.rollout.group = 8
    config.reward.accept = 0.5  # another threshold of the same verdicts
    assert train_config(config).advantage.switched == ("pass_k",)
    config.reward.functions = {"outcome": "outcome", "shape": {"function": "a:b", "weight": 0.5}}
    with pytest.raises(ValueError, match="would leave the other parts of the reward out: set it"):
        train_config(config)
    config.reward.functions = {"outcome": "outcome", "shape": {"function": "a:b", "weight": 0}}
    train_config(config)  # a metric only


# Two do not look at the outcome, and say so.
@pytest.mark.parametrize("name", sorted({*methods.METHODS} - {"vppo", "distill"}))
def test_every_method_of_groups_takes_the_switches(name):
    config = run.get_config(f"{name},arithmetic")
    config.advantage.update({"focal": 1.0, "positive_weight": 0.5, "unique": True})
    config.advantage.smoothing = 0.05
    assert len(train_config(config).advantage.switched) == 4


# ---- config files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = (\n", "mine.py, line 2: SyntaxError: '(' was never closed"),
        ("x = 1\n\ny = x / 0\n", "mine.py, line 3: ZeroDivisionError: division by zero"),
        ("import nowhere\n", "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("raise ValueError('as it says')\n", "as it says"),
    ],
)
def test_a_config_file_that_cannot_be_run(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError) as error:
        read_config(str(tmp_path / "mine.py"), "run.py")
    assert str(error.value).endswith(message)


def test_a_config_without_its_task():
    with pytest.raises(ValueError, match="scope: the task is missing, as in scope,arithmetic"):
        read_config("scope", "run.py")


def test_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = run.get_config("luffy,countdown").to_dict()
    for name in ("luffy,countdown", "configs/run.py:luffy,countdown", "run.py:luffy,countdown"):
        assert read_config(name, "run.py").to_dict() == wanted
    assert read_config("prm,countdown", "checkpoints.py").target.name == "prm"
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from scope_jax.configs import run\n\n\ndef get_config():\n"
        "    config = run.get_config('grpo,arithmetic')\n    config.steps = 3\n    return config\n"
    )
    for name in ("mine.py", str(mine)):
        assert read_config(name, "run.py").steps == 3
    # What lies in the folder goes before what is shipped.
    (tmp_path / "run.py").write_text(mine.read_text())
    assert read_config("run.py", "checkpoints.py").steps == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = 1", r"a\.py: no function get_config\(\)"),
        ("get_config = dict", r"a\.py: get_config\(\) must return a ConfigDict, not dict"),
        (
            "from scope_jax.configuration import default_config\n\n\ndef get_config():\n"
            "    config = default_config()\n    return config.corection",
            r"a\.py: .*corection",
        ),
    ],
)
def test_a_file_that_is_no_config(tmp_path, body, message):
    (tmp_path / "a.py").write_text(body)
    with pytest.raises(ValueError, match=message) as error:
        read_config(str(tmp_path / "a.py"), "run.py")
    assert "\n" not in str(error.value)


def test_names_that_nothing_is_found_under(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nothing.py", "configs/nothing.py:a"):
        with pytest.raises(FileNotFoundError, match=r"nothing\.py: no such file, and none of the"):
            read_config(name, "run.py")
    with pytest.raises(FileNotFoundError):
        load_file("nothing")
    with pytest.raises(ValueError, match="method 'scop' is unknown, the nearest is 'scope'"):
        read_config("scop,arithmetic", "run.py")
    with pytest.raises(ValueError, match="the task is missing, as in"):
        read_config("scope", "run.py")
    with pytest.raises(ValueError, match="expected NAME,TASK, one of base,arithmetic"):
        read_config("sft,arithmetic", "checkpoints.py")


def test_a_method_of_a_task_says_where_its_weights_lie():
    for method in methods.METHODS:
        for task in tasks.TASKS:
            if task == "countdown_six" and "distill" in method:
                continue  # its teacher is a program, which has no log-probs
            made = train_config(run.get_config(f"{method},{task}"))
            assert bool(made.models.policy)
            assert not made.uses_prm or made.models.prm
            assert not made.uses_teacher or made.teacher.kind != "model" or made.models.teacher


# ---- what follows from other settings


def test_a_schedule_runs_over_all_updates():
    config = default_config()
    config.steps, config.training.epochs, config.training.mini_batches = 30, 2, 4
    assert train_config(config).optimizer.steps == 240
    config.sft.steps = 10  # on demonstrations: in parts, but once
    assert train_config(config).optimizer.steps == 10 * 4 + 20 * 2 * 4
    config.sft.steps = 40
    assert train_config(config).optimizer.steps == 30 * 4
    config.optimizer.steps = 7
    assert train_config(config).optimizer.steps == 7


def test_the_constant_normaliser_is_the_longest_completion():
    config = default_config()
    config.rollout.new_tokens = 33
    assert train_config(config).loss.max_new_tokens == 33
    config.loss.max_new_tokens = 5
    with pytest.raises(ValueError, match=r"config\.loss\.max_new_tokens: unknown key"):
        train_config(config)


# ---- earlier versions


def every_setting(*configs: Any) -> set[str]:
    return {name for config in configs for name, _ in leaves(config.to_dict())}


def test_todays_names_are_names_of_today():
    train = every_setting(*map(default_config, METHODS))
    supervise = every_setting(*map(supervision.default_config, ("policy", "prm")))
    for names, known in ((NAMES, train), (SUPERVISED_NAMES, supervise)):
        for before, now in names.items():
            assert any(name == now or name.startswith(f"{now}.") for name in known), now
            assert before not in known, before
    assert set(NONE_GIVEN) <= train | supervise


# What that version did not have; a workdir of it goes on with the defaults.
SINCE = {
    "matmul_precision",
    "advantage.baseline",
    "advantage.batch_std",
    "localiser.function",
    "localiser.memory_mb",
    "localiser.seconds",
    "localiser.workers",
    "loss.distill_form",
    "loss.distill_weight",
    "loss.mask_high",
    "loss.mask_level",
    "loss.mask_low",
    "loss.outcome_weight",
    "loss.sapo_negative",
    "loss.sapo_positive",
    "loss.surrogate",
    "loss.teacher_steps",
    "loss.tis_level",
    "mesh.expert",
    "mesh.prm.expert",
    "mesh.teacher.expert",
    "method.candidates",
    "method.choose",
    "method.credit",
    "method.spare_prefix",
    "advantage.focal",
    "advantage.pass_k",
    "advantage.pass_k_schedule",
    "advantage.positive_weight",
    "advantage.smoothing",
    "advantage.unique",
    "evaluation.more_temperatures",
    "models.attention",
    "models.prm_weights",
    "models.teacher_weights",
    "reward.accept",
    "reward.accept_by",
    "reward.function",
    "reward.functions",
    "reward.memory_mb",
    "reward.seconds",
    "reward.workers",
    "samples.rollouts",
    "samples.show_every",
    "teacher.first",
    "teacher.self_tries",
    "track.group",
    "track.name",
    "track.tags",
    "track.trackio",
    "track.wandb",
}


def known_then(config) -> dict:
    """The defaults as that version had them. It had another one for what is computed again, which
    a run may change where it goes on."""
    known = {name: value for name, value in flat(config).items() if name not in SINCE}
    assert "training.remat" in MAY_DIFFER
    return known | {"training.remat": "none"}


def supervised_then(target: str = "policy") -> dict:
    """The same of a supervised run."""
    known = flat(supervision.default_config(target))
    return {name: value for name, value in known.items() if name not in SINCE}


def test_the_defaults_of_an_earlier_version_are_those_of_today():
    assert upgraded(old("old_config.json")) == known_then(default_config())
    assert upgraded_supervised(old("old_training.json")) == supervised_then()


@pytest.mark.parametrize(
    ("method", "before", "now"),
    [
        (
            "scope",
            {"correction__enabled": True, "correction__rows": 4, "correction__threshold": 0.8},
            {"method.rows_at_once": 4, "localiser.threshold": 0.8},
        ),
        (
            "scope",
            {"correction__enabled": True, "correction__step_tokens": 8, "meshes__prm__data": -1},
            {"teacher.step_tokens": 8, "mesh.prm.data": -1},
        ),
        ("luffy", {"demonstrations__per_group": 2}, {"method.per_group": 2}),
        ("relift", {"demonstrations__buffer": 4}, {"method.buffer": 4}),
        (
            "process",
            {"advantage__process": "sum", "advantage__process_weight": 0.1},
            {"method.process_weight": 0.1},
        ),
        ("pure", {"advantage__process": "min"}, {}),
        (
            "vppo",
            {"advantage__process": "prefix", "advantage__alpha": 0.25, "rollout__resample": 2},
            {"method.alpha": 0.25, "method.resample": 2},
        ),
        ("grpo", {"rollout__resample": 2, "rollout__slots": 8}, {"method.resample": 2}),
        (
            "grpo",
            {"demonstrations__supervised_steps": 10, "demonstrations__rows": 32},
            {"sft.steps": 10, "sft.prompts": 32},
        ),
        ("grpo", {"models__policy": "x", "loss__clip_high": None}, {"models.policy": "x"}),
    ],
)
def test_a_config_of_an_earlier_version_under_todays_names(method, before, now):
    got = upgraded(old("old_config.json", **before))
    now = now | {name: got[name] for name in ("rollout.seats", "loss.clip_high")}
    assert got == known_then(default_config(method)) | now
    assert got["rollout.seats"] == (8 if "rollout__slots" in before else None)
    assert upgraded(got) == got  # nothing is left to rename


def test_a_supervised_directory_of_an_earlier_version():
    before = {"kind": "prm", "threshold": 0.4, "rollouts__policy": "p", "labels__continuations": 3}
    got = upgraded_supervised(old("old_training.json", **before, rollouts__new_tokens=9))
    assert got == supervised_then("prm") | {
        "target.threshold": 0.4,
        "target.rollouts.policy": "p",
        "target.rollouts.new_tokens": 9,
        "target.labels.continuations": 3,
    }
    got = upgraded_supervised(
        old("old_training.json", demonstrations__anyones_prefix=True, task__lengths=[2, 3])
    )
    assert got == supervised_then() | {
        "target.foreign_prefix": True,
        "fresh.lengths": [2, 3],
    }
    assert upgraded_supervised(got) == got


def test_the_settings_of_a_sweeps_record_of_an_earlier_version():
    """They are those that differ from the defaults."""
    record = {
        "seed": 7,
        "models.prm": "cache/checkpoints/prm",
        "correction.enabled": True,
        "correction.step_tokens": 8,
        "correction.select.rule": "band",
        "evaluation.new_tokens": 39,
        "task.options.lengths": [5, 6],
    }
    assert upgraded(record) == {
        "seed": 7,
        "models.prm": "cache/checkpoints/prm",
        "method.name": "scope",
        "teacher.step_tokens": 8,
        "method.select.rule": "band",
        "evaluation.new_tokens": 39,
        "task.options.lengths": [5, 6],
    }
    assert upgraded({"seed": 1, "advantage.process": "prefix", "advantage.alpha": 0.25}) == {
        "seed": 1,
        "method.name": "vppo",
        "method.alpha": 0.25,
    }
    assert upgraded({"seed": 1, "advantage.std": True}) == {"seed": 1, "advantage.std": True}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("correction.threshold", 0.4, "config.correction.threshold: renamed; it is now config.loc"),
        ("advantage.process", "sum", "config.advantage.process: renamed; it is now config.method"),
        ("demonstrations.per_group", 1, "renamed; it is now config.method.per_group"),
        ("evaluation.rows", 8, "renamed; it is now config.evaluation.rows_at_once"),
    ],
)
def test_an_old_name_in_a_config_file_gives_its_new_one(key, value, message):
    config = default_config()
    written_below(config, key, value)
    with pytest.raises(ValueError) as error:
        train_config(config)
    assert message in str(error.value) and "\n" not in str(error.value)


def written_below(config: Any, key: str, value: Any) -> None:
    section, _, last = key.rpartition(".")
    if section not in config:
        config[section] = {}
    config[section][last] = value


def test_an_old_name_of_a_supervised_run_gives_its_new_one():
    config = supervision.default_config()
    config.kind = "prm"
    with pytest.raises(ValueError, match=r"config\.kind: renamed; it is now config\.target\.name"):
        supervision.supervise_config(config)
    with pytest.raises(ValueError, match=r"renamed; it is now config\.target\.foreign_prefix"):
        set_value(
            supervision.SuperviseConfig,
            supervision.default_config(),
            "demonstrations.anyones_prefix",
            "true",
        )
