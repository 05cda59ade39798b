"""Who is loaded for a run: what a config asks for, where it is laid out, and what is refused."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.fixtures import make_params, mesh_of
from support.hand_made import DOMAIN, PROBLEM, RIGHT, TOKENIZER
from support.hand_made import PLAIN as SMALL
from support.prm_fixtures import byte_level_tokenizer

from scope_jax import models, tasks, teachers
from scope_jax.configuration import TrainConfig, default_config, train_config
from scope_jax.configuration.schema import set_value
from scope_jax.data import Problems
from scope_jax.data.load import Task
from scope_jax.tasks import Domain, Problem
from scope_jax.text import save_tokenizer
from scope_jax.training.actors import attention_line, load_actors, planned_prm, planned_teacher

PLAIN = dataclasses.replace(SMALL, max_positions=2048)


def config_of(method: str = "scope", **settings: Any) -> TrainConfig:
    config = default_config(method)
    for name, value in settings.items():
        set_value(TrainConfig, config, name.replace("__", "."), value)
    return train_config(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints: `policy`, `other` of other numbers, `bare` without a tokenizer, `foreign` with
    another one, `prm`."""
    folder = tmp_path_factory.mktemp("actors")
    wide = dataclasses.replace(PLAIN, vocab_size=272)
    for name, config, seed, tokenizer in (
        ("policy", PLAIN, 1, TOKENIZER),
        ("other", PLAIN, 2, TOKENIZER),
        ("bare", PLAIN, 2, None),
        ("foreign", wide, 2, byte_level_tokenizer()),
        ("prm", PLAIN.with_head("prm"), 3, TOKENIZER),
    ):
        models.save(folder / name, config, make_params(config, seed))
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder / name)
    return folder


class Plain(Domain):
    """A domain that can verify and nothing else."""

    name, separator = "plain", "\n"

    def verify(self, problems: Any, completions: Any) -> Any:
        raise NotImplementedError


def task_of(domain: Domain = DOMAIN, *problems: Problem) -> Task:
    return Task(domain, Problems.from_list(problems or (PROBLEM,), "the problems"), {})


def teacher_of(
    config: TrainConfig, task: Task | None = None, workdir: Path | None = None
) -> teachers.Teacher:
    mesh = mesh_of("1")
    with jax.set_mesh(mesh):
        return planned_teacher(config, PLAIN, TOKENIZER, task or task_of(), mesh, workdir)()


def same_weights(params: models.Params, seed: int) -> bool:
    wanted = jax.tree.leaves(make_params(PLAIN, seed)["layers"])
    found = jax.tree.leaves(params["layers"])
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def waits_on_host(params: models.Params) -> bool:
    return "pinned_host" in {x.sharding.memory_kind for x in jax.tree.leaves(params)}


# ---- teachers


def test_a_model_is_loaded_and_may_wait_on_the_host(folder: Path):
    other = str(folder / "other")
    for place in ("device", "host"):
        teacher = teacher_of(config_of(models__teacher=other, placement__teacher=place))
        assert isinstance(teacher, teachers.ModelTeacher)
        assert teacher.generator is not None and teacher.tokenizer is None
        assert same_weights(teacher.generator.params, 2)
        assert waits_on_host(teacher.generator.params) == (place == "host")


def test_a_model_without_a_tokenizer_has_the_policys_where_sizes_agree(folder: Path):
    teacher = teacher_of(config_of(models__teacher=str(folder / "bare")))
    assert isinstance(teacher, teachers.ModelTeacher) and teacher.tokenizer is None


