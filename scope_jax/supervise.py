"""Supervised training of what reinforcement learning needs: base, teacher, PRM.

    python -m scope_jax.supervise --config=base,arithmetic --workdir=DIR

Target `policy`: next-token loss on demonstrations, written by a domain's program or found in a data
set (base policy, teacher). Target `prm`: two-class cross-entropy at the step marks of labelled
rollouts of a policy, with first-error rates on held-out rollouts. `workdir` becomes an ordinary
Hugging Face directory with `training.json` (these settings) and `summary.json` beside the weights,
and `labels.jsonl` beside those of a process reward model. A finished directory of the same settings
is left as it is; a run that was stopped goes on from its labels and its newest checkpoint.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from scope_jax import cli, hub, learning, models, rollout, tasks
from scope_jax.configuration.renamed import upgraded_supervised
from scope_jax.configuration.supervision import (
    PolicyTarget,
    PrmTarget,
    SuperviseConfig,
    default_config,
    supervise_config,
)
from scope_jax.correction import Scene
from scope_jax.data import Problems
from scope_jax.data.load import load_task
from scope_jax.data.prompts import check_ids, check_prompts, check_vocabulary
from scope_jax.devices.hosts import any_process, is_main, wait_for_all
from scope_jax.devices.mesh import mesh_of, put_rows
from scope_jax.devices.precision import matmul_precision
from scope_jax.devices.shapes import round_up
from scope_jax.run import (
    StopSignal,
    check_workdir,
    names_of_run,
    prepare_workdir,
    profile,
    record_names,
)
from scope_jax.run.lock import locked
from scope_jax.run.profile import profiled_steps
from scope_jax.run.session import Keeping, Session, finished_summary, write_summary
from scope_jax.streams import LABELLED
from scope_jax.supervision.batches import (
    BatchSpec,
    DemonstrationBatches,
    LabelledSteps,
    end_token,
)
from scope_jax.supervision.labels import (
    LabelledRow,
    LabelSpec,
    RolloutSpec,
    agreement,
    first_error_rates,
    labelled_rows,
    score_rows,
    threshold_table,
)
from scope_jax.supervision.prm_start import PrmStart, prm_start
from scope_jax.text import character_tokenizer, end_ids, load_tokenizer, save_tokenizer

__all__ = ["default_config", "supervise"]

STOP_AFTER_SKIPPED = 5  # updates in a row that were not finite, before a run gives up
SHOWN_LOSSES = 20  # updates, the last ones, whose mean loss is in the summary


def supervise(
    config: ConfigDict, workdir: str | Path, *, profile_steps: str | None = None
) -> dict[str, Any]:
    """Train as `config` says; returns the summary. `profile_steps`: "A:B", a trace of updates A to
    B - 1 in `workdir/profile`. Raises ValueError, FileNotFoundError,
    RuntimeError and, with a checkpoint to go on from, Stopped as `scope_jax.train` does."""
    settings, workdir = supervise_config(config), Path(workdir)
    profiled = profiled_steps(profile_steps, settings.steps)
    written = config.to_dict()
    compared: dict[str, Any] = {
        # What does not touch what is learned may change.
        "may_differ": ("checkpoint", "remat"),
        "defaults": default_config(settings.target.name).to_dict(),
        "upgrade": upgraded_supervised,
        "name": "training.json",  # a Hugging Face directory has a config.json of its own: a model's
    }
    check_workdir(workdir, written, **compared)
    if (done := finished_summary(workdir, needed={"kind": str})) is not None:
        return done
    mesh = mesh_of(settings.mesh)
    precision = matmul_precision(settings.matmul_precision)
    with jax.set_mesh(mesh), precision:
        # Everything that can be refused without weights is, before anything is written.
        with hub.pinned(names_of_run(workdir)):
            if isinstance(settings.target, PolicyTarget):
                training = _planned_policy(settings, settings.target, workdir, mesh, profiled)
            else:
                training = _planned_prm(settings, settings.target, workdir, mesh, profiled)
        with locked(workdir):
            prepare_workdir(workdir, written, **compared)
            record_names(workdir)
            summary = training()
    summary = write_summary(workdir, summary)
    if is_main():
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    wait_for_all("the model is written")
    return summary


# ---- the loop


@dataclasses.dataclass
class _Learned:
    """The state of a run, for its session."""

    state: learning.TrainState

    def restore(self, state: learning.TrainState) -> None:
        """Take up a saved state."""
        self.state = state


@dataclasses.dataclass
class _Place:
    """Where a run stands, for its session."""

    batches: DemonstrationBatches | LabelledSteps
    losses: list[float] = dataclasses.field(default_factory=list)  # the last ones

    def to_json(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        return {"losses": self.losses, "batches": self.batches.state()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up what `to_json` made."""
        self.losses = saved["losses"]
        self.batches.restore(saved["batches"])


