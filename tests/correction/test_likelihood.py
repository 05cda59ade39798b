"""First errors by the teacher's likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import (
    DOMAIN,
    LAST,
    LINE2,
    PLAIN,
    RIGHT,
    STEP,
    TOKENIZER,
    WRONG_2,
    WRONG_3,
    V,
    blank,
    played,
    run,
    scene,
    text,
)

from scope_jax.configuration import default_config, train_config
from scope_jax.correction import LocaliserSpec, in_steps
from scope_jax.devices.mesh import make_mesh
from scope_jax.rollout import Generator
from scope_jax.teachers import ModelTeacher, TeacherSpec

LIKELIHOOD = LocaliserSpec("likelihood", threshold=0.5)


def table(surprising: str, logit: float) -> Generator:
    """A writer that thinks all tokens equally likely, whatever stands before them, but one."""
    head = np.zeros((V, V), np.float32)
    head[:, TOKENIZER.convert_tokens_to_ids(surprising)] = logit / V**0.5
    return Generator(blank(PLAIN) | {"head": jnp.asarray(head)}, PLAIN)


def steps_of(batch):
    return in_steps(batch, [None] * 4, np.arange(4), TOKENIZER, DOMAIN.divider)


def test_a_step_is_worth_the_geometric_mean_of_its_tokens_probabilities():
    batch = scene(RIGHT + "#", "+784\n-988\n", WRONG_3 + "#", "")
    place = played(teacher=table("8", -4.0), localiser=LIKELIHOOD)
    scores = place.localiser.score(steps_of(batch), place)
    total = V - 1 + np.exp(-4.0)
    other, eight = 1 / total, np.exp(-4.0) / total

    def worth(step: str) -> float:
        probabilities = [eight if c == "8" else other for c in step]
        return float(np.prod(probabilities) ** (1 / len(probabilities)))

    expected = [
        [worth("+777\n"), worth("-987\n"), worth("+198")],
        [worth("+784\n"), worth("-988\n")],
        [worth("+777\n"), worth("-987\n"), worth("+190")],
        [],
    ]
    assert scores.valid_RJ.tolist() == [[j < len(row) for j in range(3)] for row in expected]
    for row, line in zip(scores.score_RJ, expected, strict=True):
        np.testing.assert_allclose(row[: len(line)], line, rtol=1e-4)
    lengths = [len(RIGHT) + 1, 10, len(WRONG_3) + 1]
    assert scores.metrics["cost/prm_tokens"] == sum(lengths) + 3 * 7  # prompts of 7 tokens
    assert scores.metrics["scope/unscored"] == 0


def test_a_line_of_the_teachers_own_is_far_likelier_than_another():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_3 + "#", RIGHT + "#")
    found = played(teacher=LINE2, localiser=LIKELIHOOD).localiser.score(
        steps_of(batch), played(teacher=LINE2, localiser=LIKELIHOOD)
    )
    right, wrong = found.score_RJ[0], found.score_RJ[1]
    assert right[1] > wrong[1] * 10, (right, wrong)  # -987 against -988


def test_a_rescue_by_likelihood():
    # It would rather write -987 than anything else, and never an 8 after an 8: -988 holds one.
    head = 0.02 * np.asarray(LINE2.params["head"])
    eight = TOKENIZER.convert_tokens_to_ids("8")
    head[eight, eight] = -4.0
    teacher = ModelTeacher(Generator(blank(PLAIN) | {"head": jnp.asarray(head)}, PLAIN), STEP)
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", RIGHT + "#")
    place = played(teacher=teacher, localiser=LIKELIHOOD)
    scores = place.localiser.score(steps_of(batch), place).score_RJ
    assert scores[1, 1] < 0.2 * scores[1, 0]
    between = float(np.sqrt(scores[1, 1] * scores[1, 0]))
    spec = LocaliserSpec("likelihood", threshold=between)
    result = run(batch, [1, 0, 0, 1], teacher=teacher, localiser=spec)
    assert text(result.rollout, 1) == RIGHT + "#" and result.reward_B.tolist() == [1, 1, 0, 1]
    assert result.gallery[0]["steps"][1]["score"] == pytest.approx(scores[1, 1])


def test_the_same_scores_on_every_mesh():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_3 + "#", RIGHT)
    teacher = table("8", -4.0)
    here = played(teacher=teacher, localiser=LIKELIHOOD)
    expected = here.localiser.score(steps_of(batch), here).score_RJ
    for shape in ((8, 1, 1), (1, 2, 4)):
        mesh = make_mesh(*shape)
        with jax.set_mesh(mesh):
            place = played(teacher=teacher, localiser=LIKELIHOOD)
            place.localiser.compile_ahead(batch, place)
            found = place.localiser.score(steps_of(batch), place).score_RJ
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_teacher_that_cannot_read_the_rows_is_refused():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_3 + "#", RIGHT)
    own_words = ModelTeacher(LINE2, TeacherSpec(template="wrong_step"), TOKENIZER)
    place = played(teacher=own_words, localiser=LIKELIHOOD)
    with pytest.raises(ValueError, match="with the policy's tokenizer; use localiser 'prm'"):
        place.localiser.score(steps_of(batch), place)

    config = default_config("scope")
    config.models.policy = config.models.teacher = "somewhere"
    config.localiser.kind = "likelihood"
    assert not train_config(config).uses_prm
    for kind, works in (("model", True), ("self", True), ("program", False), ("endpoint", False)):
        config.teacher.kind = kind
        if works:
            train_config(config)
            continue
        with pytest.raises(ValueError, match=f"'model' or 'self', not '{kind}'"):
            train_config(config)
    process = default_config("process")
    process.localiser.kind = "likelihood"
    with pytest.raises(ValueError, match=r"needs scores of steps: .*not 'likelihood'"):
        train_config(process)


def test_the_policys_own_likelihood_where_it_is_its_own_teacher():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_3 + "#", RIGHT)
    policy = table("8", -4.0)
    itself = ModelTeacher(None, STEP)
    place = played(policy=policy, teacher=itself, localiser=LIKELIHOOD)
    other = played(policy=LAST, teacher=policy, localiser=LIKELIHOOD)
    np.testing.assert_array_equal(
        place.localiser.score(steps_of(batch), place).score_RJ,
        other.localiser.score(steps_of(batch), other).score_RJ,
    )
