"""A group of hand-made rollouts, and writers and a judge that are made by hand too.

The writers are bigram models (the layers add nothing, the head is a table "after this character
comes that one") and the process reward model says "wrong from the first 4 on", so that every
expected token, owner and score can be written down.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import models
from scope_jax.correction import (
    CorrectionSpec,
    Groups,
    LocaliserSpec,
    Scene,
    SelectSpec,
    make_localiser,
    rescue,
)
from scope_jax.prm import ProcessRewardModel
from scope_jax.rollout import Generator, Policy, SampleSpec, from_prompts, splice
from scope_jax.tasks import Arithmetic, Problem
from scope_jax.teachers import ModelTeacher, TeacherSpec
from scope_jax.text import character_tokenizer
from scope_jax.types import Owner, Rollout

NAN = float("nan")
PAD, PROMPT, POLICY, TEACHER = (
    int(o) for o in (Owner.PAD, Owner.PROMPT, Owner.POLICY, Owner.TEACHER)
)

DOMAIN = Arithmetic(start="zero")
TOKENIZER = character_tokenizer(
    DOMAIN.characters
)  # 0 end, 1 step mark, 2-11 digits, 12 +, 13 -, 14 :, 15 =, 16 newline
V = len(TOKENIZER)
PROBLEM = DOMAIN.make_problem(["+7", "-9", "+1"])  # prompt +7-9+1=, right lines +777 -987 +198
RIGHT = "+777\n-987\n+198"
UNUSED = 20  # an id that no text holds: a free direction of the hand-made models
PLAIN = models.ModelConfig(
    vocab_size=V,
    hidden_size=V,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_size=12,
    ffn_size=8,
    max_positions=64,
    end_ids=(0,),
)


class EveryLine(Arithmetic):
    """A solution is right if it has all of its three lines and the right answer."""

    def verify(self, problems, completions):
        right = super().verify(problems, completions)
        return [
            good and text.count("\n") == 2 for good, text in zip(right, completions, strict=True)
        ]


def blank(config: models.ModelConfig) -> dict:
    """Parameters whose layers pass each token's one-hot embedding through."""
    params = jax.tree.map(jnp.zeros_like, models.init(config, jax.random.key(0)))
    ones = {"attention_norm": 1.0, "ffn_norm": 1.0}
    params["layers"] = {name: w + ones.get(name, 0.0) for name, w in params["layers"].items()}
    return params | {"embed": jnp.eye(V), "final_norm": jnp.ones(V)}


def bigram(chain: str) -> Generator:
    """A writer that follows each character of `chain` by the next one; `#` is the end token."""
    ids = [
        0 if c == "#" else TOKENIZER.convert_tokens_to_ids("Ċ" if c == "\n" else c) for c in chain
    ]
    head = np.zeros((V, V), np.float32)
    head[ids[:-1], ids[1:]] = 20.0  # x sqrt(V) after the norm: no other token has a chance
    return Generator(blank(PLAIN) | {"head": jnp.asarray(head)}, PLAIN)


def fours_are_wrong(good: float = 3.0) -> ProcessRewardModel:
    """Good (logit `good`) as long as no 4 was written: uniform attention carries the share of 4s
    to every slot."""
    config = PLAIN.with_head("prm")
    params = blank(config)
    four = TOKENIZER.convert_tokens_to_ids("4")
    layers = params["layers"]
    layers["value"] = layers["value"].at[0, four, 0].set(1.0)
    layers["output"] = layers["output"].at[0, 0, UNUSED].set(1000.0)
    params |= {
        "prm_hidden": jnp.eye(V),
        "prm_output": params["prm_output"].at[UNUSED, 1].set(-2.0),
        "prm_output_bias": jnp.array([0.0, good]),
    }
    return ProcessRewardModel(params, config, TOKENIZER)


