"""An update, a whole step and the scores of a process reward model, by the classes that a training
run uses: in micro-batches of a few rows, the library choosing what is computed again; in
smaller ones where that runs out of memory."""

from typing import Any

import jax
import numpy as np

from accelerator_parts import limits
from accelerator_parts.device import model_config
from accelerator_parts.plan import Part
from accelerator_parts.work import Work, clocked
from scope_jax import learning, models, rollout
from scope_jax.configuration import TrainConfig, sections
from scope_jax.devices.current import current_mesh
from scope_jax.devices.mesh import put_rows
from scope_jax.prm import ProcessRewardModel
from scope_jax.training.actors import Actors
from scope_jax.training.learner import Learner
from scope_jax.types import Owner, Rollout

STEPS = 8  # of a solution that is scored


def run(part: Part, work: Work) -> None:
    {"update": update, "step": step, "prm": score}[part.kind](work)


# ---- the settings


# Rows of a micro-batch: with few, what the layers hold fits and nothing is computed again.
MICRO_BATCH = 8


def settings(work: Work, passes: int) -> TrainConfig:
    """The config of a training run with these sizes."""
    size = work.size
    return TrainConfig(
        dtype=size.dtype,
        rollout=sections.RolloutConfig(
            prompts=size.update_prompts,
            group=size.group,
            prompt_tokens=size.prompt_tokens,
            new_tokens=size.update_tokens,
        ),
        training=sections.TrainingConfig(micro_batches=passes),
    )


