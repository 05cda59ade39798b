"""Evaluate a checkpoint on suites of published problems, such as AIME or MATH-500.

    python -m scope_jax.evaluate_suites --suites=aime24,math500 --model=DIR --data=DIR --workdir=DIR

Settings are the field's (temperature 0.6, top_p 0.95, 8,192 new tokens, 32 samples on AIME and
AMC, one elsewhere) unless given: `--samples=4` for all suites, `--override=aime24.samples=64` for
one. The same command goes on with an evaluation that was stopped. In the workdir: `suites.json`
(figures and what made them), `suites.md` (the table), `samples/` (every completion with its score).
"""

import dataclasses
import difflib
import hashlib
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scope_jax import cli, models, rollout
from scope_jax.data.suites import SUITES, SuiteData, read_suite
from scope_jax.devices.mesh import make_mesh, put_rows, use_cpu_cores
from scope_jax.evaluate_prm import checkpoint_hash
from scope_jax.prm import ProcessRewardModel
from scope_jax.report.samples import Result, ResultsFile, markdown_table, summarise
from scope_jax.report.voting import AGGREGATES, aggregate
from scope_jax.run import failures, progress, write_atomically
from scope_jax.tasks.graders import Grader, check_grader
from scope_jax.text import encode_prompts, end_ids, load_tokenizer

# Row ids are problem x STRIDE + sample: a sample's tokens depend neither on the number of samples
# nor on other problems.
STRIDE = 4096
# Files in the workdir.
RECORDS, TABLE = "suites.json", "suites.md"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one suite is evaluated with. Raises ValueError for a value out of range."""

    samples: int = 1
    """Per problem."""
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    new_tokens: int = 8192
    """Limit of a completion; fewer where the model has fewer positions."""
    prompt_tokens: int = 2048
    """Longer prompts are left out and counted."""
    seed: int = 0
    grader: str = ""
    """Empty: the suite's own."""
    template: str = ""
    """Of the prompt, with the place {problem}; empty: the suite's own."""
    system: str = ""
    """System turn of the chat template; empty: none."""
    limit: int = 0
    """Only the first problems; 0: all."""

    def __post_init__(self) -> None:
        # It checks its own numbers.
        rollout.SampleSpec(self.temperature, self.top_p, self.top_k, self.new_tokens)
        if not 1 <= self.samples <= STRIDE:
            raise ValueError(f"samples {self.samples}: expected 1 to {STRIDE}")
        if self.prompt_tokens < 1 or self.limit < 0:
            raise ValueError(
                f"prompt_tokens {self.prompt_tokens} must be at least 1 and limit {self.limit} at"
                " least 0"
            )
        if self.grader:
            check_grader(self.grader)


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """The model that is evaluated."""

    params: models.Params
    config: models.ModelConfig
    tokenizer: Any
    digest: str  # of its weights
    chat: bool  # whether prompts go through the chat template


@dataclasses.dataclass(frozen=True, eq=False)
class Weigher:
    """A process reward model that gives each sample a weight, for bon@n and vote@n."""

    prm: ProcessRewardModel
    digest: str  # of its weights
    aggregate: str = "product"  # how the step scores of a sample become one number


def settings_for(
    name: str,
    given: Mapping[str, Any],
    overrides: Sequence[str] = (),
    suites: Sequence[str] | None = None,
) -> Settings:
    """The settings of suite `name`: the field's, then `given` (for all suites), then `overrides`
    ("name.key=value"). Raises ValueError for an override of a suite that is not evaluated, of an
    unknown key, and for a value of the wrong type."""
    suites = suites or (name,)
    types = _types()
    values: dict[str, Any] = {"samples": SUITES[name].samples if name in SUITES else 1, **given}
    for override in overrides:
        path, equals, text = override.partition("=")
        target, _, key = path.rpartition(".")
        if not equals or not target:
            raise ValueError(
                f"--override={override}: expected suite.key=value, such as aime24.samples=8"
            )
        if target not in suites:
            raise ValueError(
                f"--override={override}: {target!r} is not among --suites={','.join(suites)}"
            )
        if key not in types:
            near = difflib.get_close_matches(key, list(types), n=1, cutoff=0.0)[0]
            raise ValueError(
                f"--override={override}: unknown key {key!r}; the nearest known one is {near}"
            )
        if target == name:
            try:
                values[key] = types[key](text)
            except ValueError:
                raise ValueError(
                    f"--override={override}: {text!r} is not of type {types[key].__name__}"
                ) from None
    return Settings(**values)