def _fit(
    config: SuperviseConfig,
    workdir: Path,
    objective: Any,
    model_config: models.ModelConfig,
    params: Callable[[], models.Params],
    batches: DemonstrationBatches | LabelledSteps,
    profiled: range,
) -> tuple[models.Params, float]:
    """(trained parameters, mean loss of the last updates). `params()`: what to start from; nobody
    else holds on to it, so that its memory is free once the state is a copy of it."""
    optimizer = learning.make_optimizer(config.optimizer_spec)
    update = learning.make_update(
        objective, optimizer, model_config, config.micro_batches, dtype=config.dtype
    )
    kept = "float32" if config.master_weights == "float32" else None
    learned = _Learned(learning.init_state(params(), optimizer, kept))
    place = _Place(batches)
    keeping = Keeping(
        config.steps, config.checkpoint.every, stop_after_skipped=STOP_AFTER_SKIPPED, at_end=False
    )
    with (
        StopSignal(any_process) as stop,
        Session(workdir, keeping, stop, metrics=False, profiled=profiled) as session,
    ):
        session.restore(learned, place, learning.abstract_state(learned.state))
        for step in session.steps():
            with session.timer("batch"):
                rows = put_rows(next(batches))
            with session.timer("update"):
                learned.state, stats = update(learned.state, rows, {})
                place.losses = [*place.losses[1 - SHOWN_LOSSES :], float(stats["loss"])]
            skipped = bool(int(stats["skipped"]))
            session.record(step, {}, skipped=skipped, shown=f"loss {place.losses[-1]:.3f}")
    return models.in_dtype(learned.state.params, config.dtype), float(np.mean(place.losses))


def _problems(config: SuperviseConfig, tokenizer: Any) -> tuple[tasks.Domain, Problems | None]:
    """(domain, problems to train on); no problems where they are made when they are needed."""
    if config.makes_problems:
        return config.generated_domain(), None
    task = load_task(config.task, tokenizer)
    return task.domain, task.train


# ---- target `policy`


def _planned_policy(
    config: SuperviseConfig,
    target: PolicyTarget,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    profiled: range,
) -> Callable[[], dict[str, Any]]:
    """What trains a policy and returns the summary, once all that it starts from is checked."""
    params: Callable[[], models.Params]
    if config.start:
        model_config = _lm_config(config.start)
        start = config.start

        def params() -> models.Params:
            return models.load(start, dtype=config.dtype, mesh=mesh)[1]

        tokenizer = load_tokenizer(config.start)
        check_vocabulary(tokenizer, model_config.vocab_size, config.start)
        domain, problems = _problems(config, tokenizer)
        # A base model's files often name one end token only; in a chat its turns end with another.
        ends = end_ids(tokenizer, model_config.end_ids)
        model_config = dataclasses.replace(model_config, end_ids=ends)
    else:
        domain, problems = _problems(config, None)
        assert isinstance(domain, tasks.GeneratedDomain)
        tokenizer = character_tokenizer(domain.characters)
        size = config.model
        model_config = models.ModelConfig(
            vocab_size=len(tokenizer),
            head_size=size.hidden_size // size.num_heads,
            max_positions=512,
            end_ids=(tokenizer.eos_token_id,),
            **dataclasses.asdict(size),
        )

        def params() -> models.Params:
            return models.init(model_config, jax.random.key(config.seed), config.dtype, mesh=mesh)

    width = round_up(target.max_tokens) if target.max_tokens else None
    if problems is None and width is None:
        assert isinstance(domain, tasks.GeneratedDomain)
        longest = max(config.fresh.lengths)
        width = round_up(domain.prompt_length(longest) + domain.completion_length(longest))
    spec = BatchSpec(
        style=target.style,
        foreign_prefix=target.foreign_prefix,
        in_steps=target.in_steps,
        chat=config.chat,
        max_tokens=min(
            target.max_tokens or model_config.max_positions,
            width or model_config.max_positions,
        ),
        end_id=end_token(tokenizer, config.chat),
        sizes=config.fresh.lengths,
        problem_seed=config.fresh.seed,
    )

    def batches() -> DemonstrationBatches:
        return DemonstrationBatches(
            domain, problems, tokenizer, spec, batch=config.batch, seed=config.seed, width=width
        )

    if config.start:
        first = next(batches())["tokens"]
        check_ids(first, model_config.vocab_size, tokenizer, "a demonstration")
        models.check_files(config.start)

    def train() -> dict[str, Any]:
        drawn = batches()
        objective = learning.cloning_objective(
            dataclasses.replace(model_config, remat=config.remat)
        )
        trained, loss = _fit(config, workdir, objective, model_config, params, drawn, profiled)
        models.save(workdir, model_config, trained)
        if is_main():
            save_tokenizer(tokenizer, workdir)
        dropped = {f"data/{name}": count for name, count in drawn.dropped.items() if count}
        return {"kind": "policy", "steps": config.steps, "loss": loss, **dropped}

    return train