def test_a_teacher_with_the_policys_vocabulary_is_prompted_by_its_own_template(
    folder: Path, tmp_path: Path
):
    """The ids are the policy's; what stands around a prompt, and what ends a reply, is its own."""
    own = copy.deepcopy(TOKENIZER)
    own.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}="
    models.save(tmp_path / "chat", dataclasses.replace(PLAIN, end_ids=()), make_params(PLAIN, 2))
    save_tokenizer(own, tmp_path / "chat")
    assert TOKENIZER.chat_template != own.chat_template
    shown = {"teacher__template": "wrong_step", "teacher__prompt": "{prompt}{kept}{wrong}"}
    config = config_of(models__teacher=str(tmp_path / "chat"), **shown)
    teacher = teacher_of(config)
    assert isinstance(teacher, teachers.ModelTeacher) and teacher.tokenizer is None
    assert teacher.prompted_by.chat_template == own.chat_template
    assert teacher.generator is not None
    assert teacher.generator.config.end_ids == (TOKENIZER.eos_token_id,)
    # What cannot be shown to it is said before the weights are read, and so is a failing template.
    (tmp_path / "chat" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has characters the tokenizer lacks"):
        teacher_of(
            config_of(models__teacher=str(tmp_path / "chat"), teacher__template="wrong_step")
        )
    own.chat_template = "{{ nobody.knows }}"
    save_tokenizer(own, tmp_path / "chat")
    with pytest.raises(ValueError, match="template"):
        teacher_of(config)


def test_another_tokenizer_is_for_a_teacher_that_is_shown_texts(folder: Path):
    foreign = str(folder / "foreign")
    with pytest.raises(ValueError, match=r"another tokenizer .* set teacher\.template to 'wrong_"):
        teacher_of(config_of(models__teacher=foreign))
    config = config_of(models__teacher=foreign, teacher__template="wrong_step")
    teacher = teacher_of(config)
    assert isinstance(teacher, teachers.ModelTeacher) and teacher.tokenizer is not None
    assert teacher.tokenizer.get_vocab() == byte_level_tokenizer().get_vocab()
    # It cannot say how likely the policy's tokens are.
    spoken = {"teacher__template": "wrong_step", "localiser__kind": "likelihood"}
    with pytest.raises(ValueError, match=r"localiser\.kind 'likelihood' asks the teacher"):
        teacher_of(config_of(models__teacher=foreign, **spoken))
    # It does not write into the policy's rows.
    tail = dataclasses.replace(config, method=dataclasses.replace(config.method, tail="teacher"))
    with pytest.raises(ValueError, match="another tokenizer"):
        teacher_of(tail)


def test_a_model_on_a_mesh_of_its_own_must_fit_the_runs_devices(folder: Path):
    config = config_of(models__teacher=str(folder / "other"), mesh__teacher__tensor=2)
    with pytest.raises(ValueError, match=r"config\.mesh\.teacher: mesh data x fsdp x tensor"):
        teacher_of(config)


def test_the_policy_may_correct_itself():
    teacher = teacher_of(config_of(teacher__kind="self"))
    assert isinstance(teacher, teachers.ModelTeacher) and teacher.generator is None


def test_a_program_writes_in_one_of_its_domains_styles():
    teacher = teacher_of(config_of(teacher__kind="program", teacher__style="sorted"))
    assert isinstance(teacher, teachers.ProgramTeacher) and teacher.spec.style == "sorted"
    with pytest.raises(ValueError, match="= 'loud' is no style of 'arithmetic'; one of mixed, "):
        teacher_of(config_of(teacher__kind="program", teacher__style="loud"))
    with pytest.raises(ValueError, match="domain 'plain' has no program that writes steps"):
        teacher_of(config_of(teacher__kind="program"), task_of(Plain()))


def test_a_reference_needs_problems_with_solutions():
    solved = dataclasses.replace(PROBLEM, solution=RIGHT)
    config = config_of(teacher__kind="reference")
    teacher = teacher_of(config, task_of(DOMAIN, PROBLEM, solved))
    assert isinstance(teacher, teachers.ReferenceTeacher)
    with pytest.raises(ValueError, match="the problems: none of the problems looked at has a sol"):
        teacher_of(config)


def test_answers_of_an_endpoint_are_kept_in_the_workdir_unless_the_config_says_where(tmp_path):
    given = {
        "teacher__kind": "endpoint",
        "teacher__template": "wrong_step",
        "teacher__endpoint__url": "http://127.0.0.1:1/v1",
        "teacher__endpoint__model": "m",
    }
    for cache, wanted in ((None, "teacher_cache"), ("elsewhere", "elsewhere")):
        more = {} if cache is None else {"teacher__endpoint__cache": str(tmp_path / cache)}
        teacher = teacher_of(config_of(**given, **more), workdir=tmp_path)
        assert isinstance(teacher, teachers.EndpointTeacher)
        assert teacher.endpoint.spec.cache == str(tmp_path / wanted)


def test_a_teacher_needs_a_directory_and_a_vocabulary(folder: Path):
    with pytest.raises(ValueError, match=r"config\.models\.teacher is None; this config asks"):
        teacher_of(config_of())
    with pytest.raises(ValueError, match="head 'prm'; a teacher needs a vocabulary head"):
        teacher_of(config_of(models__teacher=str(folder / "prm")))


# ---- the process reward model


def test_a_process_reward_model_is_loaded_and_may_wait_on_the_host(folder: Path):
    mesh = mesh_of("1")
    for place in ("device", "host"):
        config = config_of(models__prm=str(folder / "prm"), placement__prm=place)
        with jax.set_mesh(mesh):
            prm = planned_prm(config, mesh)()
        assert same_weights(prm.params, 3)
        assert waits_on_host(prm.params) == (place == "host")
    with pytest.raises(ValueError, match=r"config\.models\.prm is None; this config scores steps"):
        planned_prm(config_of(), mesh)


# ---- all of them


def loaded(tmp_path: Path, method: str, **settings: Any):
    """The actors of a run on a data set of few problems."""
    options = {"lengths": (2,), "ood_lengths": (2,), "start": "zero"}
    options |= {f"{split}_size": 4 for split in ("train", "validation", "test", "test_ood")}
    given = {f"task__options__{name}": value for name, value in options.items()}
    mesh = mesh_of("1")
    with jax.set_mesh(mesh):
        config = config_of(method, task__data=str(tmp_path / "tfds"), **given, **settings)
        return load_actors(config, mesh)


def test_only_those_are_loaded_whom_the_method_asks(folder: Path, tmp_path: Path):
    policy = {"models__policy": str(folder / "policy")}
    others = {"models__teacher": str(folder / "other"), "models__prm": str(folder / "prm")}
    alone = loaded(tmp_path, "grpo", **policy, **others)
    assert (alone.teacher, alone.localiser) == (None, None)
    assert same_weights(alone.params, 1)
    assert alone.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert isinstance(alone.task.domain, tasks.Arithmetic) and len(alone.task.train) == 4
    assert alone.config.end_ids == (0,)

    full = loaded(tmp_path, "scope", **policy, **others)
    assert isinstance(full.teacher, teachers.ModelTeacher)
    assert full.localiser is not None and full.localiser.spec.kind == "prm"
    # The check of the domain needs no model.
    checked = {"models__teacher": str(folder / "other"), "localiser__kind": "oracle"}
    oracle = loaded(tmp_path, "scope", **policy, **checked)
    assert oracle.localiser is not None and oracle.localiser.spec.kind == "oracle"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (None, "config.models.policy is None; give the Hugging Face directory"),
        ("prm", "head 'prm'; a policy needs a vocabulary head ('lm')"),
    ],
)
def test_a_policy_needs_a_directory_and_a_vocabulary(folder, tmp_path, policy, message):
    settings = {} if policy is None else {"models__policy": str(folder / policy)}
    with pytest.raises(ValueError, match=re.escape(message)):
        loaded(tmp_path, "grpo", **settings)


def test_the_form_of_attention_is_said_for_each_model(folder: Path, tmp_path: Path):
    names = {
        f"models__{who}": str(folder / name)
        for who, name in (("policy", "policy"), ("teacher", "other"), ("prm", "prm"))
    }
    settings = {**names, "teacher__kind": "model", "localiser__kind": "prm"}
    actors = loaded(tmp_path, "scope", **settings)
    assert attention_line(actors, "float32") == (
        "attention: plain (plain products are what this device has, or was asked for) for policy,"
        " teacher, PRM"
    )
    # A device with a kernel, which takes heads of 4 only from multiples of 8 on.
    actors.config = dataclasses.replace(actors.config, attention="cudnn", head_size=64)
    assert attention_line(actors, "bfloat16").startswith("attention: cudnn for policy; plain (")
    assert "not cudnn: float32 would be rounded" in attention_line(actors, "float32")
    plain = loaded(tmp_path, "scope", models__attention="plain", **settings)
    assert plain.config.attention == plain.teacher.generator.config.attention == "plain"
    assert plain.localiser.model.config.attention == "plain"