GROUP, BUFFER = 4, 7 + 16
SPEC = CorrectionSpec(select=SelectSpec(per_group=2))
ORACLE, PRM = LocaliserSpec("oracle"), LocaliserSpec("prm")
STEP = TeacherSpec(step_tokens=8)
SAMPLE = SampleSpec(temperature=1.0, max_new_tokens=16, end_ids=(0,))
LINE2 = bigram("\n-987\n")  # writes the right second line
LAST = bigram("\n+198#")  # writes the right last line and the end token
IDLE = bigram("++")

WRONG_2 = "+777\n-988\n+199"  # first error in step 1 of 3
WRONG_3 = "+777\n-987\n+190"  # first error in the last step
WRONG_1 = "+778\n-988\n+199"  # no good step
WITH_4 = "+777\n-984\n+195"  # what the hand-made PRM finds at step 1


def scene(*rows: str, problem: Problem = PROBLEM) -> Rollout:
    """One group of rows as the policy wrote them; `#` is the end token. Log-probs: -slot / 100."""
    batch = from_prompts([TOKENIZER.encode(problem.prompt)], GROUP, BUFFER)
    ids = [TOKENIZER.encode(row.removesuffix("#")) + [0] * row.endswith("#") for row in rows]
    tokens = np.zeros((GROUP, 16), np.int32)
    for number, row in enumerate(ids):
        tokens[number, : len(row)] = row
    count = jnp.array([len(row) for row in ids])
    logp = jnp.broadcast_to(-(jnp.arange(16) + 7.0) / 100, (GROUP, 16))
    return splice(
        batch,
        jnp.asarray(tokens),
        count,
        Owner.POLICY,
        logp_BJ=logp,
        finished_B=jnp.array([r.endswith("#") for r in rows]),
    )


class Outcome(NamedTuple):
    """What a rescue leaves, flat."""

    rollout: Rollout
    group: int
    reward_B: np.ndarray
    include_B: np.ndarray
    metrics: dict[str, float]
    gallery: list[dict[str, Any]]


def groups_of(batch: Rollout, reward: list[float], problem: Problem = PROBLEM) -> Groups:
    """The rows as judged groups."""
    rewards = np.array(reward, np.float32)
    return Groups(
        batch,
        GROUP,
        [problem] * len(reward),
        rewards,
        rewards >= 1,
        ~np.isnan(rewards),
        np.ones(len(reward), bool),
        {},
    )


def played(
    *,
    policy: Generator = LAST,
    teacher: Any = LINE2,
    localiser: LocaliserSpec = ORACLE,
    prm: ProcessRewardModel | None = None,
    seed: int = 0,
    sample: SampleSpec = SAMPLE,
    domain: Arithmetic = DOMAIN,
) -> Scene:
    """The scene of a rescue. A bare model is a teacher that continues rows."""
    if isinstance(teacher, Generator):
        teacher = ModelTeacher(teacher, STEP)
    return Scene(
        domain,
        Policy(policy, TOKENIZER, sample),
        jax.random.key(3),
        teacher=teacher,
        localiser=make_localiser(localiser, prm),
        seed=seed,
        timer=lambda phase: contextlib.nullcontext(),
    )


def run(
    batch: Rollout,
    reward: list[float],
    spec: CorrectionSpec = SPEC,
    *,
    problem: Problem = PROBLEM,
    **parts: Any,
) -> Outcome:
    """A whole rescue."""
    result = rescue(groups_of(batch, reward, problem), played(**parts), spec)
    final = result.groups
    return Outcome(
        final.rollout,
        final.group,
        final.reward_B,
        final.include_B,
        result.metrics,
        result.gallery,
    )


def text(rollout: Rollout, row: int) -> str:
    """The written part of a row, `#` for the end token."""
    ids = np.asarray(rollout.tokens_BT)[
        row, int(rollout.prompt_length_B[row]) : int(rollout.length_B[row])
    ].tolist()
    return "".join("#" if i == 0 else TOKENIZER.decode([i]) for i in ids)


def same(a: Rollout, b: Rollout, rows) -> bool:
    rows = np.asarray(rows)
    return all(
        np.array_equal(np.asarray(x)[rows], np.asarray(y)[rows])
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )
