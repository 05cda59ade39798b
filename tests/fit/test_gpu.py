"""`scope_jax.fit` for GPUs: machines and limits, reading compiled GPU programs; with JAX's CUDA
plugin also compiling for a GPU that is not here."""

import dataclasses
import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support.fixtures import TINY
from support.small_config import small_config

from scope_jax.configuration import train_config
from scope_jax.fit import command, gpu, hlo, hlo_text, lint, measure, table, topology
from scope_jax.fit.programs import Models, plan
from scope_jax.fit.topology import parse_topology
from scope_jax.models.costs import Work

# Programs for GPUs that are not here are put into the tests' cache, and cannot be taken out again.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

# ---- machines


@pytest.mark.parametrize(
    ("name", "shape", "count", "rate"),
    [
        ("h100:8", (8,), 8, 450e9),
        ("H100:1", (1,), 1, 450e9),
        ("h200:4", (4,), 4, 450e9),
        ("b200:8", (8,), 8, 900e9),
        ("h100:2x8", (2, 8), 16, 450e9),
    ],
)
def test_hosts_with_gpus_have_names(name, shape, count, rate):
    found = parse_topology(name)
    assert (found.shape, found.devices, found.axis_rate) == (shape, count, rate)
    assert found.name == name.lower()
    assert found.on_gpu


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("h100", "expected kind:AxB"),
        ("h100:0", "expected kind:AxB"),
        ("a100:8", "known: .*h100:1, 4, 8, 2x8"),
        ("h100:16", "host of 1 to 8 GPUs"),
        ("h100:2x2x2", "host of 1 to 8 GPUs"),
    ],
)
def test_another_number_of_gpus_is_refused(name, says):
    with pytest.raises(ValueError, match=says) as error:
        parse_topology(name)
    assert "\n" not in str(error.value)


def test_what_fits_is_what_the_allocator_takes(monkeypatch):
    h100 = parse_topology("h100:8")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert h100.limit == 0.75 * 84_942_979_072
    assert h100.limit_is == "75% of 79.11 GiB, by XLA_PYTHON_CLIENT_MEM_FRACTION"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    assert h100.limit == pytest.approx(0.92 * 84_942_979_072)
    for wrong in ("90", "0", "much"):
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", wrong)
        with pytest.raises(ValueError, match=f"MEM_FRACTION is '{wrong}'; expected a share"):
            _ = h100.limit


def test_memory_and_rates_are_close_to_the_published_ones():
    for kind in gpu.KINDS.values():
        assert kind.target.memory == pytest.approx(kind.chip.hbm, rel=0.08)
        assert kind.target.bandwidth == pytest.approx(kind.chip.hbm_rate, rel=0.05)
        assert kind.target.name.startswith(kind.chip.kinds)


def test_the_description_of_a_target_is_protobuf_text():
    text = gpu.KINDS["b200"].target.description()
    words = re.findall(r'"[^"]*"|[{}]|[\w.\-]+:?', text)

    def fields(words):
        found = {}
        while words and (word := words.pop(0)) != "}":
            name, colon = word.removesuffix(":"), word.endswith(":")
            opened = None if colon else words.pop(0)
            assert colon or opened == "{"
            found[name] = words.pop(0) if colon else fields(words)
        return found

    made = fields(words)
    device = made["gpu_device_info"]
    assert device["cuda_compute_capability"] == {
        "major": "10",
        "minor": "0",
        "feature_extension": "ACCELERATED_FEATURES",
    }
    # 148 multiprocessors, 227 KiB of shared memory that a block may ask for, 65,536 registers.
    assert [device[name] for name in ("core_count", "shared_memory_per_block_optin")] == [
        "148",
        "232448",
    ]
    assert device["registers_per_core_limit"] == "65536"
    assert device["ecc_enabled"] == "true"
    assert made["platform_name"] == '"CUDA"'
    assert made["device_description_str"] == device["name"] == '"NVIDIA B200"'


def test_without_the_plugin_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "scope_jax\[fit-gpu\]"') as error:
        topology.devices(parse_topology("h100:8"))
    assert "\n" not in str(error.value)


# ---- reading compiled programs: what the compiler wrote, with less around it. Four layers, 16 rows,
# 1,024 positions, heads of 128, a model of 512.