def _types() -> dict[str, type]:
    return {
        field.name: type(getattr(Settings(), field.name)) for field in dataclasses.fields(Settings)
    }


def evaluate_suite(
    policy: Policy,
    data: SuiteData,
    settings: Settings,
    workdir: str | Path,
    *,
    rows: int = 256,
    seats: int = 64,
    weigher: Weigher | None = None,
) -> dict[str, Any]:
    """Decode, judge and sum up one suite: its record, with the figures of
    `report.samples.summarise` under "result".

    Chunks of about `rows` rows are decoded together on `seats` seats (0: one for each row). The
    results of a chunk are kept in `workdir/samples/` before the next one begins, and are not made
    again. A sample's tokens do not depend on `rows`, `seats`, the mesh or `settings.limit`.
    """
    if settings.temperature == 0 and settings.samples > 1:
        raise ValueError(
            f"{data.name}: {settings.samples} samples at temperature 0 are all alike; use samples=1"
        )
    limit = len(data.problems) if settings.limit == 0 else min(settings.limit, len(data.problems))
    prompts, dropped = _encode(policy, data, settings)
    chosen = [n for n in prompts if n < limit]
    if not chosen:
        raise ValueError(
            f"{data.name}: all {limit} prompts are longer than prompt_tokens ="
            f" {settings.prompt_tokens}"
        )
    longest = max(map(len, prompts.values()))
    new_tokens = _fitting(data.name, settings.new_tokens, longest, policy.config.max_positions)
    end_ids = _end_ids(policy.config, policy.tokenizer)
    spec = rollout.SampleSpec(
        settings.temperature, settings.top_p, settings.top_k, new_tokens, end_ids
    )
    with Grader(settings.grader or data.suite.grader) as grader:
        made_by = _made_by(policy, data, settings, new_tokens, grader) | {"end_ids": list(end_ids)}
        if weigher is not None:
            made_by["prm"] = {
                "sha256": weigher.digest,
                "format": weigher.prm.format,
                "aggregate": weigher.aggregate,
            }
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        kept = ResultsFile(Path(workdir) / "samples" / f"{data.name}-{key}.jsonl", key)
        todo = [n for n in chosen if n not in kept.done]
        size = _chunk(rows, settings.samples, len(chosen))
        decode = _Decoder(policy, data.name, spec, settings, size, longest + new_tokens, seats)
        bar = progress(len(chosen), initial=len(chosen) - len(todo), desc=data.name)
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            written, finished = decode({n: prompts[n] for n in part})
            kept.add(_judged(data, part, written, finished, grader, policy, weigher, size))
            bar.update(len(part))
        bar.close()
        counts = dict(grader.counts)
    return {
        "suite": data.name,
        "title": data.suite.title,
        "problems": len(chosen),
        "published_problems": data.suite.size,
        "dropped": sum(n < limit for n in dropped),
        "skipped": data.skipped,
        "temperature": settings.temperature,
        "samples": settings.samples,
        "limit": settings.limit,
        "made_by": made_by,
        "key": key,
        "verdicts": counts,
        "result": summarise([kept.done[n] for n in chosen]),
    }


def _encode(
    policy: Policy, data: SuiteData, settings: Settings
) -> tuple[dict[int, list[int]], list[int]]:
    """({index of a problem: token ids of its prompt}, indices of those that are too long)."""
    ids, dropped = encode_prompts(
        policy.tokenizer,
        [problem.prompt for problem in data.problems],
        max_length=settings.prompt_tokens,
        chat=policy.chat,
        system=settings.system or None,
    )
    places = [n for n in range(len(data.problems)) if n not in set(dropped)]
    return dict(zip(places, ids, strict=True)), dropped


