"""Evaluate a checkpoint on suites of published problems, such as AIME or MATH-500.

    python -m scope_jax.evaluate_suites --suites=aime24,math500 --model=DIR --data=DIR --workdir=DIR

Settings are the field's (temperature 0.6, top_p 0.95, 8,192 new tokens, 32 samples on AIME and
AMC, one elsewhere) unless given: `--samples=4` for all suites, `--override=aime24.samples=64` for
one. The same command goes on with an evaluation that was stopped. In the workdir: `suites.json`
(figures and what made them), `suites.md` (the table), `samples/` (every completion with its score).
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax

from scope_jax import cli, models
from scope_jax.data.prompts import check_vocabulary
from scope_jax.data.suites import SUITES, SuiteData, read_suite
from scope_jax.devices.mesh import make_mesh, use_cpu_cores
from scope_jax.evaluate_prm import checkpoint_hash
from scope_jax.evaluation import (
    KINDS,
    EvaluatedModel,
    Settings,
    Weigher,
    check_suite,
    evaluate_suite,
    settings_for,
)
from scope_jax.prm import ProcessRewardModel
from scope_jax.report.samples import markdown_table
from scope_jax.report.voting import AGGREGATES
from scope_jax.run import compile_cache, failures, try_place, write_atomically
from scope_jax.run.lock import locked
from scope_jax.tasks.graders import Grader
from scope_jax.text import load_tokenizer

# Files in the workdir.
RECORDS, TABLE = "suites.json", "suites.md"


def _flags() -> list[cli.Flag]:
    names = ", ".join(SUITES)
    return [
        cli.Flag("suites", f"{names}, or folders of your own", kind=list, required=True),
        cli.Flag("model", "Hugging Face directory of the policy", required=True),
        cli.Flag("data", "directory with one folder per suite", required=True),
        cli.Flag("workdir", "directory to write", required=True),
        cli.Flag("override", "suite.key=value, for one suite; repeatable", [], tuple),
        *(
            cli.Flag(field.name, f"for all suites (default: {field.default!r})", None, kind)
            for field, kind in zip(dataclasses.fields(Settings), KINDS.values(), strict=True)
        ),
        cli.Flag("chat", "use the tokenizer's chat template", "auto", words=("auto", "on", "off")),
        cli.Flag("rows", "rows of a chunk: how often results are kept", 256, int),
        cli.Flag("seats", "rows decoded at once, at most all of a chunk", 64, int),
        cli.Flag("dtype", "of the parameters", "bfloat16", words=("float32", "bfloat16")),
        cli.Flag("fsdp", "devices over which the parameters are split", 1, int),
        cli.Flag("tensor", "devices over which heads and feed-forward are split", 1, int),
        cli.Flag("prm", "directory of a process reward model: adds bon@n and vote@n"),
        cli.Flag("prm_format", "auto, qwen, math_shepherd or skywork", "auto"),
        cli.Flag("prm_aggregate", "of a sample's step scores", "product", words=AGGREGATES),
        cli.CACHE_FLAG,
    ]


def main(argv: Sequence[str] | None = None) -> str:
    """Run the command line; returns the table. Raises ValueError, FileNotFoundError and
    RuntimeError for bad input."""
    given = cli.parse(sys.argv[1:] if argv is None else argv, _flags())
    names = _names(given.suites)
    for name in ("rows", "seats"):
        if (value := getattr(given, name)) < 1:
            raise ValueError(f"--{name}={value}: expected at least 1")
    common = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(Settings)
        if getattr(given, field.name) is not None
    }
    settings = {name: settings_for(name, common, given.override, names) for name in names}
    # Before the model is read: a wrong path or name shows at once.
    read = {name: read_suite(name, given.data, template=settings[name].template) for name in names}
    for grader_name in {settings[name].grader for name in names}:
        if grader_name is not None:
            with Grader(grader_name) as grader:
                grader.start()
    compile_cache.keep_compiled_programs(given.compilation_cache)
    workdir = Path(given.workdir)
    try_place(workdir, RECORDS, TABLE)
    try_place(workdir / "samples")
    with locked(workdir):
        return _evaluate(given, settings, read, workdir)


def _evaluate(
    given: Any, settings: Mapping[str, Settings], read: Mapping[str, SuiteData], workdir: Path
) -> str:
    """Evaluate the suites one after the other; returns the table."""
    records = _records(workdir)
    mesh = make_mesh(-1, given.fsdp, given.tensor)
    with jax.set_mesh(mesh):
        policy, prm = _described(given, settings, read)
        # Headers of both, before the weights of the first.
        for directory in (given.model, given.prm):
            if directory:
                models.check_files(directory)
        config, params = models.load(given.model, dtype=given.dtype, mesh=mesh)
        policy = dataclasses.replace(
            policy,
            params=models.decode_layout(config, params, mesh),
            digest=checkpoint_hash(given.model),
        )
        weigher = None
        if prm is not None:
            prm = prm.with_weights(given.prm, dtype=given.dtype, mesh=mesh)
            weigher = Weigher(prm, checkpoint_hash(given.prm), given.prm_aggregate)
        for name, data in read.items():
            record = evaluate_suite(
                policy,
                data,
                settings[name],
                workdir,
                rows=given.rows,
                seats=given.seats,
                weigher=weigher,
            )
            # After each suite, so that its figures stay even if the next one is stopped.
            records = _with_record(records, {"model": given.model, "data": given.data, **record})
            write_atomically(workdir / RECORDS, json.dumps(records, indent=2) + "\n")
            write_atomically(workdir / TABLE, markdown_table(records))
    return markdown_table(records)


def _described(
    given: Any, settings: Mapping[str, Settings], read: Mapping[str, SuiteData]
) -> tuple[EvaluatedModel, ProcessRewardModel | None]:
    """(the policy, the process reward model), without weights; all suites are checked with them."""
    config = models.read_config(given.model)
    if config.head != "lm":
        raise ValueError(
            f"{given.model}: head {config.head!r}; a policy needs a vocabulary head ('lm')"
        )
    tokenizer = load_tokenizer(given.model)
    check_vocabulary(tokenizer, config.vocab_size, given.model)
    chat = bool(tokenizer.chat_template) if given.chat == "auto" else given.chat == "on"
    policy = EvaluatedModel({}, config, tokenizer, "", chat)
    for name, data in read.items():
        check_suite(policy, data, settings[name])
    prm = ProcessRewardModel.described(given.prm, given.prm_format) if given.prm else None
    return policy, prm


def _names(given: Sequence[str]) -> list[str]:
    """The suites that are asked for, each once. A folder of one's own may be a path: `own/` and
    `./own` are `own`."""
    names = [str(PurePosixPath(name.strip())) for name in given if name.strip()]
    if not names:
        raise ValueError(f"--suites names no suite; known: {', '.join(SUITES)}")
    for name in names:
        if not name.isprintable():
            raise ValueError(f"--suites: {name!r} has a character that cannot be printed")
    return list(dict.fromkeys(names))


def _records(workdir: Path) -> list[dict[str, Any]]:
    """The records that an earlier command left in this workdir. Earlier versions called a suite a
    benchmark, and wrote `benchmarks.json`: it is read where there is nothing newer."""
    path = workdir / RECORDS
    if not path.exists() and (workdir / "benchmarks.json").exists():
        path = workdir / "benchmarks.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        records = [
            {"suite" if name == "benchmark" else name: value for name, value in record.items()}
            for record in found
        ]
        return [record for record in records if record["suite"] and record["key"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: no records of suites ({type(error).__name__}); mend it, or use another"
            " workdir"
        ) from None


def _with_record(records: Sequence[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """`records` with `record` in the place of the one of the same settings, else at the end."""

    def name(r: Mapping[str, Any]) -> tuple[str, str]:
        return r["suite"], r["key"]

    kept = [record if name(r) == name(record) else r for r in records]
    return kept if record in kept else [*kept, record]


def _program() -> str:
    """`main`, after the devices are decided."""
    given = cli.parse(sys.argv[1:], _flags())
    use_cpu_cores(max(cli.weights_of(given.model), cli.weights_of(given.prm)))
    return main()


if __name__ == "__main__":
    failures.run_main(_program)