def first_passes(work: Work) -> int:
    """Micro-batches of MICRO_BATCH rows, or fewer."""
    return max(work.size.update_prompts * work.size.group // MICRO_BATCH, 1)


def learner(work: Work) -> tuple[Learner, str]:
    """(the learner of this part's shape, words about its settings), kept for the next part."""
    name = f"learner {work.shape.name}"
    work.only(name)
    if name not in work.kept:
        work.need_memory(1.1 * limits.update_bytes(work.shape))
        work.kept[name] = new_learner(work, first_passes(work))
    made = work.kept[name]
    rows = work.size.update_prompts * work.size.group
    training = made.config.training
    each = rows // training.micro_batches
    return made, f"remat {made.remat}, micro-batches of {each} rows"


def new_learner(work: Work, passes: int) -> Learner:
    config, mesh = model_config(work.shape), current_mesh()
    params = models.init(config, jax.random.key(0), work.size.dtype, mesh)
    # Of the actors of a run, a learner takes the policy.
    none: Any = None
    actors = Actors(config, params, none, none, None, None)
    return Learner(settings(work, passes), actors, mesh, jax.random.key(1))


# ---- an update


def random_rows(work: Work) -> Rollout:
    """Rows of random tokens, prompts and completions all as long as they may be, with the log-prob
    of a uniform draw."""
    size, vocab = work.size, work.shape.vocab
    stream = np.random.default_rng(1)
    P, M, W, C = size.update_prompts, size.group, size.prompt_tokens, size.update_tokens
    tokens = stream.integers(1, vocab, (P * M, W + C)).astype(np.int32)
    tokens[:, :W] = np.repeat(tokens[::M, :W], M, axis=0)
    prompt = np.arange(W + C)[None] < W
    arrays = dict(
        tokens_BT=tokens,
        owner_BT=np.broadcast_to(np.where(prompt, Owner.PROMPT, Owner.POLICY), tokens.shape),
        logp_BT=np.broadcast_to(np.where(prompt, 0, -np.log(vocab)), tokens.shape),
        length_B=np.full(P * M, W + C, np.int32),
        prompt_length_B=np.full(P * M, W, np.int32),
        finished_B=np.zeros(P * M, bool),
        row_id_B=np.arange(P * M, dtype=np.int32),
    )
    arrays["owner_BT"] = arrays["owner_BT"].astype(np.int8)
    arrays["logp_BT"] = arrays["logp_BT"].astype(np.float32)
    return Rollout(**put_rows(arrays))


def train_on(work: Work, made: Learner, rows: Rollout) -> dict[str, float]:
    """One update, with a reward that needs no text: whether the sum of a completion is odd. Raises
    ValueError where the library left the update out."""
    group = work.size.group
    reward = np.array([sum(ids) % 2 for ids in rollout.completion_ids(rows)], np.float32)
    advantage = learning.group_advantages(reward, group)
    metrics = made.update(rows, group, advantage, np.ones(len(reward), bool), jax.random.key(2), 0)
    if metrics["grad/skipped_now"]:
        raise ValueError("the update was left out: its loss or gradient is not finite")
    return metrics


def first_update(work: Work, rows: Rollout) -> tuple[float, dict[str, float], str]:
    """(seconds, metrics, words) of the update that compiles; once more in small micro-batches where
    the device's memory was not enough."""
    words = learner(work)[1]
    count, passes = work.size.update_prompts * work.size.group, micro_batches(work)
    try:
        return *clocked(lambda: train_on(work, learner(work)[0], rows)), words
    except Exception as error:
        more = min(max(8, 4 * passes), count)
        if "RESOURCE_EXHAUSTED" not in str(error) or more == passes:
            raise
        work.say(f"out of memory with {words}; {more} micro-batches instead")
    # Outside of the handler: what the error holds would stay in memory.
    work.only()
    work.kept[f"learner {work.shape.name}"] = new_learner(work, more)
    seconds, metrics = clocked(lambda: train_on(work, learner(work)[0], rows))
    return seconds, metrics, learner(work)[1] + f" ({words}: out of memory)"


def micro_batches(work: Work) -> int:
    return learner(work)[0].config.training.micro_batches


def flops(work: Work) -> float:
    """Of an update of full rows."""
    size = work.size
    rows = size.update_prompts * size.group
    return limits.update_flops(
        work.shape, size.update_prompts, size.prompt_tokens, rows, size.update_tokens
    )


def named(work: Work) -> str:
    size = work.size
    lengths = f"{size.prompt_tokens} + {size.update_tokens}"
    return f"{work.shape.name}: {size.update_prompts} x {size.group}, {lengths}"


def update(work: Work) -> None:
    size, rows = work.size, random_rows(work)
    first, metrics, words = first_update(work, rows)
    work.say(f"first update, compilation included: {first:.1f} s")
    made = learner(work)[0]
    found = work.timed(lambda: train_on(work, made, rows), first=first)
    slots = size.update_prompts * (size.prompt_tokens + size.group * size.update_tokens)
    work.add(
        named(work),
        **found,
        rate=flops(work) / found["seconds"] / 1e12,
        rate_unit="TFLOP/s",
        share=flops(work) / found["seconds"] / work.peaks["flops"],
        of="compute",
        tokens=slots,
        tokens_per_second=slots / found["seconds"],
        loss=metrics["loss/total"],
        grad_norm=metrics["grad/norm"],
        note=f"{slots:,} packed slots, {words}",
    )


# ---- a step


def step(work: Work) -> None:
    size, made, words = work.size, *learner(work)
    stream = np.random.default_rng(0)
    prompts = stream.integers(1, work.shape.vocab, (size.update_prompts, size.prompt_tokens))
    start = rollout.from_prompts(
        prompts.tolist(), size.group, size.prompt_tokens + size.update_tokens
    )
    sampling = made.config.rollout.sampling(())
    count, seconds = size.update_prompts * size.group, []

    def whole() -> None:
        def rolled() -> Rollout:
            return jax.block_until_ready(
                made.publish().extend(
                    start, jax.random.key(len(seconds)), sampling, shared_prefix=size.group
                )
            )

        writing, rows = clocked(rolled)
        learning_, _ = clocked(lambda: train_on(work, made, rows))
        seconds.append((writing, learning_))

    first, _ = clocked(whole)
    work.say(f"first step, compilation included: {first:.1f} s")
    found = work.timed(whole, first=first)
    least = limits.rollout_seconds(
        work.shape,
        size.dtype,
        size.update_prompts,
        size.prompt_tokens,
        [size.update_tokens] * count,
        count,
        work.peaks,
    )
    least += flops(work) / work.peaks["flops"]
    writing, training = np.median(np.array(seconds[1:]), axis=0).tolist()
    work.add(
        named(work),
        **found,
        rate=count * size.update_tokens / found["seconds"],
        rate_unit="tok/s",
        share=least / found["seconds"],
        of="memory and compute",
        rollout_seconds=writing,
        update_seconds=training,
        note=f"rollouts {writing:.3g} s, reward and update {training:.3g} s; {words}",
    )


# ---- a process reward model


def score(work: Work) -> None:
    from support.prm_fixtures import byte_level_tokenizer

    size, shape = work.size, work.shape
    work.only()
    work.need_memory(2 * limits.weights(shape) * limits.BYTES[size.dtype])
    config = model_config(shape, "prm")
    params = models.init(config, jax.random.key(0), size.dtype, current_mesh())
    prm = ProcessRewardModel(params, config, byte_level_tokenizer(), "qwen")
    steps = solution(prm, size.prm_tokens)
    problems, solutions = ["1"] * size.prm_rows, [steps] * size.prm_rows

    def scored() -> Any:
        return prm.score(problems, solutions, rows=size.prm_rows, tokens=size.prm_tokens)

    first, (values, valid, unscored) = clocked(scored)
    if unscored or not valid.all() or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{unscored} rows without scores, or scores that are no probabilities")
    found = work.timed(scored, first=first)
    flops = limits.score_flops(shape, size.prm_rows, size.prm_tokens)
    work.add(
        f"{shape.name}: {size.prm_rows} rows x {size.prm_tokens}",
        **found,
        rate=size.prm_rows * size.prm_tokens / found["seconds"],
        rate_unit="tok/s",
        share=flops / found["seconds"] / work.peaks["flops"],
        of="compute",
        note="tokenizer included",
    )


def solution(prm: ProcessRewardModel, tokens: int) -> list[str]:
    """Steps of digits that, with the problem "1" and the template, are `tokens` tokens long."""
    bare = len(prm.encode("1", ["1"] * STEPS)[0])
    more, rest = divmod(tokens - bare, STEPS)
    if more < 0:
        raise ValueError(f"a solution of {tokens} tokens: the template alone has {bare}")
    steps = ["1" * (1 + more + (n < rest)) for n in range(STEPS)]
    found = len(prm.encode("1", steps)[0])
    if found != tokens:
        raise ValueError(f"a solution of {found} tokens instead of {tokens}")
    return steps
