"""The same work in torch, beside ours in the same run: `generate` of transformers, and an update
as plain as it is usually written. Imports nothing of jax and of this library."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from accelerator_parts import limits
from accelerator_parts.plan import Part
from accelerator_parts.work import Skip, Work, clocked

MICRO_BATCH = 4


def imported() -> tuple[Any, Any]:
    """(torch, transformers). Raises Skip where one does not import."""
    try:
        import torch
        import transformers
    except Exception as error:
        raise Skip(f"no torch with transformers here ({type(error).__name__}: {error})") from None
    transformers.logging.set_verbosity_error()
    return torch, transformers


def place(torch: Any, work: Work) -> str:
    """The device; the same kind as ours. Raises Skip where torch does not see one."""
    ours = work.found.get("device", {}).get("about", {}).get("platform")
    cuda = torch.cuda.is_available()
    if ours in ("gpu", "cuda") and not cuda:
        raise Skip(f"torch {torch.__version__} sees no CUDA device")
    if ours == "tpu":
        raise Skip("torch has no TPU here")
    if cuda and ours in ("gpu", "cuda"):
        work.free_bytes = lambda: float(torch.cuda.mem_get_info()[0])
        work.peak_bytes = lambda: float(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        work.fresh_peak()
        return "cuda"
    return "cpu"


def run(part: Part, work: Work) -> None:
    torch, transformers = imported()
    device = place(torch, work)
    torch.manual_seed(0)
    shape = work.shape
    work.need_memory(1.2 * bytes_needed(part, work) + 2e9 * (device == "cuda"))
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"

    def model(dtype: Any) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                auto = transformers.AutoModelForCausalLM
                return auto.from_config(config, attn_implementation="sdpa")
        finally:
            torch.set_default_dtype(before)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work.say(f"{versions} on {device}")
    measure = rollouts if part.name == "torch-rollouts" else update
    measure(work, torch, model, device, wait)
    if device == "cuda":
        torch.cuda.empty_cache()


def bytes_needed(part: Part, work: Work) -> float:
    """Weights with keys and values, or what an update holds."""
    size, shape = work.size, work.shape
    if part.name == "torch-update":
        return limits.update_bytes(shape)
    positions = size.prompts * size.group * (size.prompt_tokens + size.new_tokens)
    held = limits.weights(shape) * limits.BYTES[size.dtype]
    return held + 1.5 * positions * limits.position_bytes(shape, size.dtype)


def beside(work: Work, name: str, rate: float) -> dict[str, Any]:
    """Ours in the part `name` over theirs, by rate; empty where ours is not there."""
    rows = work.found.get(name, {}).get("rows", [])
    if not rows or "rate" not in rows[0]:
        return {}
    ratio = rows[0]["tokens"] / rows[0]["seconds"] / rate
    return {"ours_over_theirs": ratio}


def words(found: dict[str, Any]) -> str:
    ratio = found.get("ours_over_theirs")
    return "" if ratio is None else f"; scope_jax {ratio:,.2f} times as fast"


def rollouts(
    work: Work, torch: Any, model: Callable, device: str, wait: Callable[[], None]
) -> None:
    """Every row by itself, sampled at temperature 1 without an end token."""
    size = work.size
    policy = model(torch.bfloat16 if size.dtype == "bfloat16" else torch.float32).eval()
    prompt = torch.randint(1, work.shape.vocab, (size.prompts, size.prompt_tokens), device=device)
    rows = prompt.repeat_interleave(size.group, dim=0)

    @torch.inference_mode()
    def write(tokens: int) -> Any:
        out = policy.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
            use_cache=True,
        )
        wait()
        if out.shape[1] != size.prompt_tokens + tokens:
            raise RuntimeError(f"generate wrote {out.shape[1] - size.prompt_tokens} of {tokens}")
        return out

    first, _ = clocked(lambda: write(2))
    few = min(16, size.new_tokens)
    probe, _ = clocked(lambda: write(few))
    tokens = size.new_tokens
    foretold = 1.2 * probe * tokens / few
    if foretold > work.left - 5:
        tokens = int(tokens * (work.left - 5) / foretold) // 8 * 8
        if tokens < few:
            raise Skip(f"{work.left:.0f} s left, needs about {foretold:.0f}")
    found = work.timed(lambda: write(tokens), most=2)
    rate = rows.shape[0] * tokens / found["seconds"]
    ratio = beside(work, "fixed", rate)
    least = limits.rollout_seconds(
        work.shape,
        size.dtype,
        size.prompts,
        size.prompt_tokens,
        [tokens] * rows.shape[0],
        rows.shape[0],
        work.peaks,
    )
    work.add(
        f"{work.shape.name}: {size.prompts} x {size.group}, {size.prompt_tokens} + {tokens},"
        " transformers",
        **found,
        **ratio,
        first_seconds=first,
        rate=rate,
        rate_unit="tok/s",
        share=least / found["seconds"],
        of="memory",
        note=f"sdpa, {size.dtype}{words(ratio)}",
    )


def update(work: Work, torch: Any, model: Callable, device: str, wait: Callable[[], None]) -> None:
    """The rows of ours, unpacked: bfloat16 autocast, float32 weights and AdamW, gradient
    checkpointing, logits of the completions alone."""
    size, vocab = work.size, work.shape.vocab
    policy = model(torch.float32).train()
    policy.config.use_cache = False
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=device == "cuda")
    rows, C = size.update_prompts * size.group, size.update_tokens
    ids = torch.randint(1, vocab, (rows, size.prompt_tokens + C), device=device)
    advantage = torch.tensor([1.0, -1.0], device=device).repeat(rows // 2)
    half = size.dtype == "bfloat16"

    def pass_over(part: slice) -> None:
        context = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()
        with context:
            logits = policy(input_ids=ids[part], logits_to_keep=C + 1).logits[:, :-1]
            target = ids[part, -C:]
            logp = -torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), target.flatten(), reduction="none"
            ).view(target.shape)
            loss = -(logp * advantage[part, None]).sum() / (rows * C)
        loss.backward()

    def whole() -> float:
        for start in range(0, rows, MICRO_BATCH):
            pass_over(slice(start, min(start + MICRO_BATCH, rows)))
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        return float(norm)

    begin = time.perf_counter()
    pass_over(slice(0, min(MICRO_BATCH, rows)))
    optimizer.zero_grad(set_to_none=True)
    wait()
    first = time.perf_counter() - begin
    if first * rows / MICRO_BATCH > 3 * work.left:
        raise Skip(f"{work.left:.0f} s left, needs about {first * rows / MICRO_BATCH:.0f}")
    whole()  # the optimiser makes its moments
    found = work.timed(whole, most=2)
    ours = work.found.get("update", {}).get("rows", [])
    # The same rows: ours has each prompt once, so seconds are compared.
    ratio = {"ours_over_theirs": found["seconds"] / ours[0]["seconds"]} if ours else {}
    flops = limits.update_flops(work.shape, rows, size.prompt_tokens + C, 0, 0)
    work.add(
        f"{work.shape.name}: {rows} rows x {size.prompt_tokens + C}, torch",
        **found,
        **ratio,
        rate=flops / found["seconds"] / 1e12,
        rate_unit="TFLOP/s",
        share=flops / found["seconds"] / work.peaks["flops"],
        of="compute",
        note=f"unpacked, micro-batches of {MICRO_BATCH}, gradient checkpointing{words(ratio)}",
    )
