"""`scope_jax.fit`: slices, rooflines, reading compiled programs, the programs themselves; with
libtpu also compiling for a TPU."""

import dataclasses
import importlib
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from support.fixtures import TINY, mesh_of, on_mesh
from support.small_config import SMALL, small_config

from scope_jax import learning, models
from scope_jax.configuration import default_config, set_method, train_config
from scope_jax.devices.memory import local_bytes
from scope_jax.fit import command, hlo, hlo_text, largest, lint, measure, table, topology, tpu
from scope_jax.fit.known_models import model_shapes
from scope_jax.fit.measure import roofline
from scope_jax.fit.programs import plan
from scope_jax.fit.shapes import Models, for_decoding, laid_out_like, train_state
from scope_jax.fit.topology import parse_topology
from scope_jax.learning.recompute import Used, temporaries
from scope_jax.models.costs import (
    attention_flops,
    generate_work,
    head_flops,
    score_work,
    seen,
    token_flops,
    update_work,
)
from scope_jax.models.weights import weight_table
from scope_jax.rollout import SampleSpec, from_prompts
from scope_jax.sweep.runs import config_of
from scope_jax.training.recompute import update_shapes

# The function of this name hides its module in the package.
generate_module = importlib.import_module("scope_jax.rollout.generate")
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
# ---- slices


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("v5e:2x4", (2, 4), 8),
        ("V6E:8x8", (8, 8), 64),
        ("v5p:4x4x4", (4, 4, 4), 64),
        ("tpu7x:2x2x1", (2, 2, 1), 8),
        ("v5e:1x1", (1, 1), 1),
    ],
)
def test_a_topology_is_a_kind_and_its_sides(name, shape, count):
    topology = parse_topology(name)
    assert topology.shape == shape
    assert topology.devices == count
    assert topology.name == name.lower()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e", "expected kind:AxB"),
        ("v5litepod-8", "known: v5e:2x2"),
        ("v4:2x2x2", "known: v5e:2x2"),
        ("v5e:8", "expected kind:AxB"),
        ("v5e:2x0", "expected kind:AxB"),
        ("v5e:2x2x2", "torus of 2 dimensions"),
        ("v5p:4x4", "torus of 3 dimensions"),
        ("v5e:3x3", "sides are even"),
    ],
)
def test_an_unknown_topology_is_refused_with_what_is_known(name, says):
    with pytest.raises(ValueError, match=says) as error:
        parse_topology(name)
    assert "\n" not in str(error.value)


def test_a_ring_needs_a_side_that_closes():
    # 1600 Gbit/s over 4 ports = 50 GB/s a link; no side of 2 x 4 is a ring, a side of 16 is one.
    assert parse_topology("v5e:2x4").axis_rate == 50e9
    assert parse_topology("v5e:16x16").axis_rate == 100e9
    assert parse_topology("v5p:4x4x4").axis_rate == 200e9


def test_without_libtpu_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "scope_jax\[fit\]"'):
        topology.devices(parse_topology("v5e:2x4"))


# ---- models


@pytest.mark.parametrize(
    ("directory", "billions", "head"),
    [
        ("models/Qwen2.5-Math-1.5B", 1.544, "lm"),
        ("models/Qwen2.5-Math-7B-Instruct", 7.616, "lm"),
        ("models/Qwen2.5-Math-72B-Instruct", 72.706, "lm"),
        ("models/Qwen2.5-Math-PRM-7B", 7.083, "prm"),
        ("models/Llama-3.1-8B-Instruct", 8.030, "lm"),
        ("models/Meta-Llama-3.1-8B", 8.030, "lm"),
        ("models/Qwen3-8B", 8.191, "lm"),
        ("models/Qwen3-30B-A3B-Base", 30.532, "lm"),
        ("models/Qwen3-235B-A22B", 235.094, "lm"),
        ("models/SmolLM3-3B", 3.075, "lm"),
        ("models/OLMo-2-0425-1B-Instruct", 1.485, "lm"),
        ("models/Olmo-3-1025-7B", 7.298, "lm"),
        ("models/Phi-3-mini-4k-instruct", 3.821, "lm"),
        ("models/phi-4", 14.660, "lm"),
        ("models/Phi-4-mini-instruct", 3.836, "lm"),
    ],
)
def test_built_in_shapes_have_the_published_number_of_parameters(directory, billions, head):
    config, source = model_shapes(directory)
    count = sum(math.prod(weight.shape) for weight in weight_table(config).values())
    assert count / 1e9 == pytest.approx(billions, abs=0.0006)
    assert config.head == head
    assert source.startswith("published ")


def test_a_directory_on_disk_goes_before_a_built_in_model(tmp_path):
    there = tmp_path / "Qwen2.5-7B"
    there.mkdir()
    (there / "config.json").write_text(json.dumps(SMALL))
    config, source = model_shapes(str(there))
    assert config.hidden_size == 256
    assert source == f"{there}/config.json"
    with pytest.raises(ValueError, match=r"models/Gemini: not here.*Qwen2\.5-Math-7B"):
        model_shapes("models/Gemini")