TRITON = """HloModule jit_generate, is_scheduled=true

%fused_dynamic_slice.clone (param_0.46: bf16[4,512,128], param_1.59: s32[]) -> bf16[1,512,128] {
  %param_0.46 = bf16[4,512,128]{2,1,0} parameter(0)
  %param_1.59 = s32[] parameter(1)
  %constant_75 = s32[] constant(0)
  %lt.25 = pred[] compare(%param_1.59, %constant_75), direction=LT
  %constant_76 = s32[] constant(4)
  %add.41 = s32[] add(%param_1.59, %constant_76)
  %select_n.26 = s32[] select(%lt.25, %add.41, %param_1.59)
  ROOT %dynamic_slice.15 = bf16[1,512,128]{2,1,0} dynamic-slice(%param_0.46, %select_n.26, %constant_75, %constant_75), dynamic_slice_sizes={1,512,128}, metadata={op_name="jit(generate)/while/body/while/body/jit(dynamic_index_in_dim)/dynamic_slice"}
}

%fused_computation.gemm_fusion_dot_computation (param_0: bf16[16,16,32], param_1: bf16[16,32,128]) -> f32[16,16,128] {
  %param_1 = bf16[16,32,128]{2,1,0} parameter(1)
  %param_0 = bf16[16,16,32]{2,1,0} parameter(0)
  %dot.2 = f32[16,128,16]{1,2,0} dot(%param_1, %param_0), lhs_batch_dims={0}, lhs_contracting_dims={1}, rhs_batch_dims={1}, rhs_contracting_dims={2}, backend_config={"sizes":["16"]}
  ROOT %bitcast.7 = f32[16,16,128]{2,1,0} bitcast(%dot.2)
}

%fused_reduce.2 (param_0.39: f32[16,16,128]) -> f32[16,128] {
  %param_0.39 = f32[16,16,128]{2,1,0} parameter(0)
  %constant_71_1 = f32[] constant(0)
  ROOT %reduce.13.1 = f32[16,128]{1,0} reduce(%param_0.39, %constant_71_1), dimensions={0}, to_apply=%dot.reduce_sub_computation
}

%fused_scatter (param_0.7: bf16[4,16,1024,128], param_1.42: f32[16,128], param_2.33: s32[16,3]) -> bf16[4,16,1024,128] {
  %param_0.7 = bf16[4,16,1024,128]{3,2,1,0} parameter(0)
  %param_2.33 = s32[16,3]{1,0} parameter(2)
  %param_1.42 = f32[16,128]{1,0} parameter(1)
  %convert.23 = bf16[16,128]{1,0} convert(%param_1.42)
  %bitcast.2 = bf16[16,1,1,1,128]{4,3,2,1,0} bitcast(%convert.23)
  ROOT %scatter.7 = bf16[4,16,1024,128]{3,2,1,0} scatter(%param_0.7, %param_2.33, %bitcast.2), update_window_dims={1,2,3,4}, inserted_window_dims={}, scatter_dims_to_operand_dims={0,1,2}, index_vector_dim=1, to_apply=%region_2.2
}

%fused_reduce (param_0.40: f32[16,128], param_1.50: bf16[4,16,1024,128], param_2.43: s32[]) -> f32[16,1024] {
  %param_0.40 = f32[16,128]{1,0} parameter(0)
  %broadcast.32 = f32[1,16,1024,128]{3,2,1,0} broadcast(%param_0.40), dimensions={1,3}
  %param_1.50 = bf16[4,16,1024,128]{3,2,1,0} parameter(1)
  %param_2.43 = s32[] parameter(2)
  %constant_75_5 = s32[] constant(0)
  %dynamic_slice.16 = bf16[1,16,1024,128]{3,2,1,0} dynamic-slice(%param_1.50, %param_2.43, %constant_75_5, %constant_75_5, %constant_75_5), dynamic_slice_sizes={1,16,1024,128}
  %convert.21 = f32[1,16,1024,128]{3,2,1,0} convert(%dynamic_slice.16)
  %multiply.16 = f32[1,16,1024,128]{3,2,1,0} multiply(%broadcast.32, %convert.21)
  %bitcast.9 = f32[16,1024,128]{2,1,0} bitcast(%multiply.16)
  %constant_71 = f32[] constant(0)
  ROOT %reduce.8 = f32[16,1024]{1,0} reduce(%bitcast.9, %constant_71), dimensions={2}, to_apply=%region_4.6
}

%region_1.8 (arg_tuple.9: (s32[], bf16[4,16,1024,128], bf16[16,512], bf16[4,512,128], s32[16,3])) -> (s32[], bf16[4,16,1024,128], bf16[16,512], bf16[4,512,128], s32[16,3]) {
  %arg_tuple.9 = (s32[], bf16[4,16,1024,128]{3,2,1,0}, bf16[16,512]{1,0}, bf16[4,512,128]{2,1,0}, s32[16,3]{1,0}) parameter(0)
  %get-tuple-element.119 = s32[] get-tuple-element(%arg_tuple.9), index=0
  %get-tuple-element.120 = bf16[4,16,1024,128]{3,2,1,0} get-tuple-element(%arg_tuple.9), index=1
  %get-tuple-element.121 = bf16[16,512]{1,0} get-tuple-element(%arg_tuple.9), index=2
  %get-tuple-element.128 = bf16[4,512,128]{2,1,0} get-tuple-element(%arg_tuple.9), index=3
  %get-tuple-element.129 = s32[16,3]{1,0} get-tuple-element(%arg_tuple.9), index=4
  %fusion-start = ((bf16[4,512,128]{2,1,0}, s32[]), bf16[1,512,128]{2,1,0}, u32[]) fusion-start(%get-tuple-element.128, %get-tuple-element.119), kind=kLoop, calls=%fused_dynamic_slice.clone, backend_config={"operation_queue_id":"0"}
  %fusion-done = bf16[1,512,128]{2,1,0} fusion-done(%fusion-start), backend_config={"operation_queue_id":"0"}
  %bitcast.5 = bf16[16,32,128]{2,1,0} bitcast(%fusion-done)
  %bitcast.4 = bf16[16,16,32]{2,1,0} bitcast(%get-tuple-element.121)
  %gemm_fusion_dot = f32[16,16,128]{2,1,0} fusion(%bitcast.4, %bitcast.5), kind=kCustom, calls=%fused_computation.gemm_fusion_dot_computation, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion","block_level_fusion_config":{"num_warps":"2","output_tiles":[{"sizes":["1","8","16"]}]}}}
  %loop_reduce_fusion = f32[16,128]{1,0} fusion(%gemm_fusion_dot), kind=kLoop, calls=%fused_reduce.2
  %input_scatter_fusion = bf16[4,16,1024,128]{3,2,1,0} fusion(%get-tuple-element.120, %loop_reduce_fusion, %get-tuple-element.129), kind=kInput, calls=%fused_scatter
  %input_reduce_fusion = f32[16,1024]{1,0} fusion(%loop_reduce_fusion, %input_scatter_fusion, %get-tuple-element.119), kind=kInput, calls=%fused_reduce
  %copy.9 = bf16[16,512]{1,0} copy(%get-tuple-element.121)
  ROOT %tuple.17 = (s32[], bf16[4,16,1024,128]{3,2,1,0}, bf16[16,512]{1,0}, bf16[4,512,128]{2,1,0}, s32[16,3]{1,0}) tuple(%get-tuple-element.119, %input_scatter_fusion, %copy.9, %get-tuple-element.128, /*index=4*/%get-tuple-element.129)
}

%region_0.10 (arg_tuple.5: (s32[], bf16[4,16,1024,128], bf16[16,512], bf16[4,512,128], s32[16,3])) -> (s32[], bf16[4,16,1024,128], bf16[16,512], bf16[4,512,128], s32[16,3]) {
  %arg_tuple.5 = (s32[], bf16[4,16,1024,128]{3,2,1,0}, bf16[16,512]{1,0}, bf16[4,512,128]{2,1,0}, s32[16,3]{1,0}) parameter(0)
  ROOT %while.1 = (s32[], bf16[4,16,1024,128]{3,2,1,0}, bf16[16,512]{1,0}, bf16[4,512,128]{2,1,0}, s32[16,3]{1,0}) while(%arg_tuple.5), condition=%region_5.9, body=%region_1.8, backend_config={"known_trip_count":{"n":"4"},"known_init_step":{"init":"0","step":"1"},"known_induction_variable":{"tuple_index":"0"},"dynamic_variables":[]}
}

%region_7.13 (arg_tuple.7: (s32[], bf16[4,16,1024,128], bf16[16,512], bf16[4,512,128], s32[16,3])) -> pred[] {
  %arg_tuple.7 = (s32[], bf16[4,16,1024,128]{3,2,1,0}, bf16[16,512]{1,0}, bf16[4,512,128]{2,1,0}, s32[16,3]{1,0}) parameter(0)
  %get-tuple-element.70 = s32[] get-tuple-element(%arg_tuple.7), index=0
  ROOT %wrapped_compare = pred[] fusion(%get-tuple-element.70), kind=kLoop, calls=%wrapped_compare_computation
}

ENTRY %main.14 (state.1: (s32[], bf16[4,16,1024,128], bf16[16,512], bf16[4,512,128], s32[16,3])) -> (s32[], bf16[4,16,1024,128], bf16[16,512], bf16[4,512,128], s32[16,3]) {
  %state.1 = (s32[], bf16[4,16,1024,128]{3,2,1,0}, bf16[16,512]{1,0}, bf16[4,512,128]{2,1,0}, s32[16,3]{1,0}) parameter(0)
  ROOT %while.22 = (s32[], bf16[4,16,1024,128]{3,2,1,0}, bf16[16,512]{1,0}, bf16[4,512,128]{2,1,0}, s32[16,3]{1,0}) while(%state.1), condition=%region_7.13, body=%region_0.10
}
"""

