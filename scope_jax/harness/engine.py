"""Continuations scored, and prompts continued up to a stop string, in batches of few shapes."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scope_jax import models, rollout
from scope_jax.data.prompts import check_vocabulary
from scope_jax.devices.mesh import constrain, make_mesh, parts, put_rows, to_host
from scope_jax.devices.programs import program
from scope_jax.devices.shapes import coarse_width, round_up
from scope_jax.models.heads import LOGITS_AXES, LOGITS_BUDGET, chunk_size
from scope_jax.models.layers import vocabulary_logits
from scope_jax.run import progress
from scope_jax.run.metrics import say_beside_bars
from scope_jax.text import end_ids, load_tokenizer

# New tokens between two looks at the texts: a row that has written a stop string ends there.
PIECE = 64

Ids = list[int]


@dataclasses.dataclass(frozen=True)
class Writing:
    """How prompts are continued."""

    new_tokens: int = 256
    until: tuple[str, ...] = ()  # none of these is in what is returned, nor what comes after it
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int | None = None


@dataclasses.dataclass(eq=False)
class Engine:
    """A model that scores and writes, `rows` rows at once, of at most `max_length` tokens each.

    What is longer loses its beginning, as lm-eval has it; `cut` counts that.
    """

    params: models.Params
    config: models.ModelConfig
    tokenizer: Any
    mesh: Mesh
    rows: int = 32
    max_length: int = 2048
    seed: int = 0
    cut: int = 0

    @classmethod
    def load(
        cls,
        directory: str,
        *,
        dtype: str = "bfloat16",
        rows: int = 32,
        max_length: int | None = None,
        seed: int = 0,
        fsdp: int = 1,
        tensor: int = 1,
    ) -> "Engine":
        """Of a Hugging Face directory. Raises ValueError where it cannot write, or where the
        tokenizer is not the model's."""
        config = models.read_config(directory)
        if config.head != "lm":
            raise ValueError(f"{directory}: head {config.head!r}; an 'lm' head is needed")
        tokenizer = load_tokenizer(directory)
        check_vocabulary(tokenizer, config.vocab_size, directory)
        if not 1 < (max_length or config.max_positions) <= config.max_positions:
            raise ValueError(
                f"max_length = {max_length}: {Path(directory).name} has {config.max_positions}"
                " positions"
            )
        models.check_files(directory)
        mesh = make_mesh(-1, fsdp, tensor)
        with jax.set_mesh(mesh):
            config, params = models.load(directory, dtype=dtype, mesh=mesh)
        length = max_length or config.max_positions
        return cls(params, config, tokenizer, mesh, rows, length, seed)

    def score(self, pairs: Sequence[tuple[Ids, Ids]], what: str = "") -> list[tuple[float, bool]]:
        """For each (context, continuation), of token ids, the context not empty: the sum of the
        continuation's log-probs, and whether each of its tokens is the likeliest one. Raises
        ValueError for a continuation that is longer than `max_length`."""
        scores = [(0.0, True)] * len(pairs)
        todo = [n for n, (_, continuation) in enumerate(pairs) if continuation]
        for part in self._parts(todo, [len(c) + len(t) for c, t in pairs], what):
            rows = []
            for n in part:
                context, continuation = pairs[n]
                if len(continuation) > self.max_length:
                    raise ValueError(
                        f"a continuation of {len(continuation)} tokens is longer than max_length ="
                        f" {self.max_length}"
                    )
                row = (context + continuation)[-self.max_length - 1 :]
                self.cut += len(row) < len(context) + len(continuation)
                rows.append(row)
            logp, likeliest = self._read(rows)
            for r, n in enumerate(part):
                end = len(rows[r]) - 1
                own = slice(end - len(pairs[n][1]), end)
                total = float(logp[r, own].sum(dtype=np.float64))
                scores[n] = total, bool(likeliest[r, own].all())
        return scores

    def write(
        self, prompts: Sequence[Ids], how: Writing, numbers: Sequence[int], what: str = ""
    ) -> list[str]:
        """What follows each prompt, up to a stop string, an end token or `how.new_tokens`.
        `numbers`: of each prompt's own random numbers; its text does not depend on the others."""
        room = self.max_length - how.new_tokens
        if room < 1:
            raise ValueError(
                f"{how.new_tokens} new tokens leave no room for a prompt: max_length ="
                f" {self.max_length}; lower max_gen_toks"
            )
        self.cut += sum(len(ids) > room for ids in prompts)
        kept = [ids[-room:] for ids in prompts]
        written = [""] * len(kept)
        for part in self._parts(range(len(kept)), [len(ids) for ids in kept], what):
            texts = self._continued([kept[n] for n in part], how, [numbers[n] for n in part])
            for n, text in zip(part, texts, strict=True):
                written[n] = text
        return written

    def say_what_was_cut(self) -> None:
        """One line on stderr, where anything was cut."""
        if self.cut:
            say_beside_bars(
                f"warning: {self.cut} requests were longer than max_length = {self.max_length} and"
                " lost their beginnings"
            )
            self.cut = 0

    # ---- parts

    def _parts(self, todo: Sequence[int], lengths: list[int], what: str) -> Iterator[list[int]]:
        """The numbers in `todo` in batches of like length, the longest first."""
        order = sorted(todo, key=lambda n: -lengths[n])
        with progress(len(order), desc=what) as bar:
            for start in range(0, len(order), self.rows):
                part = order[start : start + self.rows]
                yield part
                bar.update(len(part))

    @property
    def _batch(self) -> int:
        """Rows of a batch; they divide evenly over the devices."""
        return round_up(self.rows, int(self.mesh.shape["data"] * self.mesh.shape["fsdp"]))

    def _read(self, rows: list[Ids]) -> tuple[np.ndarray, np.ndarray]:
        """(log-prob of each row's token t + 1, whether it is the likeliest), [rows, T]."""
        width = coarse_width(max(map(len, rows)) - 1)
        given, asked = np.zeros((2, self._batch, width), np.int32)
        for r, row in enumerate(rows):
            given[r, : len(row) - 1], asked[r, : len(row) - 1] = row[:-1], row[1:]
        with jax.set_mesh(self.mesh):
            config = models.for_device(self.config)
            return to_host(_next_tokens(self.params, config, *put_rows((given, asked))))

    def _continued(self, prompts: list[Ids], how: Writing, numbers: list[int]) -> list[str]:
        """One batch of `write`."""
        # Tokens such as `<|im_end|>`, which no text shows.
        added = self.tokenizer.get_added_vocab()
        special = [added[word] for word in how.until if word in added]
        spec = rollout.SampleSpec(
            how.temperature,
            how.top_p,
            how.top_k,
            min(PIECE, how.new_tokens),
            (*end_ids(self.tokenizer, self.config.end_ids), *special),
        )
        real, batch = len(prompts), self._batch
        width = min(coarse_width(max(map(len, prompts)) + how.new_tokens), self.max_length)
        with jax.set_mesh(self.mesh):
            params = models.decode_layout(self.config, self.params, self.mesh)
            writer = rollout.Generator(params, self.config)
            rows = rollout.from_prompts([*prompts, *[prompts[0]] * (batch - real)], 1, width)
            ids = np.array([*numbers, *[0] * (batch - real)], np.int32)
            limit = np.array([len(ids) + how.new_tokens for ids in prompts] + [0] * (batch - real))
            row_id_B, over_B, limit_B = put_rows(
                (ids, np.arange(batch) >= real, limit.astype(np.int32))
            )
            rows = rows.replace(row_id_B=row_id_B, finished_B=over_B)
            done: dict[int, str] = {}
            for _ in range(0, how.new_tokens, PIECE):
                rows = writer.extend(rows, jax.random.key(self.seed), spec, limit_B=limit_B)
                texts = rollout.completion_texts(rows, self.tokenizer)[:real]
                ended = to_host(rows.finished_B)
                cut = [before_stop(text, how.until) for text in texts]
                done |= {
                    r: cut[r]
                    for r in range(real)
                    if r not in done and (ended[r] or cut[r] != texts[r])
                }
                if len(done) == real:
                    break
                over = np.array([r >= real or r in done for r in range(batch)])
                rows = rows.replace(finished_B=put_rows((over,))[0])
        return [done.get(r, cut[r]) for r in range(real)]


