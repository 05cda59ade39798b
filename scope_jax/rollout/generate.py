"""Rollouts: prefill once per shared prefix, then one loop that continues every row from where it
stands, both in one compiled program.

A row's tokens depend on its own tokens, its row id, the key and the stream only: not on the other
rows, on how many are decoded at once, or on the mesh.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scope_jax.devices.current import current_mesh, platform
from scope_jax.devices.mesh import constrain, put_rows, to_host
from scope_jax.devices.programs import program
from scope_jax.devices.shapes import half_or_all
from scope_jax.models.cache import FORMS, decode_cache, stored
from scope_jax.models.config import ModelConfig
from scope_jax.models.decoder import decode_form, decode_layers, for_prefill, prefill
from scope_jax.models.experts import check_split
from scope_jax.models.weights import Params, decode_layout
from scope_jax.rollout.decoding import (
    Decoder,
    DecodeSpec,
    DecodeState,
    Request,
    Seats,
    Written,
    decode_spec,
)
from scope_jax.rollout.refill import decode_with_refill
from scope_jax.rollout.sampling import SampleSpec, row_keys
from scope_jax.types import Owner, Rollout


def from_prompts(
    prompts: Sequence[Sequence[int]], group: int, max_length: int, first_row: int = 0
) -> Rollout:
    """Rows of PROMPT tokens, each prompt `group` times in a row, in buffers of `max_length`
    positions. Row ids count up from `first_row`.

    Raises ValueError for an empty prompt, or one that leaves no room for a token.
    """
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < max_length:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens; 1 to {max_length - 1} fit a buffer of"
                f" {max_length}; drop it before"
            )
    length = np.repeat(np.array([len(p) for p in prompts], np.int32), group)
    tokens = np.zeros((len(length), max_length), np.int32)
    for row in range(len(length)):
        tokens[row, : length[row]] = prompts[row // group]
    inside = np.arange(max_length)[None] < length[:, None]
    arrays = dict(
        tokens_BT=tokens,
        owner_BT=np.where(inside, np.int8(Owner.PROMPT), np.int8(Owner.PAD)),
        logp_BT=np.zeros(tokens.shape, np.float32),
        length_B=length,
        prompt_length_B=length.copy(),
        finished_B=np.zeros(len(length), bool),
        row_id_B=np.arange(first_row, first_row + len(length), dtype=np.int32),
    )
    return Rollout(**put_rows(arrays))


def check_heads(config: ModelConfig, mesh: Mesh | None, who: str = "a model that writes") -> None:
    """Raise ValueError where the tensor axis of a mesh does not divide the kv heads: every device
    would hold the whole cache, and they would exchange it; or where the expert axis does not divide
    the experts."""
    if mesh is not None and config.num_kv_heads % mesh.shape["tensor"]:
        raise ValueError(
            f"mesh.tensor = {mesh.shape['tensor']} does not divide the {config.num_kv_heads} kv"
            f" heads of {who}; use a divisor of {config.num_kv_heads}, and split"
            " weights further with mesh.fsdp"
        )
    if mesh is not None:
        check_split(config, mesh.shape, who)


def generate(
    params: Params,
    config: ModelConfig,
    rollout: Rollout,
    key: jax.Array,
    spec: SampleSpec,
    *,
    shared_prefix: int = 1,
    owner: Owner = Owner.POLICY,
    stream: int = 0,
) -> Rollout:
    """Continue every unfinished row until an end token, the stop table, `spec.max_new_tokens` or
    the buffer's end.

    shared_prefix: this many consecutive rows hold the same tokens and are prefilled once. owner:
    who is recorded as the writer of the new tokens. stream: separates the random numbers of several
    calls with one key. The tokens do not depend on `shared_prefix`.
    """
    request = make_request(rollout, key, spec, owner=owner, stream=stream)
    return run_request(params, config, request, spec, shared_prefix)


def make_request(
    rollout: Rollout,
    key: jax.Array,
    spec: SampleSpec,
    *,
    owner: Owner = Owner.POLICY,
    stream: int = 0,
    limit_B: jax.Array | None = None,
) -> Request:
    """The arrays of a call of `generate`. `limit_B` (int32[B]): a row's length never passes it."""
    B, T = rollout.tokens_BT.shape
    return Request(
        rollout=rollout,
        key=key,
        stream=jnp.int32(stream),
        owner=jnp.int8(owner),
        limit_B=(
            jnp.full((B,), T, jnp.int32)
            if limit_B is None
            else jnp.minimum(limit_B, T).astype(jnp.int32)
        ),
        stop=None if spec.stop is None else jnp.asarray(spec.stop),
    )