WEIGHTS = 512 * 128 * 2  # a layer's matrix
CACHE = 16 * 1024 * 128 * 2  # a layer's cache


def test_traffic_of_a_gpu_program_by_hand():
    report = hlo.HloProgram(TRITON).report()
    assert report.total.hbm == 0
    # The slice of the stack is written out, and read by the product; of the start and the done of
    # an operation one is counted, and of the stack the slice.
    slice_out = WEIGHTS + 4 + WEIGHTS
    product = 16 * 512 * 2 + WEIGHTS + 16 * 16 * 128 * 4
    # In place: 16 rows of 128, from float32, by 16 x 3 indices.
    update = 16 * 128 * 4 + 16 * 3 * 4 + 16 * 128 * 2
    scores = 16 * 128 * 4 + CACHE + 4 + 16 * 1024 * 4
    copy = 2 * 16 * 512 * 2
    parts = 16 * 16 * 128 * 4 + 16 * 128 * 4  # of the product, added up
    layer = slice_out + product + parts + update + scores + copy
    assert report.loops[1].traffic.hbm == layer
    assert report.decode is report.loops[0]
    assert report.decode.traffic.hbm == 4 * layer


def test_a_slice_that_is_written_out_is_a_copy():
    program = hlo.HloProgram(TRITON)
    report = program.report()
    where = "jit(dynamic_index_in_dim)/dynamic_slice"
    assert lint.decode_copies(program, report, WEIGHTS) == [lint.Copy(WEIGHTS, 4, where)]
    assert lint.decode_copies(program, report, WEIGHTS + 1) == []
    assert [copy.size for copy in lint.decode_copies(program, report, 10_000)] == [
        WEIGHTS,
        16 * 512 * 2,
    ]
    big = TRITON.replace("512,128]", "51200,128]").replace("{1,512,128}", "{1,51200,128}")
    program = hlo.HloProgram(big)
    facts = lint.Facts(layer_cache=CACHE, layer_weights=100 * WEIGHTS, layers=4)
    # Below a layer's matrix: nothing; the smaller of the two is what is compared with.
    assert lint.lint(program, program.report(), facts) == [
        f"every token: 4 copies of 13 MB in {where}"
    ]