# ---- operations and rooflines. A model of D 8, F 16, 4 query and 2 kv heads of size 4, 3 layers,
# 32 tokens.

MINI = models.ModelConfig(32, 8, 3, 4, 2, 4, 16)


def test_operations_of_a_model_by_hand():
    # query and output 8 x 16, key and value 8 x 8, gate, up and down 8 x 16; two operations each,
    # three layers.
    assert token_flops(MINI) == 2 * 3 * (2 * 128 + 2 * 64 + 3 * 128)
    assert head_flops(MINI) == 2 * 8 * 32
    assert head_flops(MINI.with_head("prm")) == 2 * (8 * 8 + 8 * 2)
    assert [seen(5), seen(5, 2), seen(5, 9)] == [15, 9, 15]
    # Scores and values: 2 x 2 x 16 for each pair of query and key.
    assert attention_flops(MINI, 5) == 3 * 64 * 15
    assert attention_flops(MINI, 5, 7) == 3 * 64 * 35
    local = models.ModelConfig(
        32, 8, 3, 4, 2, 4, 16, model_type="mistral", window=2, local_layers=(True,) * 3
    )
    assert attention_flops(local, 5) == 3 * 64 * 9


def test_work_of_programs_by_hand():
    token, head = token_flops(MINI), head_flops(MINI)
    work = generate_work(MINI, prompts=2, width=5, rows=8, seats=4, tokens=7, keys=12)
    assert work.flops == 2 * (5 * token + 3 * 64 * 15 + head)
    # The prefill gives each row its first token; 8 rows on 4 seats write 6 more each.
    assert work.steps == 12
    assert work.step_flops == 4 * (token + 3 * 64 * 12 + head)
    assert work.tokens == 56
    forward = 2 * (5 * token + 3 * 64 * 15) + 4 * (6 * token + 3 * 64 * (21 + 30)) + 4 * 6 * head
    update = update_work(MINI, prompts=2, width=5, rows=4, tokens=6, remat="none")
    assert update.useful == 3 * forward
    assert update.flops == 3 * forward + 4 * 6 * head
    assert (
        update_work(MINI, prompts=2, width=5, rows=4, tokens=6, remat="layer").flops == 4 * forward
    )
    assert (
        update_work(MINI, prompts=2, width=5, rows=4, tokens=6, remat="none", train=False).flops
        == forward
    )
    assert score_work(MINI, 3, 5).flops == 3 * (5 * (token + head) + 3 * 64 * 15)


def test_the_roofline_is_the_longest_of_three():
    topology = parse_topology("v5e:2x4")
    assert roofline(8 * 197e12, 0, 0, topology) == (1.0, "compute")
    assert roofline(8 * 197e12, 2 * 819e9, 0, topology) == (2.0, "HBM")
    assert roofline(8 * 197e12, 2 * 819e9, 3 * 50e9, topology) == (3.0, "network")


# ---- reading compiled programs

