"""A model as lm-eval asks it. Imports lm-eval (the extra `harness`), which needs no torch."""

import warnings
from collections.abc import Sequence
from typing import Any

import jinja2
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from scope_jax.harness.engine import Engine, Ids, Writing

# Names of one setting in lm-eval's tasks, the first that is given counts.
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# What lm-eval's command passes on where nobody has asked for a device.
_DEFAULT_DEVICE = "cuda:0"


class ScopeJaxLM(TemplateLM):
    """A Hugging Face directory behind lm-eval's interface.

    `lm_eval.simple_evaluate(model=ScopeJaxLM("DIR"), tasks=[...])`. `batch_size`: rows at once;
    "auto" is 32. `settings`: those of `Engine.load`. Raises ValueError for other devices: they are
    JAX's to choose.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ):
        super().__init__()
        if device not in (None, _DEFAULT_DEVICE):
            raise ValueError(f"device = {device!r}: JAX chooses it; set JAX_PLATFORMS instead")
        rows = 32 if str(batch_size).startswith("auto") else int(batch_size)
        rows = min(rows, max_batch_size or rows)
        self.engine = Engine.load(str(pretrained), rows=rows, **settings)
        self.tokenizer = self.engine.tokenizer

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> Ids:
        """As the tokenizer does it by itself, but never with a second beginning-of-text token."""
        if add_special_tokens is None:
            begins = string.startswith(self.tokenizer.decode([self.prefix_token_id]))
            add_special_tokens = not begins
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Ids, Ids]], **more: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        scores = self.engine.score(pairs, "loglikelihood")
        self.engine.say_what_was_cut()
        for (texts, _, _), score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        windows, owners = [], []
        for n, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(
                ids, self.prefix_token_id, self.engine.max_length, 1
            ):
                windows.append(make_disjoint_window(window))
                owners.append(n)
        sums = [0.0] * len(requests)
        scores = self.engine.score(windows, "loglikelihood_rolling")
        for n, (score, _) in zip(owners, scores, strict=True):
            sums[n] += score
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        alike: dict[Writing, list[int]] = {}
        for n, request in enumerate(requests):
            alike.setdefault(writing_of(request.args[1]), []).append(n)
        texts = [""] * len(requests)
        for how, places in alike.items():
            prompts = [
                self.tok_encode(requests[n].args[0]) or [self.prefix_token_id] for n in places
            ]
            written = self.engine.write(prompts, how, places, "generate_until")
            for n, text in zip(places, written, strict=True):
                texts[n] = text
                self.cache_hook.add_partial("generate_until", requests[n].args, text)
        self.engine.say_what_was_cut()
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns in the tokenizer's template, the assistant's opened, or its last one left open.
        Where the template refuses a system turn, it goes before the user's."""

        def filled(turns: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return filled(chat_history)
        except jinja2.TemplateError:
            first, *rest = chat_history
            if first["role"] != "system" or not rest:
                raise
            text = f"{first['content']}\n\n{rest[0]['content']}"
            return filled([{**rest[0], "content": text}, *rest[1:]])


def writing_of(given: dict[str, Any]) -> Writing:
    """A task's generation arguments, which lm-eval passes on as they are. `do_sample: false` is
    greedy whatever the temperature. Raises ValueError for those that are not known here."""
    rest = {name: value for name, value in given.items() if value is not None}
    counts = [rest.pop(name) for name in _NEW_TOKENS if name in rest]
    until = rest.pop("until", ())
    sampled = rest.pop("do_sample", None)
    temperature = float(rest.pop("temperature", 1.0 if sampled else 0.0))
    if sampled is False and temperature:
        warnings.warn(
            f"do_sample is false: temperature {temperature} is not used (said once)", stacklevel=2
        )
        temperature = 0.0
    top_p, top_k = float(rest.pop("top_p", 1.0)), rest.pop("top_k", None)
    if rest:
        raise ValueError(
            f"generation arguments {', '.join(sorted(rest))} are not known: until, do_sample,"
            f" temperature, top_p, top_k and {_NEW_TOKENS[0]} are"
        )
    return Writing(
        int(counts[0]) if counts else Writing.new_tokens,
        (until,) if isinstance(until, str) else tuple(until),
        temperature,
        top_p,
        None if not top_k else int(top_k),
    )