def test_a_copy_in_a_tpus_decode_loop_is_found_by_the_same_function():
    text = """HloModule tpu

%body (state.1: (bf16[8,1024,128], s32[])) -> (bf16[8,1024,128], s32[]) {
  %state.1 = (bf16[8,1024,128]{2,1,0:T(8,128)(2,1)}, s32[]) parameter(0)
  %cache.1 = bf16[8,1024,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state.1), index=0
  %at.1 = s32[] get-tuple-element(%state.1), index=1
  %start.1 = (bf16[8,1024,128]{2,1,0:T(8,128)(2,1)S(1)}, bf16[8,1024,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%cache.1)
  %done.1 = bf16[8,1024,128]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%start.1)
  %copy.1 = bf16[8,1024,128]{1,2,0:T(8,128)(2,1)} copy(%cache.1), metadata={op_name="jit(f)/while/body/transpose"}
  ROOT %next.1 = (bf16[8,1024,128]{2,1,0:T(8,128)(2,1)}, s32[]) tuple(%copy.1, %at.1)
}

%condition (state.2: (bf16[8,1024,128], s32[])) -> pred[] {
  %state.2 = (bf16[8,1024,128]{2,1,0}, s32[]) parameter(0)
  ROOT %on.2 = pred[] custom-call(%state.2), custom_call_target="any"
}

ENTRY %main (state.3: (bf16[8,1024,128], s32[])) -> (bf16[8,1024,128], s32[]) {
  %state.3 = (bf16[8,1024,128]{2,1,0}, s32[]) parameter(0)
  ROOT %loop.3 = (bf16[8,1024,128]{2,1,0}, s32[]) while(%state.3), condition=%condition, body=%body
}
"""
    program = hlo.HloProgram(text)
    report = program.report()
    size = 8 * 1024 * 128 * 2
    # What is started brings the array to the chip's own memory, and is no copy.
    assert lint.decode_copies(program, report, size) == [lint.Copy(size, 1, "body/transpose")]
    assert report.decode is not None
    assert report.decode.traffic.hbm == size + 2 * size


LIBRARIES = """HloModule jit_generate, is_scheduled=true

%dynamic-slice-fusion (p0: bf16[4,512,128], p1: s32[], p2: bf16[16,512]) -> (bf16[16,128], s8[33554432]) {
  %p2 = bf16[16,512]{1,0} parameter(2)
  %p0 = bf16[4,512,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %constant_82 = s32[] constant(0)
  %dynamic_slice.18 = bf16[1,512,128]{2,1,0} dynamic-slice(%p0, %p1, %constant_82, %constant_82), dynamic_slice_sizes={1,512,128}
  %bitcast.21 = bf16[512,128]{1,0} bitcast(%dynamic_slice.18)
  ROOT %custom-call.7 = (bf16[16,128]{1,0}, s8[33554432]{0}) custom-call(%p2, %bitcast.21), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"alpha_real":1,"beta":0,"autotune_workspace_size":"0"}}
}

%dynamic-slice-fusion.1 (p0.1: bf16[16,512], p1.1: bf16[512,128], p2.1: bf16[4,16,128], p3.1: s32[]) -> (bf16[4,16,128], s8[4194304]) {
  %p0.1 = bf16[16,512]{1,0} parameter(0)
  %p1.1 = bf16[512,128]{1,0} parameter(1)
  %p2.1 = bf16[4,16,128]{2,1,0} parameter(2)
  %p3.1 = s32[] parameter(3)
  %constant_83 = s32[] constant(0)
  %custom-call.8 = (bf16[16,128]{1,0}, s8[4194304]{0}) custom-call(%p0.1, %p1.1), custom_call_target="__cublas$gemm"
  %get-tuple-element.1 = bf16[16,128]{1,0} get-tuple-element(%custom-call.8), index=0
  %bitcast.22 = bf16[1,16,128]{2,1,0} bitcast(%get-tuple-element.1)
  %dynamic-update-slice.1 = bf16[4,16,128]{2,1,0} dynamic-update-slice(%p2.1, %bitcast.22, %p3.1, %constant_83, %constant_83)
  %get-tuple-element.2 = s8[4194304]{0} get-tuple-element(%custom-call.8), index=1
  ROOT %tuple.3 = (bf16[4,16,128]{2,1,0}, s8[4194304]{0}) tuple(%dynamic-update-slice.1, %get-tuple-element.2)
}

%command_buffer (p: bf16[16,512], p.1: bf16[512,128]) -> bf16[16,128] {
  %p = bf16[16,512]{1,0} parameter(0)
  %p.1 = bf16[512,128]{1,0} parameter(1)
  %custom-call.4 = (bf16[16,128]{1,0}, s8[4194304]{0}) custom-call(%p, %p.1), custom_call_target="__cublas$lt$matmul"
  ROOT %get-tuple-element.145 = bf16[16,128]{1,0} get-tuple-element(%custom-call.4), index=0
}

ENTRY %main.1 (w: bf16[4,512,128], i: s32[], x: bf16[16,512], v: bf16[512,128], out: bf16[4,16,128], q: bf16[2,1024,16,128], k: bf16[2,1024,8,128]) -> bf16[2,16,1024,128] {
  %w = bf16[4,512,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[16,512]{1,0} parameter(2)
  %v = bf16[512,128]{1,0} parameter(3)
  %out = bf16[4,16,128]{2,1,0} parameter(4)
  %q = bf16[2,1024,16,128]{3,2,1,0} parameter(5)
  %k = bf16[2,1024,8,128]{3,2,1,0} parameter(6)
  %dynamic_slice_fusion = (bf16[16,128]{1,0}, s8[33554432]{0}) fusion(%w, %i, %x), kind=kCustom, calls=%dynamic-slice-fusion, backend_config={"fusion_backend_config":{"kind":"__custom_fusion","custom_fusion_config":{"name":"dynamic_slice_fusion","kernel_index":0}}}
  %dynamic_slice_fusion.1 = (bf16[4,16,128]{2,1,0}, s8[4194304]{0}) fusion(%x, %v, %out, %i), kind=kCustom, calls=%dynamic-slice-fusion.1
  %call.1 = bf16[16,128]{1,0} call(%x, %v), to_apply=%command_buffer
  %dot_product_attention_fwd.4 = (bf16[2,16,1024,128]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", operand_layout_constraints={bf16[2,1024,16,128]{3,2,1,0}, bf16[2,1024,8,128]{3,2,1,0}, bf16[2,1024,8,128]{3,2,1,0}}
  ROOT %get-tuple-element.9 = bf16[2,16,1024,128]{3,1,2,0} get-tuple-element(%dot_product_attention_fwd.4), index=0
}
"""