def run_request(
    params: Params, config: ModelConfig, request: Request, spec: SampleSpec, shared_prefix: int = 1
) -> Rollout:
    """`generate` of a request; `spec` must be the one that it was made with."""
    if config.head != "lm":
        raise ValueError(
            f"this checkpoint has head {config.head!r} and cannot write text; an 'lm' head is"
            " needed"
        )
    check_heads(config, current_mesh())
    B, T = request.rollout.tokens_BT.shape
    config.check_width(T)
    if B % shared_prefix:
        raise ValueError(f"{B} rows are not a multiple of shared_prefix {shared_prefix}")
    longest = spec.prefix_tokens
    if longest is None:
        longest = half_or_all(int(to_host(request.rollout.length_B).max()), T)
    static = decode_spec(
        spec,
        rows=B,
        buffer=T,
        longest=longest,
        shared_prefix=shared_prefix,
        form=decode_form(config, params["final_norm"].dtype, spec.cache == "int8"),
        on_gpu=platform() == "gpu",
    )
    params = decode_layout(config, params, current_mesh())
    return generate_program(params, request, for_prefill(config), static)


@functools.partial(program, static_argnames=("config", "spec"))
def generate_program(
    params: Params, request: Request, config: ModelConfig, spec: DecodeSpec
) -> Rollout:
    """The compiled part of `generate`. `params`: from `decode_layout`; `config`: `for_prefill`."""
    rollout, shared = request.rollout, spec.shared_prefix
    B, T = rollout.tokens_BT.shape
    start_B = rollout.length_B
    decoder = Decoder(
        params=params,
        layers=decode_layers(params, config, FORMS[spec.form].apart, spec.merged),
        config=config,
        spec=spec,
        key_B=row_keys(request.key, request.stream, rollout.row_id_B),
        limit_B=jnp.minimum(request.limit_B, start_B + spec.max_new_tokens),
        stop=request.stop,
    )

    # ---- Prefill, and the first token of every row.
    prefix_PW = constrain(rollout.tokens_BT[::shared, : spec.width], "batch", None)
    first_PV, prefixes = prefill(params, config, prefix_PW, start_B[::shared])
    prefixes = stored(prefixes.k, prefixes.v, spec.cache == "int8")
    first_BV = jnp.repeat(first_PV, shared, axis=0) if shared > 1 else first_PV
    token_B, logp_B = decoder.draw(first_BV, decoder.key_B, start_B)
    open_B = ~rollout.finished_B & (start_B < decoder.limit_B)
    ended_B, stop_state_B, goes_on_B = decoder.after(
        token_B, jnp.zeros((B,), jnp.int32), start_B + 1, decoder.limit_B
    )
    position_T = jnp.arange(T)[None]
    first_BT = (position_T == start_B[:, None]) & open_B[:, None]
    written = Written(
        tokens_BT=jnp.where(first_BT, token_B[:, None], rollout.tokens_BT),
        logp_BT=jnp.where(first_BT, logp_B[:, None], rollout.logp_BT),
        length_B=start_B + open_B,
        finished_B=rollout.finished_B | (ended_B & open_B),
    )
    seats = Seats(None, token_B, stop_state_B, goes_on_B & open_B)

    # ---- One token at a time.
    if spec.seats == B and spec.block is None:
        cache = decode_cache(spec.form, prefixes, shared, spec.positions)
        written = decoder.run(DecodeState(written, seats, cache)).written
    else:
        written = decode_with_refill(decoder, written, seats, prefixes)
    new_BT = (position_T >= start_B[:, None]) & (position_T < written.length_B[:, None])
    return rollout.replace(
        tokens_BT=written.tokens_BT,
        logp_BT=written.logp_BT,
        owner_BT=jnp.where(new_BT, request.owner, rollout.owner_BT),
        length_B=written.length_B,
        finished_B=written.finished_B,
    )