def _made_by(
    policy: Policy, data: SuiteData, settings: Settings, new_tokens: int, grader: Grader
) -> dict[str, Any]:
    """Everything that the figures depend on."""
    chat_template = policy.tokenizer.chat_template if policy.chat else None
    return {
        "model_sha256": policy.digest,
        "dtype": str(jax.tree.leaves(policy.params)[0].dtype),
        "data_sha256": data.digest,
        "data_files": list(data.files),
        "template": settings.template or data.suite.template,
        "system": settings.system,
        "chat_template_sha256": (
            hashlib.sha256(str(chat_template).encode()).hexdigest() if chat_template else None
        ),
        "samples": settings.samples,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "new_tokens": new_tokens,
        "prompt_tokens": settings.prompt_tokens,
        "seed": settings.seed,
        "grader": grader.record(),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Decoder:
    """Samples completions of a suite's prompts, chunk by chunk, by the same program."""

    policy: Policy
    suite: str
    spec: rollout.SampleSpec
    settings: Settings
    size: int  # problems in a chunk
    buffer: int  # token positions of a row
    seats: int  # rows decoded at once; 0: all

    def __call__(self, prompts: Mapping[int, list[int]]) -> tuple[list[list[int]], list[bool]]:
        """(ids written, whether the row ended by itself) of `samples` rows for each problem. The
        rows that fill up the chunk count as finished and are not decoded."""
        samples = self.settings.samples
        real = len(prompts) * samples
        ids = list(prompts.values())
        batch = rollout.from_prompts(
            [*ids, *[ids[0]] * (self.size - len(ids))], samples, self.buffer
        )
        row_id_B = np.zeros(self.size * samples, np.int32)
        row_id_B[:real] = (np.array([*prompts])[:, None] * STRIDE + np.arange(samples)).reshape(-1)
        row_id_B, finished_B = put_rows((row_id_B, np.arange(self.size * samples) >= real))
        key = jax.random.fold_in(
            jax.random.key(self.settings.seed), zlib.crc32(self.suite.encode()) & 0x7FFFFFFF
        )
        batch = rollout.generate(
            self.policy.params,
            self.policy.config,
            batch.replace(row_id_B=row_id_B, finished_B=finished_B),
            key,
            dataclasses.replace(self.spec, seats=self.seats or None),
            shared_prefix=samples,
        )
        return (
            rollout.completion_ids(batch)[:real],
            np.asarray(jax.device_get(batch.finished_B))[:real].tolist(),
        )


def _judged(
    data: SuiteData,
    places: Sequence[int],
    written: list[list[int]],
    finished: list[bool],
    grader: Grader,
    policy: Policy,
    weigher: Weigher | None,
    size: int,
) -> list[Result]:
    """One result for each problem of a chunk of `size`, with an entry for each sample."""
    samples = len(written) // len(places)
    texts = rollout.texts(written, policy.tokenizer)
    owners = [n for n in places for _ in range(samples)]
    weights = None
    if weigher is not None:
        questions = [data.questions[n] for n in owners]
        weights = step_weights(weigher.prm, questions, texts, weigher.aggregate, size * samples)
    columns: dict[str, list[Any] | None] = {
        "scores": grader.scores(
            [data.problems[n] for n in owners], texts, [data.rows[n] for n in owners]
        ),
        "answers": [grader.answer(text) for text in texts],
        "finished": finished,
        "tokens": [len(row) for row in written],
        "weights": weights,
        "texts": texts,
    }
    results = []
    for number, n in enumerate(places):
        part = slice(number * samples, (number + 1) * samples)
        cut = {name: None if column is None else column[part] for name, column in columns.items()}
        results.append({"problem": n, "id": data.problems[n].id, **cut})
    return results


def step_weights(
    prm: ProcessRewardModel,
    questions: Sequence[str],
    texts: Sequence[str],
    how: str,
    rows: int | None = None,
) -> list[float | None]:
    """The aggregated step scores of each text, whose steps stand between blank lines; None where
    the PRM could not score it. `rows` as in `ProcessRewardModel.score`."""
    steps = [[step for step in text.split("\n\n") if step.strip()] for text in texts]
    score_BJ, valid_BJ, _ = prm.score(questions, steps, rows)
    return [
        aggregate(score[valid].tolist(), how) if valid.any() else None
        for score, valid in zip(score_BJ, valid_BJ)
    ]


def _chunk(rows: int, samples: int, problems: int) -> int:
    """Problems decoded together, such that the rows divide evenly over the devices of the mesh."""
    mesh = jax.sharding.get_mesh()
    split = 1 if mesh.empty else int(mesh.shape["data"] * mesh.shape["fsdp"])
    step = split // int(np.gcd(split, samples))
    return -(-min(max(rows // samples, 1), problems) // step) * step


def _fitting(name: str, new_tokens: int, prompt: int, positions: int) -> int:
    """`new_tokens`, or as many as the model has positions for, with a note."""
    if prompt + new_tokens <= positions:
        return new_tokens
    if prompt >= positions:
        raise ValueError(
            f"{name}: a prompt of {prompt} tokens and the model has {positions} positions; lower"
            " prompt_tokens"
        )
    print(
        f"{name}: {positions - prompt} new tokens at most: the model has {positions} positions",
        file=sys.stderr,
    )
    return positions - prompt


def _end_ids(config: models.ModelConfig, tokenizer: Any) -> tuple[int, ...]:
    """Ends of a turn: those of the model's files and those that the tokenizer knows."""
    return end_ids(tokenizer, config.end_ids)


# ---- the command line


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
            for field, kind in zip(dataclasses.fields(Settings), _types().values(), strict=True)
        ),
        cli.Flag("chat", "use the tokenizer's chat template", "auto", words=("auto", "on", "off")),
        cli.Flag("rows", "rows of a chunk: how often results are kept", 256, int),
        cli.Flag("seats", "rows decoded at once; 0: all of a chunk", 64, int),
        cli.Flag("dtype", "of the parameters", "bfloat16", words=("float32", "bfloat16")),
        cli.Flag("fsdp", "devices over which the parameters are split", 1, int),
        cli.Flag("tensor", "devices over which heads and feed-forward are split", 1, int),
        cli.Flag("prm", "directory of a process reward model: adds bon@n and vote@n", ""),
        cli.Flag("prm_format", "auto, qwen, math_shepherd or skywork", "auto"),
        cli.Flag("prm_aggregate", "of a sample's step scores", "product", words=AGGREGATES),
    ]


def main(argv: Sequence[str] | None = None) -> str:
    """Run the command line; returns the table. Raises ValueError, FileNotFoundError and
    RuntimeError for bad input."""
    given = cli.parse(sys.argv[1:] if argv is None else argv, _flags())
    names = list(dict.fromkeys(name.strip() for name in given.suites if name.strip()))
    if not names:
        raise ValueError(f"--suites names no suite; known: {', '.join(SUITES)}")
    common = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(Settings)
        if getattr(given, field.name) is not None
    }
    settings = {name: settings_for(name, common, given.override, names) for name in names}
    # Before the model is read: a wrong path or name shows at once.
    read = {
        name: read_suite(name, given.data, template=settings[name].template or None)
        for name in names
    }
    for grader_name in sorted({settings[name].grader for name in names} - {""}):
        with Grader(grader_name) as grader:
            grader.start()
    workdir = Path(given.workdir)
    mesh = make_mesh(-1, given.fsdp, given.tensor)
    records = _records(workdir)
    with jax.set_mesh(mesh):
        config, params = models.load(given.model, dtype=given.dtype, mesh=mesh)
        tokenizer = load_tokenizer(given.model)
        chat = bool(tokenizer.chat_template) if given.chat == "auto" else given.chat == "on"
        policy = Policy(
            models.decode_layout(config, params, mesh),
            config,
            tokenizer,
            checkpoint_hash(given.model),
            chat,
        )
        weigher = None
        if given.prm:
            prm = ProcessRewardModel.load(
                given.prm, dtype=given.dtype, mesh=mesh, format=given.prm_format
            )
            weigher = Weigher(prm, checkpoint_hash(given.prm), given.prm_aggregate)
        for name in names:
            record = evaluate_suite(
                policy,
                read[name],
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


if __name__ == "__main__":
    use_cpu_cores()
    failures.run_main(main)