def test_what_libraries_move_is_counted_without_their_workspace():
    program = hlo.HloProgram(LIBRARIES)
    entry = program.parts["main.1"]
    x, out, matrix = 16 * 512 * 2, 16 * 128 * 2, 512 * 128 * 2
    # A layer's matrix is read where it lies in the stack.
    assert program.cost(entry["dynamic_slice_fusion"], "main.1").hbm == matrix + 4 + x + out
    # The result is written into its place.
    assert program.cost(entry["dynamic_slice_fusion.1"], "main.1").hbm == x + matrix + 4 + out
    queries, keys = 2 * 1024 * 16 * 128 * 2, 2 * 1024 * 8 * 128 * 2
    attention = queries + 2 * keys + queries
    assert program.cost(entry["dot_product_attention_fwd.4"], "main.1").hbm == attention
    total = (matrix + 4 + x + out) + 2 * (x + matrix + out) + 4 + attention
    assert program.report().total.hbm == total
    # Attention may be told lengths, and read less: it is named.
    (kernel,) = program.kernels("main.1")
    assert (kernel.op.target, *kernel[1:]) == ("__cudnn$fmhaSoftmax", 1, attention, queries)


COLLECTIVES = """HloModule jit_step, is_scheduled=true

%fused_all-reduce.2.clone (param_0.51: f32[16,1024]) -> f32[16,1024] {
  %param_0.51 = f32[16,1024]{1,0} parameter(0)
  ROOT %all-reduce.4 = f32[16,1024]{1,0} all-reduce(%param_0.51), channel_id=1, replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add.clone
}

%async_computation (param_0.1: bf16[4096,128]) -> bf16[512,128] {
  %param_0.1 = bf16[4096,128]{1,0} parameter(0)
  ROOT %reduce-scatter.1 = bf16[512,128]{1,0} reduce-scatter(%param_0.1), channel_id=3, replica_groups=mesh['axis_0'=8] {'axis_0'}, use_global_device_ids=true, dimensions={0}, to_apply=%add.clone
}

ENTRY %main.1 (a: f32[16,1024], b: bf16[8192,1536], c: s32[1], d: bf16[16,2,512,128], e: bf16[4096,128]) -> bf16[512,128] {
  %a = f32[16,1024]{1,0} parameter(0)
  %b = bf16[8192,1536]{1,0} parameter(1)
  %c = s32[1]{0} parameter(2)
  %d = bf16[16,2,512,128]{3,2,1,0} parameter(3)
  %e = bf16[4096,128]{1,0} parameter(4)
  %fusion-start = ((f32[16,1024]{1,0}), f32[16,1024]{1,0}) fusion-start(%a), kind=kCustom, calls=%fused_all-reduce.2.clone, backend_config={"fusion_backend_config":{"kind":"__triton_collective"}}
  %fusion-done = f32[16,1024]{1,0} fusion-done(%fusion-start)
  %all-reduce-start = ((bf16[8192,1536]{1,0}), bf16[8192,1536]{1,0}) all-reduce-start(%b), channel_id=1, replica_groups=[4,2]<=[8], use_global_device_ids=true, to_apply=%add.clone, output_to_operand_aliasing={{1}: (0, {})}
  %all-reduce-done = bf16[8192,1536]{1,0} all-reduce-done(%all-reduce-start)
  %all-gather-start.20 = ((s32[1]{0}, bf16[16,2,512,128]{3,2,1,0}), (s32[4]{0}, bf16[64,2,512,128]{3,2,1,0})) all-gather-start(%c, %d), channel_id=120, replica_groups=mesh['data'=1,'fsdp'=4,'tensor'=2] {'fsdp'}, dimensions={0}, use_global_device_ids=true
  %all-gather-done.20 = (s32[4]{0}, bf16[64,2,512,128]{3,2,1,0}) all-gather-done(%all-gather-start.20)
  %collective-permute-start.17 = ((s32[1]{0}), s32[1]{0}) collective-permute-start(%c), channel_id=116, source_target_pairs={{0,0},{2,1},{4,2},{6,3},{1,4},{3,5},{5,6},{7,7}}
  %collective-permute-done.17 = s32[1]{0} collective-permute-done(%collective-permute-start.17)
  %async-start = ((bf16[4096,128]{1,0}), bf16[512,128]{1,0}, u32[]) async-start(%e), calls=%async_computation
  ROOT %async-done = bf16[512,128]{1,0} async-done(%async-start)
}
"""


def test_collectives_of_a_gpu_program_by_hand():
    total = hlo.HloProgram(COLLECTIVES).report().total
    assert total.collectives == 5
    kernel, large = 16 * 1024 * 4, 8192 * 1536 * 2
    gathered, own = 4 * 4 + 64 * 2 * 512 * 128 * 2, 4 + 16 * 2 * 512 * 128 * 2
    scattered, whole = 512 * 128 * 2, 4096 * 128 * 2
    # Of a sum over two, both halves; of a gather from four, three quarters; of a sum over eight that
    # is scattered, seven parts.
    assert total.network == kernel + large + 0.75 * gathered + 4 + 7 * scattered
    assert total.hbm == 2 * kernel + 2 * large + own + gathered + 2 * 4 + whole + scattered


