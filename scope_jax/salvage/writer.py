"""A policy behind an OpenAI-compatible address that goes on with rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax.devices.mesh import to_host
from scope_jax.rollout import Generator, SampleSpec
from scope_jax.rollout.rows import splice
from scope_jax.streams import request_seed
from scope_jax.teachers import Endpoint
from scope_jax.teachers.client import Reply
from scope_jax.teachers.replies import encode_step
from scope_jax.types import Owner, Rollout


@dataclasses.dataclass(frozen=True, eq=False)
class EndpointWriter(Generator):
    """`extend` by a server. Rows go there as token ids, which vLLM and SGLang take as a prompt, so
    that nothing is encoded again; what comes back is encoded by `tokenizer`, and its log-probs are
    not known (NaN). A row without an answer stays as it is; `failed` says why, by its place."""

    endpoint: Endpoint | None = None
    tokenizer: Any = None
    end: int = 0  # the token that ends a solution
    separator: str = "\n"
    seed: int = 0
    failed: dict[int, str] = dataclasses.field(default_factory=dict)  # of the last call

    def extend(
        self,
        rows: Rollout,
        key: jax.Array,
        spec: SampleSpec,
        *,
        shared_prefix: int = 1,
        owner: Owner = Owner.POLICY,
        stream: int = 0,
        limit_B: jax.Array | None = None,
        at_once: int | None = None,
    ) -> Rollout:
        """The unfinished rows with what the server wrote."""
        del key, shared_prefix, at_once  # of a model on the mesh
        assert self.endpoint is not None
        tokens, length, finished, row_id = to_host(
            (rows.tokens_BT, rows.length_B, rows.finished_B, rows.row_id_B)
        )
        B, T = tokens.shape
        limit = np.full(B, T) if limit_B is None else np.minimum(to_host(limit_B), T)
        room = np.minimum(limit - length, spec.max_new_tokens)
        asked = [b for b in range(B) if not finished[b] and room[b] > 0]
        bodies: list[dict[str, Any]] = []
        for b in asked:
            body: dict[str, Any] = {
                "model": self.endpoint.spec.model,
                "prompt": tokens[b, : length[b]].tolist(),
                "max_tokens": int(room[b]),
                "temperature": spec.temperature,
            }
            if spec.temperature > 0:
                body["seed"] = request_seed(self.seed, stream, int(row_id[b]))
            bodies.append(body)
        replies = self.endpoint.ask(bodies)[0]
        new, count, ends = np.zeros((B, T), np.int32), np.zeros(B, np.int32), np.zeros(B, bool)
        self.failed.clear()
        for b, reply in zip(asked, replies, strict=True):
            found = self._ids(reply)
            if isinstance(found, str):
                self.failed[b] = found
                continue
            ids, complete = found
            count[b] = min(len(ids), room[b])
            new[b, : count[b]] = ids[: count[b]]
            ends[b] = complete and len(ids) <= room[b]
        return splice(
            rows, jnp.asarray(new), jnp.asarray(count), owner, finished_B=jnp.asarray(ends)
        )

    def _ids(self, reply: Reply | str) -> tuple[list[int], bool] | str:
        """(ids, whether the row is over), or why there are none."""
        if isinstance(reply, str):
            return reply
        ids = encode_step(reply.text, self.tokenizer, self.separator) if reply.text else []
        if ids is None:
            return "untokenisable"
        return ([*ids, self.end], True) if reply.complete else (ids, False)
