"""`fit` of a run with on-policy distillation: the teacher's pass over the policy's rows."""

import jax
from support.small_config import small_config

from scope_jax.configuration import set_method, train_config
from scope_jax.fit.known_models import model_shapes
from scope_jax.fit.programs import plan
from scope_jax.fit.shapes import Models


def test_the_teacher_reads_every_row_on_its_own_mesh(tmp_path):
    config = small_config(tmp_path)
    shapes = model_shapes(str(tmp_path))[0]
    set_method(config, "grpo")
    config.loss.distill_weight = 1.0
    config.mesh.teacher.data, config.mesh.teacher.fsdp, config.mesh.teacher.tensor = 4, 1, 2
    config.placement.teacher = "host"
    made = plan(train_config(config), Models(shapes, shapes), jax.devices())
    programs = {program.name: program for program in made.programs}
    assert list(programs) == [
        "decode_layout",
        "rollout",
        "teacher log-probs",
        "update",
        "evaluation",
    ]
    read = programs["teacher log-probs"]
    assert dict(read.mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    # It is brought to the devices for this, and gone from them during the update.
    assert "teacher" in read.uses and "teacher" not in read.gone
    assert "teacher" in programs["update"].gone and read.runs == 1
    with jax.set_mesh(read.mesh):
        text = read.lower().as_text()
    # Sixteen prompts of 64 tokens, 64 completions of 192.
    assert "tensor<16x64xi32>" in text and "tensor<64x192xi32>" in text
    with jax.set_mesh(programs["update"].mesh):
        assert programs["update"].lower() is not None  # it takes the teacher's log-probs