def _lm_config(directory: str) -> models.ModelConfig:
    model_config = models.read_config(directory)
    if model_config.head != "lm":
        raise ValueError(
            f"{directory}: head {model_config.head!r}; a model with a vocabulary head ('lm') is"
            " needed"
        )
    return model_config


# ---- target `prm`


def _planned_prm(
    config: SuperviseConfig,
    target: PrmTarget,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    profiled: range,
) -> Callable[[], dict[str, Any]]:
    """What labels rollouts, trains a process reward model and returns the summary, once all that
    it starts from is checked: labels take hours."""
    directory = config.start or target.rollouts.policy
    assert directory is not None
    start = prm_start(directory)
    labelled = _planned_labels(config, target, workdir, mesh)
    for needed in {directory: None, target.rollouts.policy or directory: None}:
        models.check_files(needed)
    return lambda: _train_prm(config, target, workdir, mesh, profiled, start, labelled)


def _train_prm(
    config: SuperviseConfig,
    target: PrmTarget,
    workdir: Path,
    mesh: jax.sharding.Mesh,
    profiled: range,
    start: PrmStart,
    labelled: Callable[[], list[tuple[list[LabelledRow], dict[str, int]]]],
) -> dict[str, Any]:
    if start.added_rows and is_main():
        print(
            f"{workdir}: no row of the embedding is free for the step mark: {start.added_rows} are"
            f" added, {start.config.vocab_size} in all",
            flush=True,
        )
    (train_rows, train_counts), (held_out, _) = labelled()
    labels, prm_config, scorer = target.labels, start.config, start.scorer
    soft = labels.kind == "monte_carlo" and labels.estimate == "soft"
    batches = LabelledSteps(scorer, train_rows, batch=config.batch, seed=config.seed, soft=soft)

    def params() -> models.Params:
        return start.params(config.dtype, config.seed, mesh)

    objective = learning.step_label_objective(dataclasses.replace(prm_config, remat=config.remat))
    trained, loss = _fit(config, workdir, objective, prm_config, params, batches, profiled)
    models.save(workdir, prm_config, trained)
    if is_main():
        save_tokenizer(start.tokenizer, workdir)

    score, valid = score_rows(dataclasses.replace(scorer, params=trained), held_out)
    truth = [row.truth for row in held_out]
    rates = first_error_rates(score, valid, truth, target.threshold)
    table, best = threshold_table(score, valid, truth)
    if is_main():
        print(
            f"{workdir}: "
            + "  ".join(f"{k} {v:.3f}" for k, v in rates.items() if isinstance(v, float)),
            flush=True,
        )
    return {
        "kind": "prm",
        "steps": config.steps,
        "loss": loss,
        "train_rows": len(train_rows),
        **rates,
        "measured_against": (
            "oracle" if all(row.oracle is not None for row in held_out) else "monte_carlo"
        ),
        "threshold/best_exact": best,
        "thresholds": table,
        "labels/unscorable": batches.unscorable,
        **{f"labels/{name}": count for name, count in train_counts.items()},
        **(agreement(train_rows) if labels.kind == "monte_carlo" else {}),
    }