HLO = """HloModule some

%fused_slice (param_0.1: bf16[4,100], param_1.1: s32[]) -> bf16[100] {
  %param_0.1 = bf16[4,100]{1,0:T(8,128)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  %zero.1 = s32[]{:T(128)} constant(0)
  %slice.1 = bf16[1,100]{1,0} dynamic-slice(%param_0.1, %param_1.1, %zero.1), dynamic_slice_sizes={1,100}
  ROOT %bitcast.1 = bf16[100]{0} bitcast(%slice.1)
}

%fused_write (param_0.2: bf16[4,100], param_1.2: bf16[100], param_2.2: s32[]) -> (bf16[4,100], bf16[100]) {
  %param_0.2 = bf16[4,100]{1,0} parameter(0)
  %param_1.2 = bf16[100]{0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %row.2 = bf16[1,100]{1,0} bitcast(%param_1.2)
  %write.2 = bf16[4,100]{1,0} dynamic-update-slice(%param_0.2, %row.2, %param_2.2, %zero.2)
  ROOT %both.2 = (bf16[4,100]{1,0}, bf16[100]{0}) tuple(%write.2, %param_1.2)
}

%layers_condition (state.1: (s32[], bf16[4,100])) -> pred[] {
  %state.1 = (s32[], bf16[4,100]{1,0}) parameter(0)
  %limit.1 = s32[]{:T(128)} constant(4)
  %at.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less.1 = pred[] compare(%at.1, %limit.1), direction=LT
}

%layers_body (state.2: (s32[], bf16[4,100])) -> (s32[], bf16[4,100]) {
  %state.2 = (s32[], bf16[4,100]{1,0}) parameter(0)
  %at.2 = s32[]{:T(128)S(6)} get-tuple-element(%state.2), index=0
  %cache.2 = bf16[4,100]{1,0} get-tuple-element(%state.2), index=1
  %read.2 = bf16[100]{0:T(256)S(1)} fusion(%cache.2, %at.2), kind=kLoop, calls=%fused_slice
  %sum.2 = bf16[100]{0:T(256)S(1)} all-reduce(%read.2), replica_groups={{0,1},{2,3}}, to_apply=%add
  %both.3 = (bf16[4,100]{1,0}, bf16[100]{0}) fusion(%cache.2, %sum.2, %at.2), kind=kLoop, calls=%fused_write
  %written.2 = bf16[4,100]{1,0} get-tuple-element(%both.3), index=0
  ROOT %next.2 = (s32[], bf16[4,100]{1,0}) tuple(%at.2, %written.2)
}

%tokens_condition (state.3: (s32[], bf16[4,100], pred[4])) -> pred[] {
  %state.3 = (s32[], bf16[4,100]{1,0}, pred[4]{0}) parameter(0)
  %on.3 = pred[4]{0} get-tuple-element(%state.3), index=2
  ROOT %any.3 = pred[] custom-call(%on.3), custom_call_target="any"
}

%tokens_body (state.4: (s32[], bf16[4,100], pred[4])) -> (s32[], bf16[4,100], pred[4]) {
  %state.4 = (s32[], bf16[4,100]{1,0}, pred[4]{0}) parameter(0)
  %cache.4 = bf16[4,100]{1,0} get-tuple-element(%state.4), index=1
  %loop.4 = (s32[], bf16[4,100]{1,0}) while(%state.4), condition=%layers_condition, body=%layers_body
  %logits.4 = f32[1000,2000]{1,0} all-gather(%cache.4), replica_groups=[4,2]<=[8], metadata={op_name="jit(f)/sample/reshape"}
  ROOT %next.4 = (s32[], bf16[4,100]{1,0}, pred[4]{0}) tuple(%state.4)
}

ENTRY %main (weights: bf16[8,50]) -> bf16[4,100] {
  %weights = bf16[8,50]{1,0} parameter(0)
  %start = (bf16[8,50]{1,0:S(1)}, bf16[8,50]{1,0}, u32[]{:S(2)}) copy-start(%weights)
  %done = bf16[8,50]{1,0:S(1)} copy-done(%start)
  %made = bf16[4,100]{1,0} custom-call(%done), custom_call_target="make"
  %state = (s32[], bf16[4,100]{1,0}, pred[4]{0}) tuple(%made)
  %loop = (s32[], bf16[4,100]{1,0}, pred[4]{0}) while(%state), condition=%tokens_condition, body=%tokens_body
  ROOT %out = bf16[4,100]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_traffic_of_a_program_by_hand():
    report = hlo.HloProgram(HLO).report()
    # The copy reads 800 bytes into the chip's own memory, the call writes 800; the loop over
    # tokens has no end that is known.
    assert report.total.hbm == 1600
    assert report.total.collectives == 0
    outer, inner = report.loops
    assert (outer.trips, inner.trips, inner.path) == (None, 4, (None,))
    # A layer reads its slice of 200 bytes and writes as much, in place; what is summed never
    # leaves the chip.
    assert inner.traffic.hbm == 200 + 200
    assert inner.traffic.network == 2 * 200 / 2
    # A token: four layers; the gather reads 800 bytes and writes 8 MB, of which half is received.
    assert outer.traffic.hbm == 4 * 400 + 800 + 8_000_000
    assert outer.traffic.network == 4 * 200 + 4_000_000
    assert outer.traffic.collectives == 5
    assert report.decode is outer


def test_tiles_that_are_read_as_others_move_nothing():
    """A slice of 8-bit weights: inside the fused computation the compiler names the whole array in
    tiles of 8 rows, in place."""
    relaid = """%relaid (input: bf16[4,100]) -> bf16[4,100] {
  %input = bf16[4,100]{1,0:T(32,128)} parameter(0)
  ROOT %copy.9 = bf16[4,100]{1,0:T(8,128)} copy(%input)
}

%fused_slice"""
    text = HLO.replace("%fused_slice", relaid, 1).replace(
        "  %slice.1 = bf16[1,100]{1,0} dynamic-slice(%param_0.1,",
        "  %same.1 = bf16[4,100]{1,0:T(8,128)} fusion(%param_0.1), kind=kLoop,"
        " output_to_operand_aliasing={{}: (0, {})}, calls=%relaid\n"
        "  %slice.1 = bf16[1,100]{1,0} dynamic-slice(%same.1,",
    )
    assert text.count("%same.1") == 2
    _, inner = hlo.HloProgram(text).report().loops
    assert inner.traffic.hbm == 200 + 200
    moved = text.replace(" output_to_operand_aliasing={{}: (0, {})},", "")
    assert hlo.HloProgram(moved).report().loops[1].traffic.hbm == 800 + 200


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[4,2]<=[2,2,2]T(2,1,0)", 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2,'axis_2'=1] {'axis_0','axis_1'}", 8),
        (
            (
                "replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([4,2]T(1,0))"
                " {'axis_0'}"
            ),
            2,
        ),
        ("replica_groups={}", 1),
    ],
)
def test_groups_of_a_collective_are_read_in_every_form(text, size):
    assert hlo_text.group_size(text) == size


def test_the_decode_loop_is_the_innermost_that_ends_on_data():
    refill = """%refill_body (state.5: (s32[], bf16[4,100], pred[4])) -> (s32[], bf16[4,100], pred[4]) {
  %state.5 = (s32[], bf16[4,100]{1,0}, pred[4]{0}) parameter(0)
  %taken.5 = f32[9000,9000]{1,0} custom-call(%state.5), custom_call_target="refill"
  ROOT %loop.5 = (s32[], bf16[4,100]{1,0}, pred[4]{0}) while(%state.5), condition=%tokens_condition, body=%tokens_body
}