# ---- decode loops with loops inside that end on data

INNER = """HloModule generate

%keys_body (k.1: (s32[], f32[64,1000], f32[64,10])) -> (s32[], f32[64,1000], f32[64,10]) {
  %k.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%k.1), index=0
  %cache.1 = f32[64,1000]{1,0} get-tuple-element(%k.1), index=1
  %zero.1 = s32[] constant(0)
  %some.1 = f32[64,10]{1,0} dynamic-slice(%cache.1, %zero.1, %i.1), dynamic_slice_sizes={64,10}
  ROOT %next.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) tuple(%i.1, %cache.1, %some.1)
}

%until (k.2: (s32[], f32[64,1000], f32[64,10])) -> pred[] {
  %k.2 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%k.2), index=0
  ROOT %on.2 = pred[] custom-call(%i.2), custom_call_target="any"
}

%layers_body (l.1: (s32[], f32[64,1000], f32[64,10])) -> (s32[], f32[64,1000], f32[64,10]) {
  %l.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) parameter(0)
  %x.1 = f32[64,10]{1,0} get-tuple-element(%l.1), index=2
  %twice.1 = f32[64,10]{1,0} add(%x.1, %x.1)
  ROOT %attend.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) while(%l.1), condition=%until, body=%keys_body
}

%tokens_body (t.1: (s32[], f32[64,1000], f32[64,10])) -> (s32[], f32[64,1000], f32[64,10]) {
  %t.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) parameter(0)
  %layers.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) while(%t.1), condition=%until, body=%layers_body, backend_config={"known_trip_count":{"n":"28"}}
  %x.2 = f32[64,10]{1,0} get-tuple-element(%layers.1), index=2
  %sampled.1 = f32[64,10]{1,0} exponential(%x.2)
  ROOT %next.2 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) tuple(%t.1)
}

%refill_body (r.1: (s32[], f32[64,1000], f32[64,10])) -> (s32[], f32[64,1000], f32[64,10]) {
  %r.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) parameter(0)
  %cache.9 = f32[64,1000]{1,0} get-tuple-element(%r.1), index=1
  %prompts.1 = f32[64,1000]{1,0} add(%cache.9, %cache.9)
  ROOT %tokens.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) while(%r.1), condition=%until, body=%tokens_body
}

ENTRY %main (s.1: (s32[], f32[64,1000], f32[64,10])) -> (s32[], f32[64,1000], f32[64,10]) {
  %s.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) parameter(0)
  ROOT %refill.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) while(%s.1), condition=%until, body=%refill_body
}
"""
PART, ROWS = 2 * 64 * 10 * 4, 64 * 10 * 4  # bytes of a trip of the inner loop; of the rows


def unrolled() -> str:
    """`INNER` with two layers in a row in place of a loop over 28."""
    layers = """  %x.8 = f32[64,10]{1,0} get-tuple-element(%t.1), index=2
  %twice.8 = f32[64,10]{1,0} add(%x.8, %x.8)
  %attend.8 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) while(%t.1), condition=%until, body=%keys_body
  %layers.1 = (s32[], f32[64,1000]{1,0}, f32[64,10]{1,0}) while(%attend.8), condition=%until, body=%keys_body.clone
"""
    start, end = INNER.index("  %layers.1 ="), INNER.index("  %x.2 =")
    clone = INNER[INNER.index("%keys_body") : INNER.index("%until")].replace(
        "%keys_body", "%keys_body.clone"
    )
    text = INNER[:start] + layers + INNER[end:]
    return text.replace("%until (", clone + "%until (", 1)


def test_loops_inside_a_decode_step_are_reported_by_themselves():
    report = hlo.HloProgram(INNER).report()
    by_name = {loop.body: loop for loop in report.loops}
    assert list(by_name) == ["refill_body", "tokens_body", "layers_body", "keys_body"]
    assert by_name["keys_body"].path == (None, None, 28)
    assert by_name["keys_body"].traffic.hbm == PART
    # A token: what 28 layers and the sampler do outside of the inner loop, to which it comes 28
    # times.
    tokens = by_name["tokens_body"]
    assert report.decode is tokens
    assert tokens.traffic.hbm == 28 * 3 * ROWS + 2 * ROWS
    assert tokens.parts == ((by_name["keys_body"], 28),)
    assert tokens.trip(lambda part: 50).hbm == tokens.traffic.hbm + 28 * 50 * PART
    assert tokens.traffic.hbm == 28 * 3 * ROWS + 2 * ROWS
    # The loop over refills comes to the tokens once, and is none of this.
    assert by_name["refill_body"].parts == ()
    assert by_name["refill_body"].around_open and not tokens.around_open


def test_loops_inside_of_layers_that_stand_in_a_row_are_parts_too():
    report = hlo.HloProgram(unrolled()).report()
    assert report.decode is not None
    assert report.decode.body == "tokens_body"
    assert [(part.body, times) for part, times in report.decode.parts] == [
        ("keys_body", 1),
        ("keys_body.clone", 1),
    ]
    assert report.decode.trip(lambda part: 7).hbm == 3 * ROWS + 2 * ROWS + 14 * PART


def test_a_step_with_inner_loops_is_taken_to_read_the_cache_once():
    program = hlo.HloProgram(INNER)
    loop = program.report().decode
    assert loop is not None
    facts = lint.Facts(layer_cache=100 * PART / 2, layers=28)
    planned = SimpleProgram(Work(0.0, steps=10, step_flops=1.0), facts)
    step = measure.decode_step(planned, program, loop, parse_topology("h100:1"))
    assert step["parts"] == [{"times": 28, "trips": 100, "hbm": PART}]
    assert step["hbm"] == 28 * 3 * ROWS + 2 * ROWS + 28 * 100 * PART
    assert step["seconds"] == step["hbm"] / 3.35e12
    assert json.loads(json.dumps(step)) == step


@dataclasses.dataclass
class SimpleProgram:
    """What `decode_step` asks of a planned program."""

    work: Work
    facts: lint.Facts


def test_shapes_of_what_is_started():
    def result(text: str) -> str:
        part = hlo_text.read_program(f"ENTRY %m () -> s32[] {{\n  %o = {text}\n}}")[0]["m"]
        return part["o"].result

    pair = "((f32[2]{0}, s32[]), (f32[4]{0}, s32[2]{0}))"
    assert result(f"{pair} all-gather-start(%a, %b)") == "(f32[4]{0}, s32[2]{0})"
    assert result("(f32[2]{0}, f32[4]{0}) all-gather-start(%a)") == "f32[4]{0}"
    # A TPU's sums have the shape of their result, several in one.
    assert result("(f32[2]{0}, f32[4]{0}) all-reduce-start(%a, %b)") == "(f32[2]{0}, f32[4]{0})"
    assert result("(f32[2]{0:S(1)}, f32[2]{0}, u32[]) copy-start(%a)") == "f32[2]{0:S(1)}"
    assert hlo_text.parts_of("(f32[4,2]{1,0}, /*index=1*/(s32[], u32[]))") == [
        "f32[4,2]{1,0}",
        "(s32[], u32[])",
    ]


# ---- fewer layers


def test_models_are_cut_to_their_first_layers():
    deep = dataclasses.replace(
        TINY, num_layers=4, window=8, local_layers=(False, False, True, True)
    )
    cut = command.cut(Models(deep, TINY, None), 2)
    assert (cut.policy.num_layers, cut.policy.window, cut.policy.local_layers) == (
        2,
        0,
        (False, False),
    )
    assert cut.prm is None
    assert command.cut(Models(deep), 3).policy.local_layers == (False, False, True)
    assert command.cut(Models(TINY), 99).policy.num_layers == TINY.num_layers
    for wrong in (-1, 1):
        with pytest.raises(ValueError, match=f"--layers={wrong}: expected a number"):
            command.cut(Models(TINY), wrong)
    (note,) = command.notes(parse_topology("h100:8"), 2)
    assert note.startswith("models cut to 2 layers")
    assert command.notes(parse_topology("v5e:2x4"), 0) == []
    assert "between hosts" in command.notes(parse_topology("h100:2x8"), 0)[0]


# ---- with the GPU's compiler

needs_plugin = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in gpu.PLUGINS),
    reason="JAX's CUDA plugin is not installed (make fit FIT=fit-gpu)",
)


def compiled(function, *shapes, on="h100:1", specs=(), **options) -> str:
    """The text of `function` of bfloat16 arrays (a number: of int32), compiled for `on`. specs: how
    arrays are split over the GPUs; options: of the compiler."""
    mesh = Mesh(np.array(topology.devices(parse_topology(on))), ("x",))
    arrays = [
        jax.ShapeDtypeStruct(
            shape,
            jnp.int32 if shape == () else jnp.bfloat16,
            sharding=NamedSharding(mesh, PartitionSpec(*(specs[n] if specs else ()))),
        )
        for n, shape in enumerate(shapes)
    ]
    return jax.jit(function).lower(*arrays).compile(compiler_options=options).as_text()


@needs_plugin
@pytest.mark.parametrize("triton", [True, False])
def test_a_product_reads_its_operands_and_writes_its_result(triton):
    text = compiled(lambda x, w: x @ w, (2048, 512), (512, 1024), xla_gpu_enable_triton_gemm=triton)
    assert ("__cublas" in text) is not triton
    moved = 2 * (2048 * 512 + 512 * 1024 + 2048 * 1024)
    assert hlo.HloProgram(text).report().total.hbm == moved


@needs_plugin
def test_a_loop_that_ends_on_data_is_counted_per_trip():
    def loop(x, w, n):
        return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] @ w), (0, x))[1]

    # A product of Triton may write parts of its sums, which a library keeps to itself.
    shapes = (256, 1024), (1024, 1024), ()
    report = hlo.HloProgram(compiled(loop, *shapes, xla_gpu_enable_triton_gemm=False)).report()
    assert report.decode is not None
    moved = 2 * (2 * 256 * 1024 + 1024 * 1024)
    # The counter, its limit and, where the compiler puts one, a copy of the rows.
    assert moved <= report.decode.traffic.hbm <= moved + 2 * 2 * 256 * 1024 + 64


@needs_plugin
@pytest.mark.parametrize("triton", [True, False])
def test_layers_in_a_stack_cost_what_is_read_of_them(triton):
    """Four layers of weights and of a cache in one array each: a step reads them once, and what
    it copies is named."""

    def generate(cache, w, x, n):
        def layer(i, x):
            keys = lax.dynamic_index_in_dim(cache, i, 0, False)
            scores = jnp.einsum("bh,bth->bt", x @ lax.dynamic_index_in_dim(w, i, 0, False), keys)
            return jnp.einsum("bt,bth->bh", scores, keys)

        step = lambda s: (s[0] + 1, lax.fori_loop(0, 4, layer, s[1]))  # noqa: E731
        return lax.while_loop(lambda s: s[0] < n, step, (0, x))[1]

    text = compiled(
        generate,
        (4, 64, 1024, 128),
        (4, 128, 128),
        (64, 128),
        (),
        xla_gpu_enable_triton_gemm=triton,
    )
    program = hlo.HloProgram(text)
    report = program.report()
    cache = 64 * 1024 * 128 * 2
    assert report.decode is not None
    copies = lint.decode_copies(program, report, cache)
    assert {copy.size for copy in copies} <= {cache}
    copied = sum(copy.times for copy in copies)
    # The two products read a layer's cache, or a copy of it that was read and written; nothing
    # reads the stack of all four. A product that is written out by itself is as large as the cache.
    least = 4 * 2 * cache + 2 * copied * cache
    assert least <= report.decode.traffic.hbm < least + 4 * 2 * cache + 0.1 * least


