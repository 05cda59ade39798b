"""The library on this device against what torch computed in float32 (tests/goldens): logits and
greedy tokens of every family, step scores of every format of process reward model."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from support.families_fixture import (
    FAMILIES,
    LENGTHS,
    NEW,
    VALUE_HEAD,
    family_tokens,
    shapes_in,
    tensors_of,
    write_checkpoint,
)
from support.fixtures import UNTIED, make_params, ragged_tokens
from support.prm_fixtures import CHECKPOINTS, SOLUTIONS
from support.prm_fixtures import write_checkpoint as write_prm

from accelerator_parts.plan import Part
from accelerator_parts.work import Skip, Work, clocked
from scope_jax import models, rollout
from scope_jax.devices.programs import program
from scope_jax.prm import ProcessRewardModel

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
TOLERANCE = 1e-4  # in float32
DTYPES = ("float32", "bfloat16")
INSIDE = np.arange(16)[None] < LENGTHS[:, None]
PROMPTS = (3, 9)  # tokens of the prompts that the goldens continue
logits = program(models.logits, static_argnums=1)
good_step = program(models.good_step_probability, static_argnums=1)


def golden(name: str) -> dict[str, np.ndarray]:
    path = GOLDENS / f"{name}.npz"
    if not path.is_file():
        raise Skip(f"no {path}; run it in a checkout of the repository")
    return dict(np.load(path, allow_pickle=False))


@contextlib.contextmanager
def family(name: str, dtype: str) -> Iterator[tuple[models.ModelConfig, models.Params]]:
    """The tiny checkpoint of a family, read by the library; with the name "qwen2 value" under the
    head of Skywork's PRM."""
    base, _, head = name.partition(" ")
    raw, seed = FAMILIES[base]
    tensors = tensors_of(raw, shapes_in(golden(f"family_{base}")), seed)
    if head:
        raw = raw | {"architectures": ["Qwen2ForPrmModel"]}
        tensors |= tensors_of(raw, VALUE_HEAD, seed)
    with tempfile.TemporaryDirectory() as place:
        write_checkpoint(Path(place), raw, tensors)
        yield models.load(place, dtype=dtype)


def run(part: Part, work: Work) -> None:
    work.only()
    work.need_memory(1e8)
    if part.name == "greedy":
        greedy(work)
        return
    failed = []
    for dtype in DTYPES:
        for case, gaps in cases(dtype, work.size.families or tuple(FAMILIES)):
            strict = dtype == "float32"
            good = not strict or gaps.max() <= TOLERANCE
            note = "" if not strict else f"{'within' if good else 'ABOVE'} {TOLERANCE:.0e}"
            error = {"error_max": float(gaps.max()), "error_mean": float(gaps.mean())}
            work.add(f"{case}, {dtype}", **error, note=note, peak_bytes=None)
            failed += [] if good else [f"{case} {gaps.max():.1e}"]
        work.say(f"{dtype} done")
    if failed:
        raise ValueError(f"float32 errors above {TOLERANCE:.0e}: {', '.join(failed)}")


def cases(dtype: str, families: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, differences from torch)."""
    for name in families:
        wanted, tokens = golden(f"family_{name}"), family_tokens(name)
        with family(name, dtype) as (config, params):
            found = logits(params, config, tokens, LENGTHS)
        yield f"logits of {name}", np.abs(host(found)[INSIDE] - wanted["logits"])
    with family("qwen2 value", dtype) as (config, params):
        found = good_step(params, config, family_tokens("qwen2"), LENGTHS)
    yield "value head", np.abs(host(found)[INSIDE] - golden("family_qwen2")["value"])
    config = UNTIED.with_head("prm")
    tokens, length = ragged_tokens(config, 4)
    params = models.in_dtype(make_params(config, 4), jnp.dtype(dtype))
    found = good_step(params, config, tokens, length)
    yield "PRM head", np.abs(host(found) - golden("prm")["probability"])
    for name in CHECKPOINTS:
        yield f"PRM of format {name}", step_scores(name, dtype)


def step_scores(name: str, dtype: str) -> np.ndarray:
    """Differences of the scores of one format's solutions."""
    kept = golden("prm_formats")
    with tempfile.TemporaryDirectory() as place:
        write_prm(name, Path(place))
        prm = ProcessRewardModel.load(place, dtype=dtype)
    score, _, _ = prm.score([p for p, _ in SOLUTIONS], [s for _, s in SOLUTIONS])
    theirs = [kept[f"{name}_{row}_score"] for row in range(len(SOLUTIONS))]
    return np.concatenate([np.abs(score[n, : len(x)] - x) for n, x in enumerate(theirs)])


def host(x: jax.Array) -> np.ndarray:
    return np.asarray(jax.device_get(x), np.float32)


def greedy(work: Work) -> None:
    """Greedy tokens in float32, and the sampler's log-probs against those of the trainer's pass."""
    failed = []
    for name in work.size.families or FAMILIES:
        if work.left < 5:
            raise Skip(f"{work.left:.0f} s left before {name}")
        tokens, wanted = family_tokens(name), golden(f"family_{name}")["greedy"]
        rows = rollout.from_prompts([tokens[0, :n].tolist() for n in PROMPTS], 1, 9 + NEW)
        spec = rollout.SampleSpec(temperature=0.0, max_new_tokens=NEW, end_ids=())
        with family(name, "float32") as (config, params):
            seconds, written = clocked(
                lambda c=config, p=params, r=rows, s=spec: jax.device_get(
                    rollout.generate(p, c, r, jax.random.key(0), s)
                )
            )
            forced = program(models.token_logprobs, static_argnums=1)
            again = host(forced(params, config, written.tokens_BT)[0])
        same, gap = [], 0.0
        for row, size in enumerate(PROMPTS):
            part = slice(size, size + NEW)
            same.append(written.tokens_BT[row, part] == wanted[row])
            gap = max(gap, float(np.abs(written.logp_BT[row, part] - again[row, part]).max()))
        equal = int(np.sum(same))
        work.add(
            f"greedy tokens of {name}, float32",
            error_max=gap,
            compile_seconds=seconds,
            equal=equal,
            note=f"{equal} of {np.size(same)} tokens equal; error: log-probs, sampler and trainer",
            peak_bytes=None,
        )
        if equal < np.size(same) or gap > TOLERANCE:
            failed.append(name)
    if failed:
        raise ValueError(f"other tokens than torch's, or log-probs apart: {', '.join(failed)}")