def _planned_labels(
    config: SuperviseConfig, target: PrmTarget, workdir: Path, mesh: jax.sharding.Mesh
) -> Callable[[], list[tuple[list[LabelledRow], dict[str, int]]]]:
    """What gives (rows, counters) of the training and of the held-out problems, from labels.jsonl
    as far as they are there, once policy and problems are checked."""
    settings, policy_directory = target.rollouts, target.rollouts.policy
    assert policy_directory is not None
    policy_config = _lm_config(policy_directory)
    tokenizer = load_tokenizer(policy_directory)
    check_vocabulary(tokenizer, policy_config.vocab_size, policy_directory)
    domain, problems = _problems(config, tokenizer)
    prompt_tokens, new_tokens = settings.prompt_tokens, settings.new_tokens
    sets: list[tuple[str, Sequence[tasks.Problem]]]
    if problems is None:
        assert isinstance(domain, tasks.GeneratedDomain)
        generated = domain

        def fresh(split: str, count: int, seed: int) -> list[tasks.Problem]:
            seed += config.fresh.seed
            return [generated.problem(seed, split, n, settings.lengths) for n in range(count)]

        sets = [
            ("train", fresh("train", settings.problems, LABELLED["train"])),
            ("held_out", fresh("validation", settings.held_out, LABELLED["held_out"])),
        ]
        longest = max(settings.lengths)
        if prompt_tokens is None:
            prompt_tokens = domain.prompt_length(longest)
        if new_tokens is None:
            new_tokens = domain.completion_length(longest) + 4
    else:
        needed = settings.problems + settings.held_out
        if len(problems) < needed:
            raise ValueError(
                f"{problems.name}: {len(problems)} problems; target.rollouts.problems and .held_out"
                f" ask for {needed}, none of them twice"
            )
        sets = [
            ("train", problems.draw(config.seed, 0, settings.problems)),
            ("held_out", problems.draw(config.seed, settings.problems, settings.held_out)),
        ]
    assert prompt_tokens is not None and new_tokens is not None  # refused with the settings
    for _, part in sets:
        check_prompts(
            Problems.from_list(part, config.task.name if problems is None else problems.name),
            domain,
            tokenizer,
            max_tokens=prompt_tokens,
            chat=config.chat,
            vocab_size=policy_config.vocab_size,
            setting="target.rollouts.prompt_tokens",
        )
    target.labels.check(domain)
    ends = end_ids(tokenizer, policy_config.end_ids)
    sample = rollout.SampleSpec(
        temperature=settings.temperature, max_new_tokens=new_tokens, end_ids=ends
    )
    spec = RolloutSpec(settings.group, settings.problems_at_once, prompt_tokens, config.chat)

    @functools.cache
    def policy() -> rollout.Policy:
        params = models.load(policy_directory, dtype=config.dtype, mesh=mesh)[1]
        params = models.decode_layout(policy_config, params, mesh)
        return rollout.Policy(rollout.Generator(params, policy_config), tokenizer, sample)

    def scene(seed: int) -> Scene:
        return Scene(domain, policy(), jax.random.key(seed))

    def labelled() -> list[tuple[list[LabelledRow], dict[str, int]]]:
        if is_main():
            print(f"{workdir}: labelled rollouts of {settings.policy}", flush=True)
        found = []
        for split, part in sets:
            # Held-out rows are measured against the step check where the domain has one.
            checked = split == "held_out" and domain.checks_steps
            labels = LabelSpec("oracle") if checked else target.labels
            played = functools.partial(scene, LABELLED[split])
            path = workdir / "labels.jsonl"
            found.append(labelled_rows(path, split, part, played, spec, labels))
        return found

    return labelled


def command(config: ConfigDict, workdir: str | None, given: Any) -> str:
    """The command line's `supervise`: the summary as JSON."""
    return json.dumps(supervise(config, workdir or "", profile_steps=given.profile_steps))


if __name__ == "__main__":
    more = [cli.Flag("profile_steps", profile.HELP)]
    cli.run(command, SuperviseConfig, file="checkpoints.py", more=more)