ENTRY"""
    text = HLO.replace("ENTRY", refill).replace(
        "%state), condition=%tokens_condition, body=%tokens_body",
        "%state), condition=%tokens_condition, body=%refill_body",
    )
    report = hlo.HloProgram(text).report()
    assert [(loop.body, loop.around_open) for loop in report.loops] == [
        ("refill_body", True),
        ("tokens_body", False),
        ("layers_body", False),
    ]
    assert report.decode is report.loops[1]


def test_lint_finds_what_is_slow():
    program = hlo.HloProgram(HLO)
    report = program.report()
    gather = "every token: all-gather of 4.0 MB in sample/reshape"
    assert lint.lint(program, report, lint.Facts()) == [gather]
    # A loop as long as the rows of a device writes row by row, unless that is the number of layers.
    assert len(lint.lint(program, report, lint.Facts(rows=4))) == 2
    assert lint.lint(program, report, lint.Facts(rows=4, layers=4)) == [gather]
    _, state = lint.lint(program, report, lint.Facts(state=100e6, aliased=40e6))
    assert state == "only 40 of 100 MB of the state are updated in place"


def test_lint_names_a_large_copy_at_the_start():
    text = HLO.replace(
        "  %state = (s32[], ",
        '  %other = bf16[4096,131072]{0,1} copy(%made), metadata={op_name="jit(f)/while"}\n  %state'
        " = (s32[], ",
        1,
    )
    program = hlo.HloProgram(text)
    found = lint.lint(program, program.report(), lint.Facts())
    assert found[0] == "once a run: a copy of 1,074 MB into another layout for jit(f)/while"


def test_lint_names_a_loop_that_takes_most_of_the_traffic():
    looped = HLO.replace("%tokens_condition", "%layers_condition", 1).replace(
        "condition=%tokens_condition", "condition=%layers_condition"
    )
    program = hlo.HloProgram(looped)
    report = program.report()
    assert [loop.trips for loop in report.loops] == [4, 4]
    found = lint.lint(program, report, lint.Facts(layers=2, passes=2))
    assert found == [
        "100% of the HBM traffic is in a loop of 4 trips, 4 in all, around sample/reshape"
    ]
    assert lint.lint(program, report, lint.Facts(layers=2, passes=4)) == []


def test_the_compilers_refusal_is_read():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
        " temporaries (29.70G) exceeds available HBM (15.75G)"
    )
    assert measure.refused(message) == 29.70 * 2**30
    assert measure.refused("INTERNAL: something else (3G)") is None


# ---- the programs


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "factored"])
@pytest.mark.parametrize("rank", [None, 4])
def test_shapes_of_the_state_are_those_of_a_run(moments, rank):
    config = default_config()
    config.optimizer.moments, config.lora.rank = moments, rank
    mesh = mesh_of("2x2x2")
    with on_mesh("2x2x2") as params:
        trained = params
        if rank:
            spec = train_config(config).lora.spec
            trained = models.init_lora(TINY, spec, jax.random.key(0), mesh)
        real = learning.init_state(trained, learning.make_optimizer(train_config(config).optimizer))
    made = train_state(train_config(config), TINY, jnp.float32, mesh)
    for (path, want), got in zip(
        jax.tree.leaves_with_path(real), jax.tree.leaves(made), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        assert got.sharding.is_equivalent_to(want.sharding, want.ndim), (
            name,
            got.sharding.spec,
            want.sharding.spec,
        )
    assert local_bytes(made) == sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(real)
    )


def test_moments_that_are_no_weights_lie_whole_everywhere():
    mesh = mesh_of("2x2x2")
    state = {
        "count": jax.ShapeDtypeStruct((), jnp.int32),
        "mu": {"other": jax.ShapeDtypeStruct((8, 8), jnp.float32)},
    }
    made = laid_out_like(
        state, for_decoding(TINY, models.abstract(TINY, jnp.float32, mesh), mesh), mesh
    )
    assert [x.sharding.spec for x in jax.tree.leaves(made)] == [P(), P()]


def test_a_rollout_is_the_trainers_own_program(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    config.dtype = "float32"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    config.rollout.prompt_tokens, config.rollout.new_tokens = 8, 24
    config.rollout.prompts, config.rollout.group = 2, 4
    made = plan(train_config(config), Models(TINY, TINY), list(mesh_of("2x2x2").devices.flat))
    (rollout,) = (program for program in made.programs if program.name == "rollout")
    calls = []
    monkeypatch.setattr(
        generate_module, "generate_program", lambda *arguments: calls.append(arguments)
    )
    with on_mesh("2x2x2") as params:
        batch = from_prompts([[1, 2, 3], [4] * 8], 4, 32)
        generate_module.generate(
            params,
            TINY,
            batch,
            jax.random.key(0),
            SampleSpec(max_new_tokens=24, end_ids=(0,), prefix_tokens=8),
            shared_prefix=4,
        )
        monkeypatch.undo()
        program = generate_module.generate_program
        assert program.lower(*calls[0]).as_text() == rollout.lower().as_text()


def test_an_update_is_the_trainers_own_program(tmp_path):
    config = small_config(tmp_path)
    config.dtype = "float32"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    config.rollout.prompt_tokens, config.rollout.new_tokens = 8, 24
    config.rollout.prompts, config.rollout.group, config.training.micro_batches = 4, 4, 2
    mesh = mesh_of("2x2x2")
    made = plan(train_config(config), Models(TINY, TINY), list(mesh.devices.flat))
    (update,) = (program for program in made.programs if program.name == "update")
    with on_mesh("2x2x2") as params:
        lowered = update.lower().as_text()
        rows = from_prompts([[n] * 8 for n in range(1, 5)], 4, 32)
        rows = rows.replace(length_B=rows.length_B + 24)
        arrays = {
            "advantage": jnp.zeros(16),
            "old_logp": rows.logp_BT,
            "sampler_logp": rows.logp_BT,
        }
        arrays |= dict(zip(("on", "off"), learning.token_weights(rows, train_config(config).loss)))
        packed = learning.pack(rows, arrays, 4, 2)
        state = learning.init_state(params, learning.make_optimizer(train_config(config).optimizer))
        spec = learning.UpdateSpec(
            train_config(config).loss,
            train_config(config).optimizer,
            micro_batches=2,
            dtype="float32",
        )
        program = learning.update_program(dataclasses.replace(TINY, remat="layer"), spec)
        scalars = {"teacher_weight": jnp.float32(1)}
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (state, packed)
        )
        assert program.whole.lower(*shapes, scalars).as_text() == lowered


def test_a_plan_names_what_stays_in_memory(tmp_path):
    config = small_config(tmp_path)
    shapes = model_shapes(str(tmp_path))[0]
    found = Models(shapes, shapes)
    made = plan(train_config(config), found, jax.devices())
    assert [program.name for program in made.programs] == [
        "decode_layout",
        "rollout",
        "teacher",
        "tails",
        "update",
        "evaluation",
    ]
    count = sum(math.prod(weight.shape) for weight in weight_table(shapes).values())
    # Norms lie whole on every device; all the rest is split in 8, or in 2 for decoding.
    assert made.held["weights"] == pytest.approx(4 * count / 8, rel=0.02)
    assert made.held["moments"] == pytest.approx(8 * count / 8, rel=0.02)
    assert (
        made.held["teacher"]
        == made.held["policy for decoding"]
        == pytest.approx(2 * count / 2, rel=0.02)
    )
    by_name = {program.name: program for program in made.programs}
    assert by_name["rollout"].uses == {"policy for decoding", "rows"}
    assert by_name["update"].gone == {"policy for decoding"}
    config.placement.teacher = config.placement.optimizer = "host"
    by_name = {
        program.name: program
        for program in plan(train_config(config), found, jax.devices()).programs
    }
    # Weights that are kept in float32 wait with their moments, while bfloat16 ones are used.
    assert by_name["rollout"].gone == {"teacher", "weights", "moments"}
    assert by_name["teacher"].gone == {"weights", "moments"}
    config.training.master_weights = "none"
    config.method.rows_at_once, config.rollout.cache = 8, "int8"
    made = plan(train_config(config), found, jax.devices())
    assert made.held["weights"] == pytest.approx(2 * count / 8, rel=0.02)
    by_name = {program.name: program for program in made.programs}
    assert by_name["teacher"].gone == {"moments"}
    # 16 prompts with two corrections each, in parts of 8; int8 keys of a layer: rows x heads x
    # slots x sizes, over 4 x 2 devices.
    assert [(by_name[name].rows, by_name[name].runs) for name in ("teacher", "tails")] == [
        (8, 4),
        (8, 4),
    ]
    keys = 64 * shapes.num_kv_heads * 256 * shapes.head_size / 8
    assert (
        by_name["rollout"].facts.layer_cache == keys
        and by_name["evaluation"].facts.layer_cache > keys
    )
    assert by_name["update"].gone == {"policy for decoding", "teacher"}
    # A layer's largest matrix: 256 x 512 in bfloat16, over two devices.
    assert by_name["rollout"].facts.layer_weights == 256 * 512 * 2 / 2


def test_more_programs_where_the_config_needs_them(tmp_path):
    config = small_config(tmp_path)
    shapes = model_shapes(str(tmp_path))[0]
    set_method(config, "grpo")
    config.mesh.data, config.mesh.fsdp = 4, 1
    config.loss.kl_weight = 0.1
    config.training.micro_batches = 32
    made = plan(train_config(config), Models(shapes), jax.devices())
    # Weights are cast for decoding; without that and without fsdp there is nothing to lay out
    # again.
    assert [program.name for program in made.programs] == [
        "decode_layout",
        "rollout",
        "log-probs",
        "update",
        "evaluation",
    ]
    config.training.master_weights = "none"
    made = plan(train_config(config), Models(shapes), jax.devices())
    assert [program.name for program in made.programs] == [
        "rollout",
        "log-probs",
        "update",
        "evaluation",
    ]
    assert "start weights" in made.held
    assert made.notes == [
        "a micro-batch of 2 rows is no multiple of data x fsdp = 4: devices stand idle"
    ]
    config.training.micro_batches = 4
    config.loss.kl_weight = 0.0
    set_method(config, "luffy")
    config.demonstrations.verified = True
    made = plan(train_config(config), Models(shapes, shapes), jax.devices())
    assert [program.name for program in made.programs] == [
        "rollout",
        "demonstrations",
        "update",
        "evaluation",
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config: config.mesh.update(data=3), "needs 24 devices, 8 are here"),
        (
            lambda config: config.mesh.update(fsdp=2, tensor=4),
            "does not divide the 2 kv heads of the policy",
        ),
        (
            lambda config: config.mesh.teacher.update(data=1, fsdp=1, tensor=8),
            "2 kv heads of the teacher",
        ),
        (
            lambda config: config.mesh.teacher.update(data=3, fsdp=1, tensor=2),
            r"config\.mesh\.teacher: mesh .* 8 devices",
        ),
    ],
)
def test_a_mesh_that_does_not_match_is_refused(tmp_path, change, says):
    config = small_config(tmp_path)
    shapes = model_shapes(str(tmp_path))[0]
    change(config)
    with pytest.raises(ValueError, match=says):
        plan(train_config(config), Models(shapes, shapes), jax.devices())


# ---- what would fit


@pytest.mark.parametrize(
    ("needed", "now", "best", "asked"),
    [
        (lambda rows: 10 + rows, 16, 64, {16, 8, 64}),  # the line is right
        (
            lambda rows: 10 + rows * rows / 16,
            16,
            32,
            {16, 8, 64, 32},
        ),  # too good: smaller ones until one fits
        (lambda rows: 200.0, 16, 0, None),
        (lambda rows: 10.0, 16, 128, {16, 8, 128}),
        (lambda rows: 90 + rows, 16, 8, {16, 8}),
    ],
)
def test_the_largest_size_is_found_with_few_compiles(needed, now, best, asked):
    calls = {}
    found = largest.search(
        [8, 16, 32, 64, 128], now, 100.0, lambda rows: calls.setdefault(rows, needed(rows))
    )
    assert found["rows"] == best
    assert asked is None or set(calls) == asked


def test_sizes_that_every_device_has_its_share_of(tmp_path):
    config = small_config(tmp_path)
    prompts, group = config.rollout.prompts, config.rollout.group
    assert prompts * group == 64
    assert largest.choices(config, "update", jax.devices()) == [
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        512,
        1024,
    ]
    assert largest.resized(config, "update", 32).training.micro_batches == 2
    larger = largest.resized(config, "update", 256)
    assert (larger.rollout.prompts, larger.training.micro_batches) == (4 * prompts, 1)
    assert largest.resized(config, "rollout", 32).rollout.seats == 32
    larger = largest.resized(config, "rollout", 128)
    assert (larger.rollout.prompts, larger.rollout.seats) == (2 * prompts, 128)
    assert (config.rollout.seats, config.rollout.prompts) == (None, prompts)
    # A pass never has more rows than a length bucket has.
    config.training.length_buckets = 2
    assert largest.choices(config, "update", jax.devices())[:5] == [4, 8, 16, 32, 64]
    assert largest.resized(config, "update", 32).training.micro_batches == 2
    assert largest.resized(config, "update", 16).training.micro_batches == 4
    larger = largest.resized(config, "update", 64)
    assert (larger.rollout.prompts, larger.training.micro_batches) == (2 * prompts, 2)


def test_the_largest_sizes_are_compiled_with_the_config_resized(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    shapes = model_shapes(str(tmp_path))[0]
    compiled = []

    def measured(program, made, topology, texts=None):
        compiled.append((program.name, program.rows))
        return measure.Measured(
            program.name,
            True,
            program.rows * 0.5 * 2**30,
            topology.limit,
            0.0,
            rows=program.rows,
        )

    monkeypatch.setattr(largest, "measure", measured)
    now = [
        measure.Measured("rollout", True, 32 * 2**30, 0, 0, rows=64),
        measure.Measured("update", True, 8 * 2**30, 0, 0, rows=16),
    ]
    topology = parse_topology("v5e:2x4")
    found = largest.find_largest(
        config, Models(shapes, shapes), jax.devices(), topology, now, lambda line: None
    )
    # Of 15.75 GiB, 0.5 a row.
    assert found["update"] == {"rows": 16, "needed": 8 * 2**30}
    assert found["rollout"] == {"rows": 16, "needed": 8 * 2**30}
    assert compiled == [("update", 8), ("rollout", 32), ("rollout", 16)]


# ---- the report


def line(**more) -> dict:
    fields = {
        "program": "rollout",
        "fits": True,
        "needed": 4 * 2**30,
        "limit": 16 * 2**30,
        "resident": 2**30,
    }
    return vars(measure.Measured(**{**fields, **more}))


def test_the_table_says_what_fits_and_by_how_much():
    step = {
        "seconds": 0.004,
        "bound": "HBM",
        "hbm": 3.2e9,
        "network": 11e6,
        "collectives": 59.0,
        "steps": 100,
        "parts": [{"times": 28, "trips": 10.0, "hbm": 5e6}],
        "kernels": {"ragged": {"times": 28, "hbm": 2.5e9}},
    }
    report = {
        "topology": "v5e:2x4",
        "devices": 8,
        "limit": 16 * 2**30,
        "limit_is": "what the compiler allows",
        "mesh": {"data": 1, "fsdp": 4, "tensor": 2},
        "models": {"policy": "models/some: published some"},
        "held": {"weights": 2**30},
        "notes": ["something"],
        "programs": [
            line(
                rows=256,
                decode_step=step,
                tokens_per_s=64000.0,
                seconds=2.5,
                bound="HBM",
                warnings=["slow"],
            ),
            line(
                program="update",
                fits=False,
                needed=18.5 * 2**30,
                error="too large",
                mfu=0.75,
                rows=32,
            ),
        ],
        "fits": False,
        "seconds_per_step": 40.0,
        "largest": {
            "update": {"rows": 16, "needed": 12 * 2**30},
            "rollout": {"rows": 0, "needed": None},
        },
    }
    text = table.table(report)
    rows = [row.split() for row in text.splitlines()]
    assert [
        "rollout",
        "4.00",
        "25%",
        "0.00",
        "0.00",
        "1.00",
        "0",
        "0",
        "0.0",
        "2.50",
        "HBM",
        "1",
        "yes,",
        "12.0",
        "left",
    ] in rows
    assert any(
        row[:3] == ["update", "18.50", "116%"] and row[-4:] == ["NO,", "2.5", "too", "much"]
        for row in rows
    )
    for said in (
        "mesh data 1 x fsdp 4 x tensor 2",
        "rollout: 64,000 tokens/s at most; a decode step of 256 rows takes 4.00 ms (HBM)",
        "rollout: 1.40 GB of it in loops that end on data",
        "rollout: 2.50 GB of it in 28 calls of ragged",
        "8 devices of 16.00 GiB (what the compiler allows)",
        "update: 75% of the peak",
        "largest micro-batch that fits: 16 rows (12.00 GiB)",
        "no number of seats fits",
        "note: something",
        "warning: rollout: slow",
        "update: too large",
        "does NOT fit",
    ):
        assert said in text, said
    assert json.loads(json.dumps(report)) == report


def run_fit(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scope_jax.fit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def test_bad_input_is_one_line_and_exit_code_2():
    done = run_fit("--config=scope,math_1_5b", "--topology=v5litepod-8")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --topology='v5litepod-8': expected kind:AxB")


def test_the_exit_code_says_whether_it_fits(tmp_path, monkeypatch, capsys):
    asked = []

    def found(config, topology, **options):
        asked.append((topology.name, options["only"], options["largest"]))
        return {"fits": len(asked) == 1}

    monkeypatch.setattr(command, "fit", found)
    given = SimpleNamespace(topology="v5e:2x4", only=["update"], largest=True, layers=0, json=True)
    assert json.loads(command.command(default_config(), str(tmp_path), given)) == {"fits": True}
    assert json.loads((tmp_path / "fit.json").read_text()) == {"fits": True}
    with pytest.raises(SystemExit) as ended:
        command.command(default_config(), None, given)
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out) == {"fits": False}
    assert asked == [("v5e:2x4", ["update"], True)] * 2


# ---- with the TPU's compiler

needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed (make fit)")


@needs_libtpu
def test_a_decode_step_moves_the_weights_and_the_cache(tmp_path):
    config = small_config(tmp_path)
    # Seats move a layer at a time: of eight layers that is little.
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"num_hidden_layers": 8}))
    config.rollout.prompts, config.rollout.group = 64, 8
    config.rollout.prompt_tokens, config.rollout.new_tokens = 128, 2048
    report = command.fit(config, parse_topology("v5e:2x4"), only=["rollout"])
    (rollout,) = report["programs"]
    assert rollout["fits"]
    # No gather, no copy, no loop over rows.
    assert not rollout["warnings"]
    # 128 rows a device, one kv head, 2304 slots of 128 (nine blocks), eight layers, keys and values,
    # 2 bytes: too much for the chip's own memory.
    cache = 128 * 2304 * 128 * 8 * 2 * 2
    step = rollout["decode_step"]
    assert cache < rollout["temporaries"] < 1.1 * cache
    # Of it, what rows hold in the mean of 128 to 2176, and half a block.
    live = cache * (128 + 1024 + 128) / 2304
    assert live < step["hbm"] < 1.1 * live
    assert step["steps"] == 2047


@needs_libtpu
def test_an_update_writes_over_its_state(tmp_path):
    report = command.fit(
        small_config(tmp_path),
        parse_topology("v5e:2x4"),
        only=["decode_layout", "update"],
        texts=tmp_path / "programs",
    )
    decode_layout, update = report["programs"]
    assert decode_layout["program"] == "decode_layout"
    assert update["fits"]
    assert not update["warnings"]
    assert 0 < update["mfu"] < 1
    assert report["seconds_per_step"] is None
    text = (tmp_path / "programs" / "update.txt").read_text()
    assert hlo.HloProgram(text).report().total.hbm == update["hbm"]


@needs_libtpu
def test_a_batch_that_is_too_large_is_said_to_be(tmp_path):
    config = small_config(tmp_path)
    config.rollout.prompts, config.rollout.prompt_tokens, config.rollout.new_tokens = (
        8192,
        1024,
        3072,
    )
    config.training.micro_batches = 8192
    report = command.fit(config, parse_topology("v5e:2x4"), only=["rollout"])
    (rollout,) = report["programs"]
    assert not report["fits"]
    assert rollout["needed"] > 15.75 * 2**30
    assert "too much" in table.table(report)


@needs_libtpu
def test_decoding_takes_no_expert_out_of_the_stack_of_layers(tmp_path):
    """A kernel multiplies with the experts where they lie, and is counted with one layer's."""
    config = small_config(tmp_path)
    mixture = {
        **SMALL,
        "model_type": "qwen3_moe",
        "num_attention_heads": 272,  # the queries' weights are larger than a matrix of the experts
        "num_experts": 32,
        "num_experts_per_tok": 2,
        "hidden_size": 1024,
        "moe_intermediate_size": 4096,  # more than the chip's own memory holds
        "norm_topk_prob": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(mixture))
    config.mesh.fsdp, config.mesh.tensor, config.mesh.expert = 2, 1, 4
    config.teacher.kind = "self"
    layer = 8 * 1024 * 4096 * 2  # bytes of a layer's eight experts on a device, one matrix of three
    report = command.fit(config, parse_topology("v5e:2x4"), only=["rollout"], texts=tmp_path)
    (rollout,) = report["programs"]
    assert not [line for line in rollout["warnings"] if "every token" in line]
    kernels = rollout["decode_step"]["kernels"]["tpu_custom_call"]
    program = hlo.HloProgram((tmp_path / "rollout.txt").read_text())
    loop = program.report().decode
    assert loop is not None
    products = [kernel for kernel in program.kernels(loop.body) if kernel.largest == 2 * layer]
    assert sum(kernel.times for kernel in products) == 2 * 3  # layers, matrices
    whole = sum(kernel.times * kernel.size for kernel in program.kernels(loop.body))
    assert kernels["hbm"] == whole - 2 * 3 * layer