@needs_plugin
def test_a_sum_over_gpus_is_counted():
    text = compiled(
        lambda x, w: x @ w, (256, 1024), (1024, 1024), on="h100:2", specs=[(None, "x"), ("x", None)]
    )
    total = hlo.HloProgram(text).report().total
    assert total.collectives == 1
    # The sum is taken of bfloat16 or float32.
    assert total.network in (256 * 1024 * 2, 256 * 1024 * 4)


@needs_plugin
@pytest.mark.parametrize(("name", "count"), [("h200:4", 4), ("b200:8", 8), ("h100:2x8", 16)])
def test_every_kind_is_compiled_for(name, count):
    devices = topology.devices(parse_topology(name))
    assert len(devices) == count
    assert devices[0].device_kind == gpu.KINDS[name.split(":")[0]].target.name
    # Rows over all GPUs, and a sum over them.
    text = compiled(lambda x: x.sum(0), (16 * 64, 512), on=name, specs=[("x",)])
    total = hlo.HloProgram(text).report().total
    assert total.collectives == 1
    # 512 numbers, of bfloat16 or float32, there and back.
    share = (count - 1) / count
    assert total.network in (2 * share * 512 * 2, 2 * share * 512 * 4)


@needs_plugin
def test_a_config_is_compiled_for_gpus(tmp_path, monkeypatch):
    monkeypatch.delenv(gpu.SHARE, raising=False)
    config = small_config(tmp_path)
    h100 = parse_topology("h100:8")
    report = command.fit(config, h100, only=["decode_layout", "rollout"], layers=2)
    assert report["fits"]
    assert report["limit"] == h100.limit
    assert report["programs"][1]["tokens_per_s"] > 0
    text = table.table(report)
    assert "h100:8: 8 devices of 59.33 GiB (75% of 79.11 GiB" in text
    assert "note: models cut to 2 layers" in text
    # The compiler refuses nothing: a program is held against what the allocator takes.
    monkeypatch.setenv(gpu.SHARE, "0.00001")
    report = command.fit(config, h100, only=["decode_layout"], layers=2)
    assert not report["fits"] and report["programs"][0]["error"] == ""
    assert "too much" in table.table(report)


def planned(config, on: str):
    """{name: Planned} of a config's programs for `on`."""
    settings = train_config(config)
    found, _ = command.find_models(settings)
    made = plan(settings, found, topology.devices(parse_topology(on)))
    return {program.name: program for program in made.programs}


def compiled_text(program, **options) -> str:
    with jax.set_mesh(program.mesh):
        return program.lower().compile(compiler_options=options).as_text()


@needs_plugin
@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize(("on", "tensor"), [("h100:1", 1), ("h100:8", 2)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_decoding_copies_no_layer(tmp_path, on, tensor, dtype, triton):
    """Neither keys, values nor weights of a layer, by either kind of products; bfloat16 is attended
    to by cuDNN, float32, which that would round, is not."""
    config = small_config(tmp_path)
    config.dtype, config.rollout.new_tokens = dtype, 960
    config.mesh.fsdp, config.mesh.tensor = 1, tensor
    config.mesh.data = -1
    rollout = planned(config, on)["rollout"]
    text = compiled_text(rollout, xla_gpu_enable_triton_gemm=triton)
    program = hlo.HloProgram(text)
    report, facts = program.report(), rollout.facts
    assert report.decode is not None
    assert lint.decode_copies(program, report, min(facts.layer_cache, facts.layer_weights)) == []
    kernels = program.kernels(report.decode.body)
    attends = [kernel for kernel in kernels if "fmha" in kernel.op.target]
    assert len(attends) == (2 if dtype == "bfloat16" else 0)


@needs_plugin
def test_an_update_attends_by_a_kernel_forward_and_backward(tmp_path):
    """One call for each of two layers and each way; the only loops are micro-batches, and chunks
    of logits where there is more than one."""
    config = small_config(tmp_path)
    config.rollout.new_tokens = 1984
    config.mesh.fsdp, config.mesh.tensor, config.training.remat = 1, 1, "none"
    text = compiled_text(planned(config, "h100:1")["update"])
    assert len(re.findall(r'custom_call_target="__cudnn\$fmhaSoftmax"', text)) == 2
    assert len(re.findall(r'custom_call_target="__cudnn\$fmhaSoftmaxBackward"', text)) == 2
    program = hlo.HloProgram(text)
    assert sorted(loop.trips for loop in program.report().loops) == [4]
    # float32 master weights, and not one product of float32 arrays.
    products = [
        [part[name].shape for name in op.operands]
        for part in program.parts.values()
        for op in part.values()
        if op.kind == "dot" or op.target.startswith("__cublas")
    ]
    # Two layers of four products (queries, keys and values are merged, gate and up too), each
    # forward and twice backward, and those of the logits.
    assert len(products) > 2 * 4 * 3
    assert [shapes for shapes in products if any(shape.startswith("f32") for shape in shapes)] == []
