"""What an update computes again: the choice by a table of cases, and the foretold bytes against
what the compiler decided."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from support.fixtures import TINY, mesh_of, on_mesh

from scope_jax import models
from scope_jax.configuration import default_config, set_method, train_config
from scope_jax.devices import memory
from scope_jax.devices.mesh import make_mesh
from scope_jax.fit.programs import plan
from scope_jax.fit.shapes import Models
from scope_jax.learning import recompute
from scope_jax.learning.recompute import Choice, UpdateShape, Used, first_that_fits
from scope_jax.models.weights import weight_table
from scope_jax.training.actors import Actors
from scope_jax.training.learner import Learner
from scope_jax.training.recompute import chosen_remat, remats_of, update_shapes

GB = 1e9
SMALL = models.ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_size=32,
    ffn_size=384,
    max_positions=512,
)
LOCAL = dataclasses.replace(
    SMALL, model_type="gemma2", window=32, local_layers=(True, False) * 2, num_kv_heads=4
)


def config_of(**settings):
    config = default_config("grpo")
    config.models.policy, config.task.name, config.task.data = "p", "math", "data"
    config.task.train = {"some": {"path": "x", "fields": {"prompt": "p"}, "answer_from": "boxed"}}
    config.rollout.prompts, config.rollout.group = 8, 4
    config.rollout.prompt_tokens = config.rollout.new_tokens = 64
    config.mesh.data = 1
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in settings.items()}
    )
    return config


# ---- the choice


@pytest.mark.parametrize(
    ("needs", "limit", "remat", "line"),
    [
        ((8.9, 4, 2), 10, "none", "remat: none (needs 8.9 of 10.0 GB)"),
        ((9.1, 4, 2), 10, "dots", "remat: dots (needs 4.0 of 10.0 GB; none would need 9.1)"),
        ((21, 9.1, 2), 16, "dots", "remat: dots (needs 9.1 of 16.0 GB; none would need 21.0)"),
        (
            (21, 15, 14.4),
            16,
            "layer",
            "remat: layer (needs 14.4 of 16.0 GB; none would need 21.0, dots would need 15.0)",
        ),
        (
            (40, 30, 20),
            16,
            "layer",
            "remat: layer (needs 20.0 of 16.0 GB; none would need 40.0, dots would need 30.0;"
            " raise training.micro_batches or mesh.fsdp)",
        ),
    ],
)
def test_the_first_that_fits_with_a_tenth_to_spare(needs, limit, remat, line):
    asked = []

    def needed(name: str) -> float:
        asked.append(name)
        return needs[recompute.REMATS.index(name)] * GB

    choice = first_that_fits(needed, limit * GB)
    assert (choice.remat, choice.line()) == (remat, line)
    assert asked == list(recompute.REMATS[: recompute.REMATS.index(remat) + 1])


def test_without_a_limit_nothing_is_computed_again_and_it_is_said():
    choice = first_that_fits(lambda _: pytest.fail("not asked"), None)
    assert choice == Choice("none", (), None)
    assert choice.line() == "remat: none (how much memory the device has is not known)"


def test_what_is_resident_counts():
    shape = UpdateShape(8, 64, 32, 64)
    used = Used((("data", 1), ("fsdp", 1), ("tensor", 1)), "float32", "float32")
    needs = dict(recompute.choose(SMALL, [shape], used, 0.0, 1.0).needs)
    assert needs["none"] > 1.5 * needs["dots"] > 2 * needs["layer"]
    picked = [
        recompute.choose(SMALL, [shape], used, GB - needs[remat], GB / recompute.FILLED).remat
        for remat in recompute.REMATS
    ]
    assert picked == list(recompute.REMATS)


def test_the_largest_update_of_a_run_decides():
    config = config_of(sft__steps=2, sft__prompts=4, steps=5, training__mini_batches=2)
    set_method(config, "relift")
    config.method.buffer, config.training.micro_batches = 16, 4
    config.training.length_buckets = 2
    found = update_shapes(train_config(config), mesh_of("1"))
    # Four groups of four in two buckets and two passes of each; two demonstrations of 4 in two
    # mini-batches, in two buckets; sixteen of a buffer.
    assert found == [
        UpdateShape(1, 64, 4, 64, passes=2, buckets=2),
        UpdateShape(1, 64, 1, 64, passes=1, buckets=2),
        UpdateShape(4, 64, 4, 64, passes=2, buckets=2),
    ]


# ---- bytes


SPLIT = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}


@pytest.mark.parametrize(
    ("model", "settings", "remats"),
    [
        (SMALL, {"dtype": "bfloat16"}, ("none", "layer")),
        (SMALL, SPLIT, ("dots",)),
        pytest.param(SMALL, {"dtype": "bfloat16"}, ("dots",), marks=pytest.mark.long),
        pytest.param(SMALL, SPLIT, ("none", "layer"), marks=pytest.mark.long),
        pytest.param(SMALL, {}, recompute.REMATS, marks=pytest.mark.long),
        pytest.param(
            SMALL,
            {"training__micro_batches": 4, "rollout__new_tokens": 192},
            recompute.REMATS,
            marks=pytest.mark.long,
        ),
        pytest.param(SMALL, {"lora__rank": 4}, recompute.REMATS, marks=pytest.mark.long),
        pytest.param(LOCAL, {}, recompute.REMATS, marks=pytest.mark.long),
    ],
)
def test_foretold_bytes_against_the_compiler(model, settings, remats):
    """At most a tenth below what the compiler takes, and at most twice it."""
    for remat in remats:
        config = train_config(config_of(training__remat=remat, **settings))
        devices = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
        made = plan(config, Models(model), jax.devices()[:devices])
        [program] = [p for p in made.programs if p.name == "update"]
        with jax.set_mesh(program.mesh):
            truth = program.lower().compile().memory_analysis().temp_size_in_bytes
            [shape] = update_shapes(config, program.mesh)
            used = Used(
                tuple(program.mesh.shape.items()), config.dtype, "float32", config.lora.spec
            )
            found = recompute.temporaries(model, remat, shape, used)
        print(
            f"{settings} {remat}: {found / 1e6:.0f} foretold, {truth / 1e6:.0f} MB by the compiler"
        )
        assert 0.9 * truth < found < 2 * truth, remat


def test_rows_heads_and_vocabulary_are_divided():
    model = dataclasses.replace(SMALL, num_heads=8, num_kv_heads=4)
    shape = UpdateShape(16, 64, 64, 64)
    sizes = {"data": 2, "fsdp": 2, "tensor": 4}
    here = recompute.on_one_device(model, shape, sizes)
    assert (here.shape.prompts, here.shape.rows) == (4, 16)
    assert (here.model.num_heads, here.model.num_kv_heads, here.model.ffn_size) == (2, 1, 96)
    # One kv head cannot be divided, and is whole on each device.
    one = recompute.on_one_device(dataclasses.replace(SMALL, num_kv_heads=1), shape, sizes)
    assert (one.model.num_heads, one.model.num_kv_heads) == (1, 1)


@pytest.mark.parametrize(("local", "same"), [((True, False) * 2, True), ((), False)])
def test_a_kernel_that_the_windows_rule_out_is_not_counted_on(local, same):
    """The update of a model with and without windows takes plain products and keeps their scores,
    whatever kernel the device has."""
    model = dataclasses.replace(SMALL, head_size=128, window=32 * bool(local), local_layers=local)
    shape = UpdateShape(1, 64, 4, 64)
    used = Used((("data", 1), ("fsdp", 1), ("tensor", 1)), "bfloat16", "float32")
    with_kernel, plain = (
        recompute.temporaries(dataclasses.replace(model, attention=kernel), "none", shape, used)
        for kernel in ("splash", "plain")
    )
    assert (with_kernel == plain) is same and with_kernel <= plain


def test_gradients_and_copies_by_hand():
    """Of 5.3 million float32 bytes of weights, all but the embedding and the head in the layers."""
    shape = UpdateShape(8, 64, 32, 64)
    count = sum(np.prod(w.shape) for w in weight_table(SMALL).values())
    layers = sum(np.prod(w.shape) for p, w in weight_table(SMALL).items() if "layers/" in p)

    def size(remat="none", dtype="float32", passes=1, **sizes):
        mesh = {"data": 1, "fsdp": 1, "tensor": 1} | sizes
        used = Used(tuple(mesh.items()), dtype, "float32")
        return recompute.of_weights(SMALL, remat, dataclasses.replace(shape, passes=passes), used)

    assert size() == 4 * count and size(passes=2) == 8 * count
    assert size(dtype="bfloat16", passes=2) == (4 + 2) * count + 2 * layers
    # On four devices along fsdp each holds a quarter; and the gathered layers: all four, or three.
    assert size(fsdp=4) - 4 * layers == pytest.approx(count, rel=0.01)
    assert size("dots", fsdp=4) - 3 * layers == pytest.approx(count, rel=0.01)


def test_a_cpu_device_has_its_share_of_the_machine():
    found = memory.device_memory(make_mesh(devices=jax.devices()[:1]))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found is not None and 0 < found <= memory.CPU_SHARE * total / jax.device_count()


# ---- in a run


def test_a_run_and_fit_choose_the_same_and_say_it(monkeypatch, capsys):
    settings = train_config(
        config_of(
            rollout__new_tokens=16,
            rollout__prompt_tokens=16,
            loss__kl_weight=0.1,
            mesh__data=2,
            mesh__fsdp=2,
            mesh__tensor=2,
        )
    )
    mesh = mesh_of("2x2x2")
    made = plan(settings, Models(TINY), list(mesh.devices.flat), 1e9)
    # Weights and moments, and the weights at the start; not what is laid out for decoding.
    resident = sum(made.held[name] for name in ("weights", "moments", "start weights"))
    needs = dict(chosen_remat(settings, TINY, mesh, resident, 1.0).needs)
    for wanted in recompute.REMATS:
        limit = needs[wanted] / recompute.FILLED + 1
        monkeypatch.setattr("scope_jax.training.learner.device_memory", lambda _, n=limit: n)
        with on_mesh("2x2x2") as params:
            actors = Actors(TINY, params, None, None, None, None)
            learner = Learner(settings, actors, mesh, jax.random.key(0))
        said = capsys.readouterr().out.strip()
        assert learner.remat == wanted and said.startswith(f"remat: {wanted} (needs 0.0 of 0.0")
        again = plan(settings, Models(TINY), list(mesh.devices.flat), limit)
        assert said in again.notes


def test_what_is_given_is_taken_and_nothing_is_said(capsys):
    for remat in recompute.REMATS:
        config = train_config(config_of(training__remat=remat))
        with on_mesh("1") as params:
            actors = Actors(TINY, params, None, None, None, None)
            assert Learner(config, actors, mesh_of("1"), jax.random.key(0)).remat == remat
    assert capsys.readouterr().out == ""


def test_a_cpu_keeps_nothing_of_the_layers_of_a_large_model():
    assert remats_of("cpu", 135_000_000) == ("layer",)
    assert remats_of("cpu", 300_000) == remats_of("gpu", 135_000_000) == recompute.REMATS
    assert first_that_fits(lambda remat: 5.0, 10.0, ("layer",)).remat == "layer"
    assert first_that_fits(lambda remat: 5.0, None, ("layer",)).line() == (
        "remat: layer (how much memory the device has is not known)"
    )