@needs_libtpu
def test_an_unknown_program_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="--only=updates: this config has no such program; it has decode_layout, rollout",
    ):
        command.fit(small_config(tmp_path), parse_topology("v5e:2x4"), only=["updates"])


@pytest.mark.parametrize("name", ["math_1_5b", "math_7b", "math_30b_a3b"])
def test_heads_of_the_shipped_configs_can_be_split(name):
    config = train_config(config_of(f"scope,{name}", {}))
    found, sources = command.find_models(config)
    assert set(sources) == {"policy", "teacher", "prm"}
    assert found.policy.num_kv_heads % config.mesh.tensor == 0
    assert found.policy.num_experts % config.mesh.expert == 0
    assert found.teacher is not None
    assert found.teacher.num_kv_heads % config.mesh.teacher.tensor == 0


@needs_libtpu
def test_int8_weights_are_read_as_8_bits(tmp_path):
    """A teacher's step of decoding moves half as much, and holds no copy in another type."""
    shapes = SMALL | {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 128}
    (tmp_path / "config.json").write_text(json.dumps(shapes))
    found = {}
    for weights in ("auto", "int8"):
        config = small_config(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(shapes))
        config.mesh.fsdp = config.mesh.tensor = 1
        config.models.teacher_weights, config.teacher.step_tokens = weights, 16
        config.rollout.prompts, config.rollout.group = 2, 2
        report = command.fit(config, parse_topology("v5e:1x1"), only=["teacher"])
        found[weights] = report["programs"][0], report["held"]["teacher"]
    (full, held), (int8, less) = found["auto"], found["int8"]
    assert 0.45 < less / held < 0.65
    assert int8["decode_step"]["hbm"] < 0.65 * full["decode_step"]["hbm"]
    assert int8["temporaries"] < full["temporaries"] + 0.1 * less


@needs_libtpu
def test_what_is_foretold_of_an_update_is_near_what_is_compiled(tmp_path):
    config = small_config(tmp_path)
    config.mesh.fsdp = config.mesh.tensor = 1
    config.training.remat, config.training.micro_batches = "dots", 1
    report = command.fit(config, parse_topology("v5e:1x1"), only=["update"])
    truth = report["programs"][0]["temporaries"]
    settings = train_config(config)
    mesh = mesh_of("1")
    [shape] = update_shapes(settings, mesh)
    used = Used(tuple(mesh.shape.items()), config.dtype, "float32")
    found = temporaries(command.find_models(settings)[0].policy, "dots", shape, used)
    assert 0.9 * truth < found < 2.5 * truth
