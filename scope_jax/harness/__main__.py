"""`python -m scope_jax.harness --model=DIR --tasks=TASK,... [arguments of lm-eval]`

`--model` is a Hugging Face directory; all else goes to `lm_eval` as it is. Settings of the model go
into `--model_args`: dtype, max_length, seed, fsdp, tensor.
"""

import json
import sys
from collections.abc import Sequence

from scope_jax import cli
from scope_jax.devices.mesh import use_cpu_cores
from scope_jax.run import compile_cache, failures

NAME = "scope_jax"  # what the model is called in lm-eval


def lm_eval_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(the model's directory, the arguments of `lm_eval run`). Raises ValueError where there is no
    --model."""
    model, rest = None, []
    given = iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name in ("--model", "-M"):
            model = value if equals else next(given, None)
        else:
            rest.append(argument)
    if not model:
        raise ValueError("--model is missing: give the Hugging Face directory of the model")
    if not any(word.partition("=")[0] in ("--batch_size", "-b") for word in rest):
        rest = ["--batch_size", "auto", *rest]
    first = ["--model", NAME, "--model_args", json.dumps({"pretrained": model})]
    return model, [*first, *rest]


def main() -> str:
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        return f"{__doc__}\n`lm_eval run --help` lists the arguments of lm-eval."
    model, arguments = lm_eval_arguments(sys.argv[1:])
    use_cpu_cores(cli.weights_of(model))
    compile_cache.keep_compiled_programs(None, compile_cache.DEFAULT)
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import register_model

        from scope_jax.harness.model import ScopeJaxLM
    except ImportError as error:
        raise ValueError(
            f"lm-eval is missing ({failures.in_short(error)}); pip install 'scope_jax[harness]'"
        ) from None
    register_model(NAME)(ScopeJaxLM)
    sys.argv[1:] = ["run", *arguments]
    cli_evaluate()
    return ""


if __name__ == "__main__":
    failures.run_main(main)