def before_stop(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the stop strings; an empty one stops nothing."""
    places = [place for stop in until if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


@functools.partial(program, static_argnames="config")
def _next_tokens(
    params: models.Params, config: models.ModelConfig, given_BT: jax.Array, asked_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(log-prob of `asked` after the tokens given up to there, whether no token is likelier),
    float32 and bool [B, T], with the logits of one chunk of positions at a time."""
    B, T = given_BT.shape
    hidden_BTD = models.hidden_states(params, config, given_BT)
    devices = parts(LOGITS_AXES, (B, 1, config.vocab_size))
    size = chunk_size(B, T, config.vocab_size, devices, LOGITS_BUDGET)

    def chunk(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = jax.lax.dynamic_slice_in_dim(hidden_BTD, start, size, axis=1)
        asked = jax.lax.dynamic_slice_in_dim(asked_BT, start, size, axis=1)
        logits = constrain(vocabulary_logits(params, config, hidden), *LOGITS_AXES)
        chosen = jnp.take_along_axis(logits, asked[..., None], axis=-1)[..., 0]
        best = jnp.argmax(logits, axis=-1) == asked
        return chosen - jax.nn.logsumexp(logits, axis=-1), best

    logp, best = jax.lax.map(chunk, jnp.arange(0, T, size))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, T), (logp, best))
