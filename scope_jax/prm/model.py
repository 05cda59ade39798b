"""Scoring the steps of solutions with a process reward model, which may have a tokenizer of its
own."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from scope_jax import models
from scope_jax.devices.hosts import by_share
from scope_jax.devices.mesh import (
    constrain,
    current_mesh,
    put_rows,
    row_devices,
    to_device_memory,
    to_host,
)
from scope_jax.devices.programs import program
from scope_jax.devices.shapes import coarse_width, doubling_width
from scope_jax.prm.finite import finite_rows
from scope_jax.prm.formats import FORMATS, Row, recognise, shepherd_ids
from scope_jax.text import load_tokenizer

# Batches that the rows of a call are divided into, so that short rows are not padded to the
# longest.
BATCHES = 4
# Tokens that a published format puts around a solution, at most.
TEMPLATE_TOKENS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class ProcessRewardModel:
    """A process reward model and the published format that it reads.

    Raises ValueError where the checkpoint is none of the formats, or lacks the head or a token of
    the one that is named.
    """

    # Those that wait in host memory are brought to the devices for each call of `score`.
    params: models.Params
    config: models.ModelConfig
    tokenizer: Any  # its own
    # auto (recognised from head and tokenizer) | qwen (Qwen2.5-Math-PRM) | math_shepherd
    # (math-shepherd-mistral-7b-prm) | skywork (Skywork-o1-Open-PRM).
    format: str = "auto"
    # About how many padded tokens go through the model together at most; bounds its memory.
    tokens_at_once: int = 1 << 16
    # The same devices in another shape; None: the mesh that is set.
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        name = self.format
        if name == "auto":
            name = recognise(self.config.head, self.config.model_type, self.tokenizer)
        if name not in FORMATS:
            raise ValueError(
                f"models.prm_format {name!r} is unknown; one of auto, {', '.join(FORMATS)}"
            )
        if self.config.head != FORMATS[name].head:
            raise ValueError(
                f"this checkpoint has head {self.config.head!r}; a PRM of format {name!r} has"
                f" {FORMATS[name].head!r}"
            )
        FORMATS[name].check(self.tokenizer)
        object.__setattr__(self, "format", name)

    @classmethod
    def described(cls, directory: str | Path, format: str = "auto") -> "ProcessRewardModel":
        """The PRM of a Hugging Face directory without its weights (no parameters): it can encode,
        not score. Raises as `models.read_config`, `load_tokenizer` do, and ValueError naming the
        directory where it is none of the formats, its chat template cannot write one down, or the
        step mark has no row in the embedding."""
        config, tokenizer = models.read_config(directory), load_tokenizer(directory)
        try:
            prm = cls({}, config, tokenizer, format)
            ids, marks = prm.encode("1+1?", ["2"])
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error
        if len(marks) != 1 or max(ids) >= config.vocab_size:
            raise ValueError(
                f"{directory}: a solution of one step has {len(marks)} step marks and ids up to"
                f" {max(ids, default=0)}, the embedding {config.vocab_size} rows; are tokenizer and"
                " weights of one process reward model?"
            )
        return prm

    def with_weights(
        self,
        directory: str | Path,
        *,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        weights: Literal["auto", "int8"] = "auto",
    ) -> "ProcessRewardModel":
        """The same PRM with its weights, laid out on `mesh`, as `models.load` reads them."""
        config, params = models.load(directory, dtype=dtype, mesh=mesh, weights=weights)
        return dataclasses.replace(self, params=params, config=config, mesh=mesh)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        format: str = "auto",
        weights: Literal["auto", "int8"] = "auto",
    ) -> "ProcessRewardModel":
        """The PRM of a Hugging Face directory: `described`, then `with_weights`, and raises what
        they raise."""
        prm = cls.described(directory, format)
        return prm.with_weights(directory, dtype=dtype, mesh=mesh, weights=weights)

    def encode(self, prompt: str, steps: Sequence[str]) -> Row:
        """(ids, positions of the step marks). Steps are stripped of the separators around them. An
        empty list of ids comes back where the marks could not be matched to the steps (a step's
        own text holds a mark)."""
        return self.encode_rows([prompt], [steps])[0]

    def encode_rows(self, prompts: Sequence[str], steps: Sequence[Sequence[str]]) -> list[Row]:
        """`encode` of many rows at once, which the tokenizer does several times faster."""
        return FORMATS[self.format].encode(self.tokenizer, prompts, steps)

    def score(
        self,
        prompts: Sequence[str],
        steps: Sequence[Sequence[str]],
        rows: int | None = None,
        tokens: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """(score_BJ float32, valid_BJ bool, number of rows that could not be scored: past the
        PRM's position limit, with a mark in their text, or with a score that is not finite).

        Forward passes, split over the mesh, over batches of rows of about equal length: a quarter
        of `rows` (default: as many as given), or what fits into `tokens_at_once`. Calls with other
        numbers of rows and the same `rows` share their programs. With `tokens`, which nearly all
        rows fit into, they are padded to a quarter, half or all of that; without, to what fits each
        batch. Raises RuntimeError where most scores are not finite."""
        encoded = by_share(self.encode_rows, prompts, steps)
        limit = self.config.max_positions
        usable = [
            n
            for n, (ids, marks) in enumerate(encoded)
            if 0 < len(ids) <= limit and len(marks) == len(steps[n])
        ]
        J = max([len(row) for row in steps], default=0)
        score = np.zeros((len(encoded), J), np.float32)
        valid = np.zeros((len(encoded), J), bool)
        longest_first = sorted(usable, key=lambda n: -len(encoded[n][0]))
        lengths = [len(encoded[n][0]) for n in longest_first]
        most = max(rows or 0, len(encoded))
        chunks = list(score_batches(lengths, most, self.tokens_at_once, batch_width(tokens, limit)))
        params, mesh = to_device_memory(self.params), self.mesh or current_mesh()
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            # All are on their way before the first is waited for.
            batches = [
                (
                    longest_first[part],
                    self._probability(params, [encoded[n][0] for n in longest_first[part]], shape),
                )
                for part, shape in chunks
            ]
            for numbers, out in batches:
                probability = to_host(out)
                for place, number in enumerate(numbers):
                    marks = encoded[number][1]
                    score[number, : len(marks)] = probability[place, marks]
                    valid[number, : len(marks)] = True
        score, valid, not_finite = finite_rows(score, valid, "process reward model")
        return score, valid, len(encoded) - len(usable) + not_finite

    def compile_ahead(self, rows: int, tokens: int) -> None:
        """Run every program once that `score` of this many rows of up to `tokens` tokens uses."""
        params, mesh = to_device_memory(self.params), self.mesh or current_mesh()
        width_of = batch_width(tokens, self.config.max_positions)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            for longest in sorted({width_of(tokens // 4), width_of(tokens // 2), width_of(tokens)}):
                _, shape = next(score_batches([longest], rows, self.tokens_at_once, width_of))
                self._probability(params, [], shape)

    def _probability(
        self, params: models.Params, ids: Sequence[Sequence[int]], shape: tuple[int, int]
    ) -> jax.Array:
        """float32[shape]: what the head says at every token of the rows."""
        tokens, length = np.zeros(shape, np.int32), np.ones(shape[0], np.int32)
        for place, row in enumerate(ids):
            tokens[place, : len(row)] = row
            length[place] = len(row)
        choice = shepherd_ids(self.tokenizer)[1:] if self.format == "math_shepherd" else None
        config = models.with_kernel(self.config)
        return score_program(params, config, *put_rows((tokens, length)), choice=choice)


def batch_width(tokens: int | None, limit: int) -> Callable[[int], int]:
    """Positions of a batch, by the tokens of its longest row: see `ProcessRewardModel.score`.
    `limit`: of the model."""
    if tokens is None:
        return coarse_width
    return lambda longest: min(doubling_width(longest, min(tokens, limit)), limit)


def score_batches(
    lengths: Sequence[int],
    rows: int,
    tokens_at_once: int,
    width_of: Callable[[int], int] = coarse_width,
) -> Iterator[tuple[slice, tuple[int, int]]]:
    """(part of the rows, padded shape of its batch) for rows of these lengths, which descend. The
    number of rows of a batch depends on its width and `rows` alone, and widths come in few sizes:
    few programs."""
    devices = row_devices()
    start = 0
    while start < len(lengths):
        width = width_of(lengths[start])
        most = max(tokens_at_once // (width * devices), 1)
        count = min(-(-rows // (BATCHES * devices)), most) * devices
        yield slice(start, start + count), (count, width)
        start += count


@functools.partial(program, static_argnames=("config", "choice"))
def score_program(
    params: models.Params,
    config: models.ModelConfig,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    *,
    choice: tuple[int, int] | None,
) -> jax.Array:
    """float32[B, T]: the probability that a step ending here is good, on every device, so that each
    host can read all of it. `choice`: the good and the bad token of a causal LM.

    Layers are scanned on CPU too (`config` comes from `models.with_kernel` alone): without a
    backward pass that is the faster form there (by 10 % on 32 rows of 48 tokens of the embedded
    task's PRM)."""
    if choice is None:
        out = models.good_step_probability(params, config, tokens_BT, length_B)
    else:
        out = models.token_choice_probability(params, config, tokens_BT, length_B, *choice)
    return constrain(out, None, None)
