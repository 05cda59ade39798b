"""Every method of configs/methods.py through the same loop, on the tiny checkpoints; what each
does to a step."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support.tiny_runs import Tiny

from scope_jax import learning, rollout, tasks, teachers
from scope_jax.configuration import TrainConfig, default_config, set_method, train_config
from scope_jax.configuration.schema import set_value
from scope_jax.correction import Groups
from scope_jax.devices.mesh import make_mesh
from scope_jax.rollout import completion_texts, from_prompts
from scope_jax.run import PhaseTimer, read_metrics
from scope_jax.train import train
from scope_jax.training.actors import Actors, load_actors
from scope_jax.training.learner import Learner
from scope_jax.training.rollouts import (
    Progress,
    Step,
    collect_demonstrations,
    collect_rollouts,
    draw,
    with_demonstrations,
)
from scope_jax.types import Owner

QUICK = {
    "evaluation.problems": 0,
    "evaluation.ood_problems": 0,
    "checkpoint.every": 1,
    "training.mini_batches": 2,
}
# What a method's tiny run changes beside the common settings.
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {},
    "dapo": {},
    "gspo": {"training.mini_batches": 4},
    "luffy": {},
    "relift": {"method.buffer": 1},
    "prm_reward": {},
    "prm_min": {},
    "vppo": {},
    "sft": {"sft.steps": 3, "sft.prompts": 4, "training.mini_batches": 1},
    "sft_grpo": {"sft.steps": 2, "sft.prompts": 4},
    "self_correction": {},
    "scope": {
        "localiser.kind": "monte_carlo",
        "method.place": "append",
        "method.select.rule": "all",
    },
}


def settings(checkpoints: Tiny, name: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    place = {"models.teacher": str(checkpoints.policy), "models.prm": str(checkpoints.prm)}
    return {**QUICK, **place, **METHODS[name], **(more or {})}


@pytest.fixture(scope="module")
def runs(checkpoints: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """The metrics of three steps of every method."""
    folder = tmp_path_factory.mktemp("methods")
    out = {}
    for name in METHODS:
        more = {"models.teacher": None} if name == "self_correction" else {}
        train(checkpoints.config(name, settings(checkpoints, name, more)), folder / name)
        out[name] = read_metrics(folder / name / "metrics.jsonl")
    return out


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(runs: dict[str, list[dict]], name: str):
    rows = runs[name]
    assert len(rows) == 3 and all(row["grad/skipped"] == 0 for row in rows)
    assert sum(row.get("grad/norm", 0) > 0 for row in rows) >= 1


def test_dapo_resamples_until_every_group_tells(runs: dict[str, list[dict]]):
    for row in runs["dapo"]:
        # Only where the last batch was spent may a group stay that tells nothing.
        assert row["rollout/batches"] == 3 or row["advantage/zero_group_share_after"] == 0
        assert (
            1 <= row["rollout/batches"] <= 3
            and row["advantage/zero_group_share_after"] <= row["advantage/zero_group_share"]
        )
    consumed = np.diff([0, *(row["data/prompts"] for row in runs["dapo"])])
    assert consumed.tolist() == [8 * row["rollout/batches"] for row in runs["dapo"]]
    assert max(row["rollout/batches"] for row in runs["dapo"]) > 1  # else nothing was seen


def test_gspo_updates_once_per_mini_batch(runs: dict[str, list[dict]]):
    for name, updates in (("gspo", 4), ("grpo", 2), ("luffy", 2)):
        # A mini-batch without an advantage is left out.
        assert [row["update/count"] + row["update/no_signal"] for row in runs[name]] == [
            updates
        ] * 3
        assert runs[name][0]["update/count"] > 0
    # Half of four demonstrations may hold none that is right.
    supervised = runs["sft_grpo"][:2]
    assert all(row["update/count"] <= min(2, row["demonstrations/used"]) for row in supervised)
    assert all((row["update/count"] > 0) == (row["demonstrations/used"] > 0) for row in supervised)
    assert [row["update/count"] for row in runs["sft"]] == [
        row["demonstrations/used"] > 0 for row in runs["sft"]
    ]
    # After the first mini-batch the policy is not the one that sampled.
    assert max(row["policy/ratio_max"] for row in runs["gspo"]) > 1 + 1e-4
    assert runs["gspo"][1]["optimizer/learning_rate"] > 0


def test_supervised_steps_have_no_rollouts(runs: dict[str, list[dict]]):
    assert all("reward/mean" not in row and row["demonstrations/asked"] == 4 for row in runs["sft"])
    assert ["reward/mean" in row for row in runs["sft_grpo"]] == [False, False, True]
    used = [row["demonstrations/used"] for row in runs["sft"]]
    right = [
        row["demonstrations/right_share"]
        * (row["demonstrations/asked"] - row["demonstrations/failed"])
        for row in runs["sft"]
    ]
    assert used == pytest.approx(right)  # verified only
    assert max(used) > 0
    # The loss of an update is the mean of -log pi over the demonstrated tokens.
    for row in runs["sft"]:
        if row["demonstrations/used"]:
            assert row["loss/total"] == pytest.approx(-row["policy/teacher_logp"], rel=1e-5)


def test_process_rewards_are_added_to_the_outcome(runs: dict[str, list[dict]]):
    # Rollouts are those of Dr.GRPO at the first step: the same key and the same policy.
    for name in ("prm_reward", "prm_min", "vppo"):
        assert runs[name][0]["reward/mean"] == runs["dr_grpo"][0]["reward/mean"]
        assert (
            runs[name][0]["cost/prm_tokens"] > 0
            and runs[name][0]["grad/norm"] != runs["dr_grpo"][0]["grad/norm"]
        )
    for row in runs["dr_grpo"]:
        assert row["advantage/zero_group_share_after"] == row["advantage/zero_group_share"]


def refuse(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[str], bool], rest: bool | None = None
) -> None:
    """The verifier refuses every answer to prompts that are `refused`, whatever the policy wrote.
    `rest`: its verdict on all others (None: the one that it has)."""
    own = tasks.Arithmetic.verify

    def verify(self: Any, problems: Any, texts: Any) -> list[bool]:
        verdicts = own(self, problems, texts) if rest is None else [rest] * len(texts)
        return [v and not refused(p.prompt) for v, p in zip(verdicts, problems)]

    monkeypatch.setattr(tasks.Arithmetic, "verify", verify)


def every_second(prompt: str) -> bool:
    return sum(map(ord, prompt)) % 2 == 1


def test_process_rewards_reach_groups_without_an_outcome(
    checkpoints: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Under a verifier that refuses everything no group has an outcome, whatever the policy: groups
    have token advantages all the same, and are counted so."""
    refuse(monkeypatch, lambda prompt: True)
    for name in ("dr_grpo", "prm_reward", "prm_min", "vppo"):
        more = settings(checkpoints, name, {"steps": 1})
        train(checkpoints.config(name, more), tmp_path / name)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        before, after = (
            [row[f"advantage/zero_group_share{end}"] for row in rows] for end in ("", "_after")
        )
        assert before == [1]
        assert after == [1] if name == "dr_grpo" else after[0] < 1, name


def test_the_monte_carlo_localiser_reports_its_cost(runs: dict[str, list[dict]]):
    rows = runs["scope"]
    assert sum(row["cost/localiser_tokens"] for row in rows) > 0 and all(
        row["cost/prm_tokens"] == 0 for row in rows
    )
    assert sum(row["scope/selected"] for row in rows) > 0


# ---- one step, looked at closely


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a step is made of."""

    written: ConfigDict
    config: TrainConfig
    actors: Actors
    mesh: Any

    def changed(self, method: str = "luffy", **changes: Any) -> TrainConfig:
        """The config with another method (and that method's defaults), and with other settings; a
        dot in their names is `__`."""
        config = self.written.copy_and_resolve_references()
        if method != "luffy":
            set_method(config, method)
        for name, value in changes.items():
            set_value(TrainConfig, config, name.replace("__", "."), value)
        return train_config(config)


@pytest.fixture(scope="module")
def parts(checkpoints: Tiny) -> Parts:
    written = checkpoints.config(
        "luffy", settings(checkpoints, "luffy", {"demonstrations.verified": False})
    )
    config = train_config(written)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        actors = load_actors(config, mesh)
    return Parts(written, config, actors, mesh)


def policy_of(parts: Parts) -> rollout.Generator:
    return rollout.Generator(parts.actors.params, parts.actors.config)


def sampling_of(parts: Parts) -> rollout.SampleSpec:
    return parts.config.rollout.sampling(parts.actors.config.end_ids)


def a_step() -> Step:
    return Step(0, jax.random.key(5), 0, PhaseTimer())


def groups_of(parts: Parts, config: TrainConfig) -> Groups:
    return collect_rollouts(parts.actors, policy_of(parts), config, Progress(), a_step())


def demonstrations_of(
    parts: Parts, config: TrainConfig, problems: list[tasks.Problem], first_row: int = 1000
) -> Groups:
    return collect_demonstrations(parts.actors, config, problems, a_step(), first_row=first_row)


def test_a_luffy_group_is_rollouts_and_one_demonstration(parts: Parts):
    with jax.set_mesh(parts.mesh):
        own = groups_of(parts, parts.config)
        asked = own.problems[:: own.group]
        shown = demonstrations_of(parts, parts.config, asked, len(own.reward_B))
        both = with_demonstrations(own, shown)
    M = parts.config.rollout.group
    assert own.group == M - 1 and both.group == M and len(both.reward_B) == 8 * M
    owner, length, prompt = (
        np.asarray(x)
        for x in (both.rollout.owner_BT, both.rollout.length_B, both.rollout.prompt_length_B)
    )
    for b in range(8 * M):
        wrote = {Owner(o) for o in owner[b, prompt[b] : length[b]]}
        assert wrote == ({Owner.TEACHER} if b % M == M - 1 else {Owner.POLICY})
        assert both.problems[b] == asked[b // M] and both.own_B[b] == (b % M < M - 1)
        assert (
            parts.actors.tokenizer.decode(
                np.asarray(both.rollout.tokens_BT)[b, : prompt[b]].tolist()
            )
            == both.problems[b].prompt
        )
    # The demonstration counts in the group's mean, with the reward that the verifier gave it.
    reward = both.reward_B.reshape(8, M)
    np.testing.assert_array_equal(reward[:, :-1], own.reward_B.reshape(8, M - 1))
    np.testing.assert_array_equal(reward[:, -1], shown.reward_B)
    advantage = np.asarray(
        learning.group_advantages(both.reward_B, M, include_B=both.include_B)
    ).reshape(8, M)
    expected = np.where(
        np.ptp(reward, axis=1, keepdims=True) > 0, reward - reward.mean(axis=1, keepdims=True), 0
    )
    np.testing.assert_allclose(advantage, expected, atol=1e-6)
    # Whole solutions: the text after the prompt is judged as a rollout's would be.
    tokens = np.asarray(both.rollout.tokens_BT)
    texts = [
        parts.actors.tokenizer.decode(tokens[b, prompt[b] : length[b] - 1].tolist())
        for b in range(8 * M)
    ]
    verdict = parts.actors.task.domain.verify(both.problems, texts)
    finished = np.asarray(both.rollout.finished_B)
    assert [bool(v) and bool(f) for v, f in zip(verdict, finished)] == (both.reward_B == 1).tolist()


def test_a_demonstration_that_is_refused_is_not_learned_from(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    refuse(monkeypatch, every_second, rest=True)
    config = parts.changed(demonstrations__verified=True)
    with jax.set_mesh(parts.mesh):
        own = groups_of(parts, config)
        asked = own.problems[:: own.group]
        taken, strict = (
            demonstrations_of(parts, c, asked, len(own.reward_B)) for c in (parts.config, config)
        )
        wrong = taken.reward_B != 1
        assert wrong.any() and not wrong.all()
        assert (
            strict.include_B.tolist() == (~wrong).tolist()
            and strict.metrics["demonstrations/used"] == (~wrong).sum()
        )
        weights = {}
        for name, shown in (("taken", taken), ("strict", strict)):
            both = with_demonstrations(own, shown)
            spec = learning.LossSpec(normaliser="token")
            weights[name] = [
                np.asarray(w)
                for w in learning.token_weights(both.rollout, spec, include_B=both.include_B)
            ]
    M = parts.config.rollout.group
    shown_rows = np.arange(M - 1, 8 * M, M)
    assert (weights["taken"][1][shown_rows].sum(axis=1) > 0).all()
    assert ((weights["strict"][1][shown_rows].sum(axis=1) > 0) == ~wrong).all()
    # What is refused is not in N either: the weights of a batch sum to 1.
    assert sum(w.sum() for w in weights["strict"]) == pytest.approx(1, abs=1e-5)


def test_a_demonstration_that_does_not_fit_is_left_out(parts: Parts):
    short = parts.changed(rollout__new_tokens=3)
    with jax.set_mesh(parts.mesh):
        own = groups_of(parts, short)
        shown = demonstrations_of(parts, short, own.problems[:: own.group])
        assert not shown.include_B.any() and np.isnan(shown.reward_B).all()
        assert (
            shown.metrics["demonstrations/failed_too_long"]
            == 8
            == shown.metrics["demonstrations/failed"]
        )
        both = with_demonstrations(own, shown)
        on, off = learning.token_weights(
            both.rollout, learning.LossSpec(normaliser="token"), include_B=both.include_B
        )
        alone, _ = learning.token_weights(
            own.rollout, learning.LossSpec(normaliser="token"), include_B=own.include_B
        )
    assert float(off.sum()) == 0 and float(on.sum()) == pytest.approx(float(alone.sum()))


@pytest.mark.parametrize("kind", ["program", "reference"])
def test_programs_and_references_demonstrate(parts: Parts, kind: str):
    domain, tokenizer = parts.actors.task.domain, parts.actors.tokenizer
    problems = [domain.problem(3, "train", n, 2) for n in range(3)]
    spec = teachers.TeacherSpec("program", style="prompt_order")
    teacher: Any = teachers.ProgramTeacher(spec)
    if kind == "reference":
        teacher = teachers.ReferenceTeacher()
        known = domain.demonstration(problems[0], np.random.default_rng(0), "sorted")
        problems = [dataclasses.replace(problems[0], solution=known), *problems[1:]]
    with jax.set_mesh(parts.mesh):
        made = teacher.demonstrate(
            teachers.DemonstrationJob(
                problems,
                from_prompts([tokenizer.encode(p.prompt) for p in problems], 1, 20),
                tokenizer,
                sampling_of(parts),
                domain,
                temperature=1.0,
                key=jax.random.key(0),
                seed=0,
            )
        )
    texts = [
        tokenizer.decode(row, skip_special_tokens=True)
        for row in np.asarray(made.rollout.tokens_BT)
    ]
    assert made.failed == (
        [None] * 3 if kind == "program" else [None, "no_solution", "no_solution"]
    )
    for problem, text, reason in zip(problems, texts, made.failed):
        if reason is None:
            solution = problem.solution or domain.demonstration(
                problem, np.random.default_rng(0), "prompt_order"
            )
            assert text.startswith(problem.prompt + solution) and domain.verify(
                [problem], [solution]
            ) == [True]
    assert np.asarray(made.rollout.finished_B).all()


@pytest.mark.parametrize("more", [1, 3])
def test_dynamic_sampling_keeps_the_groups_that_tell(parts: Parts, more: int):
    """By hand: roll out the batches one by one, judge them and pick. Of two rows, half of the
    groups tell nothing."""
    M = 2
    config = parts.changed("grpo", method__resample=more, rollout__group=M)
    P, domain, progress = config.rollout.prompts, parts.actors.task.domain, Progress()
    tokens, rewards, problems = [], [], []
    with jax.set_mesh(parts.mesh):
        made = groups_of(parts, config)
        for number in range(1 + more):
            drawn, ids = draw(parts.actors, config, progress, P)
            batch = from_prompts(ids, M, config.rollout.length, first_row=number * P * M)
            batch = policy_of(parts).extend(
                batch, jax.random.key(5), sampling_of(parts), shared_prefix=M
            )
            tokens.append(np.asarray(batch.tokens_BT))
            rows = [p for p in drawn for _ in range(M)]
            right = domain.verify(rows, completion_texts(batch, parts.actors.tokenizer))
            rewards.append(np.asarray(right, float) * np.asarray(batch.finished_B))
            problems += drawn
    spread = np.ptp(np.concatenate(rewards).reshape(-1, M), axis=1) > 0
    batches = next((n for n in range(1, 1 + more) if spread[: n * P].sum() >= P), 1 + more)
    telling = np.flatnonzero(spread[: batches * P])[:P].tolist()
    silent = [g for g in range(batches * P) if not spread[g]]
    kept = (
        sorted(telling + silent[len(silent) - (P - len(telling)) :])
        if len(telling) < P
        else telling
    )
    assert max(telling) >= P  # a later batch was needed, or nothing was seen
    index = (np.array(kept)[:, None] * M + np.arange(M)).ravel()
    np.testing.assert_array_equal(made.rollout.tokens_BT, np.concatenate(tokens)[index])
    np.testing.assert_array_equal(made.reward_B, np.concatenate(rewards)[index])
    assert [p.id for p in made.problems[::M]] == [problems[g].id for g in kept]
    assert made.metrics["rollout/batches"] == batches
    assert made.metrics["reward/mean"] == pytest.approx(
        np.concatenate(rewards)[: batches * P * M].mean(), abs=1e-6
    )


def parameters(learner: Learner) -> dict[str, np.ndarray]:
    return {str(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(learner.state.params)}


def learner_of(parts: Parts, **changes: Any) -> Learner:
    """A learner of rollouts alone. `changes`: settings; a dot in their names is `__`."""
    plain = {
        "loss__entropy_bonus": 0.0,
        "loss__teacher_term": "nll",
        "loss__normaliser": "token",
        "training__mini_batches": 1,
        "training__micro_batches": 1,
    }
    config = parts.changed("grpo", **(plain | changes))
    own = dataclasses.replace(parts.actors)  # a learner takes the weights over
    return Learner(config, own, parts.mesh, jax.random.key(0))


def test_mini_batches_are_updates_on_groups_in_an_order_of_the_epoch(parts: Parts):
    """Two epochs of two mini-batches equal four updates by hand on the groups that the key's order
    names."""
    with jax.set_mesh(parts.mesh):
        made = groups_of(parts, parts.changed("grpo"))
        M, key = made.group, jax.random.key(9)
        advantage = np.asarray(learning.group_advantages(made.reward_B, M))
        many = learner_of(parts, training__epochs=2, training__mini_batches=2)
        stats = many.update(made.rollout, M, advantage, made.include_B, key, 0)
        by_hand = learner_of(parts)
        for epoch in range(2):
            order = np.asarray(
                jax.random.permutation(
                    jax.random.fold_in(jax.random.fold_in(key, 1 << 21), epoch), 8
                )
            )
            for part in order.reshape(2, 4):
                index = (part[:, None] * M + np.arange(M)).reshape(-1)
                rows = jax.tree.map(lambda x, index=index: x[index], made.rollout)
                by_hand.update(rows, M, advantage[index], made.include_B[index], key, 0)
    assert stats["update/count"] == 4 and int(many.state.updates) == 4 == int(by_hand.state.updates)
    one, other = parameters(many), parameters(by_hand)
    start = {str(p): np.asarray(x) for p, x in jax.tree.leaves_with_path(parts.actors.params)}
    assert max(np.abs(one[name] - start[name]).max() for name in one) > 1e-3
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=2e-6, err_msg=name)


def test_recomputed_old_logprobs_are_those_of_the_policy_before_the_updates(parts: Parts):
    with jax.set_mesh(parts.mesh):
        made = groups_of(parts, parts.changed("grpo"))
        run = learning.make_logprobs(parts.actors.config, temperature=1.0, micro_batches=4)
        found = np.asarray(run(parts.actors.params, made.rollout, made.group))
        recorded, owner = np.asarray(made.rollout.logp_BT), np.asarray(made.rollout.owner_BT)
        written = (owner == Owner.POLICY) & (
            np.arange(owner.shape[1]) < np.asarray(made.rollout.length_B)[:, None]
        )
        np.testing.assert_allclose(found[written], recorded[written], atol=1e-4)
        assert (found[~written] == 0).all() and written.sum() > 100
        # So both choices of old log-probs lead to the same parameters, up to that gap, when the
        # sampler is the trainer.
        advantage = np.asarray(learning.group_advantages(made.reward_B, made.group))
        results = []
        for old in ("sampler", "recompute"):
            learner = learner_of(parts, training__mini_batches=2, loss__old_logp=old)
            learner.update(
                made.rollout, made.group, advantage, made.include_B, jax.random.key(1), 0
            )
            results.append(parameters(learner))
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], atol=1e-4, err_msg=name)


def test_the_kl_term_holds_the_policy_to_where_it_started(parts: Parts):
    with jax.set_mesh(parts.mesh):
        made = groups_of(parts, parts.changed("grpo"))
        advantage = np.asarray(learning.group_advantages(made.reward_B, made.group))
        found = {}
        for weight in (0.0, 10.0):
            learner = learner_of(
                parts,
                loss__kl_weight=weight,
                training__epochs=6,
                loss__clip_low=None,
                loss__clip_high=None,
            )
            metrics = [
                learner.update(
                    made.rollout, made.group, advantage, made.include_B, jax.random.key(n), n
                )
                for n in range(3)
            ]
            found[weight] = metrics
            run = learning.make_logprobs(parts.actors.config, temperature=1.0)
            gap = run(learner.state.params, made.rollout, made.group) - run(
                parts.actors.params, made.rollout, made.group
            )
            found[weight, "gap"] = float(np.abs(np.asarray(gap)).mean())
    assert "policy/kl" not in found[0.0][0] and found[10.0][-1]["policy/kl"] > 0
    assert found[10.0, "gap"] < 0.5 * found[0.0, "gap"]


def grad_norm(learner: Learner, made: Groups, logp: Any, advantage: Any) -> dict[str, float]:
    """Metrics of one update on rows whose recorded log-probs are `logp`."""
    rows = made.rollout.replace(logp_BT=jnp.asarray(logp))
    return learner.update(rows, made.group, advantage, made.include_B, jax.random.key(1), 0)


def test_truncated_importance_weights_reach_the_update(parts: Parts):
    """The sampler's log-probs are moved by a constant: every token has the same weight, and so has
    the gradient."""
    with jax.set_mesh(parts.mesh):
        made = groups_of(parts, parts.changed("grpo"))
        advantage = np.asarray(learning.group_advantages(made.reward_B, made.group))
        recorded = np.asarray(made.rollout.logp_BT)
        plain = grad_norm(learner_of(parts, loss__old_logp="recompute"), made, recorded, advantage)
        found = {}
        for shift in (-0.5, 0.5):  # the sampler gave less, more
            learner = learner_of(parts, loss__old_logp="recompute", loss__tis_cap=1.2)
            found[shift] = grad_norm(learner, made, recorded + shift, advantage)
    assert "policy/tis_mean" not in plain and plain["grad/norm"] > 1e-3
    for shift, weight in ((-0.5, 1.2), (0.5, np.exp(-0.5))):  # e^0.5 = 1.65 is cut
        assert found[shift]["policy/tis_mean"] == pytest.approx(weight, rel=1e-3)
        assert found[shift]["grad/norm"] / plain["grad/norm"] == pytest.approx(weight, rel=1e-3)


def test_the_teachers_probabilities_reach_the_update(parts: Parts):
    """Demonstrations by the policy itself: pi / pi_teacher is 1, or e^-shift where the recorded
    log-probs are moved."""
    with jax.set_mesh(parts.mesh):
        own = groups_of(parts, parts.config)
        shown = demonstrations_of(parts, parts.config, own.problems[:: own.group])
        made = with_demonstrations(own, shown)
        owner = np.asarray(made.rollout.owner_BT)
        recorded = np.asarray(made.rollout.logp_BT)
        assert (
            np.isfinite(recorded[owner == Owner.TEACHER]).all()
            and (owner == Owner.TEACHER).sum() > 50
        )
        advantage = np.where(made.own_B, 0, 1).astype(
            np.float32
        )  # nothing to learn from the policy's own rows

        def norm(shift, **changes):
            return grad_norm(learner_of(parts, **changes), made, recorded + shift, advantage)[
                "grad/norm"
            ]

        plain = norm(0.0, loss__teacher_term="reinforce")
        found = {
            shift: norm(shift, loss__teacher_term="importance", loss__importance_cap=0.5)
            for shift in (-1.0, 0.0, 1.5)
        }
    assert plain > 1e-2
    for shift, weight in ((-1.0, 0.5), (0.0, 0.5), (1.5, np.exp(-1.5))):
        assert found[shift] / plain == pytest.approx(weight, rel=1e-3), shift


# ---- what is kept over a stop


@pytest.mark.parametrize(
    "name", ["relift", pytest.param("luffy", marks=pytest.mark.long), "dapo", "scope"]
)
def test_a_stopped_run_goes_on_the_same(
    checkpoints: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    """Stopped after step 3 of 5: the buffer of failed prompts and the place in the problems are
    part of the checkpoint."""
    changes: dict[str, Any] = {"steps": 5, "checkpoint.keep": 5}
    if name == "relift":
        changes |= {"method.buffer": 5, "demonstrations.verified": False}
        refuse(monkeypatch, every_second)  # so that there are groups that failed
    if name == "scope":  # rollouts and rescues in several rounds
        changes |= {"method.resample": 2, "method.place": "replace_random_failure"}
        changes |= {"localiser.kind": "oracle", "rollout.group": 2, "method.select.rule": "random"}
    more = settings(checkpoints, name, changes)
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(checkpoints.config(name, more), whole)
    shutil.copytree(whole, part)
    for step in (4, 5):
        shutil.rmtree(part / "checkpoints" / str(step), ignore_errors=True)
    assert (
        sorted(int(p.name) for p in (part / "checkpoints").iterdir() if p.name.isdigit())[-1] == 3
    )
    (part / "summary.json").unlink()
    shutil.rmtree(part / "model")
    train(checkpoints.config(name, more), part)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, part))
    for tensor in one:
        np.testing.assert_array_equal(one[tensor], other[tensor], err_msg=tensor)
    drop = ("time/", "throughput/", "compile/", "memory/")
    rows = {folder: read_metrics(folder / "metrics.jsonl") for folder in (whole, part)}

    def plain(folder):
        return [{k: v for k, v in row.items() if not k.startswith(drop)} for row in rows[folder]]

    assert plain(whole) == plain(part)
    if name == "relift":
        assert any(row["demonstrations/waiting"] for row in rows[whole])
        assert sum("clone/total" in row for row in rows[whole]) >= 1
    if name == "scope":
        check_rounds(rows[whole], prompts=8, rounds=3)


def check_rounds(rows: list[dict[str, float]], prompts: int, rounds: int) -> None:
    """The figures of SCOPE's steps with dynamic sampling agree with each other."""
    for row in rows:
        found = {k.removeprefix("resample/"): v for k, v in row.items() if "resample/" in k}
        left, after = found["zero_groups_left"], found["zero_groups_after_rescue"]
        assert row["rollout/batches"] == rounds or left == 0
        assert row["advantage/zero_group_share_after"] == left / prompts
        # Of the groups that told nothing, those that are not left made room for a fresh prompt.
        assert found["prompts"] == prompts + after - left
        before = row["advantage/zero_group_share"] * found["prompts"]
        assert after <= found["zero_groups_before_rescue"] == pytest.approx(before)
    consumed = np.diff([0, *(row["data/prompts"] for row in rows)])
    assert consumed.tolist() == [row["resample/prompts"] for row in rows]
    # Else nothing was seen: rounds that were needed, and groups that a rescue kept.
    assert max(row["rollout/batches"] for row in rows) > 1
    kept = [row["resample/zero_groups_before_rescue"] for row in rows]
    assert sum(kept) > sum(row["resample/zero_groups_after_rescue"] for row in rows)


# ---- what cannot go together

NO_TAIL = {"method.tail": "none", "method.accept": "unverified"}


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        # A failed demonstration would be corrected, steps are scored before the rescue, prompts are
        # cloned that have not failed: a method does not know another's settings.
        ("scope", {"method.per_group": 1}, "config.method.per_group: unknown key"),
        ("scope", {"method.process_weight": 1.0}, "config.method.process_weight: unknown key"),
        ("scope", {**NO_TAIL, "method.resample": 1}, "unverified rows have none: set it to 0"),
        ("luffy", {"method.resample": 1}, "config.method.resample: unknown key"),
        ("relift", {"method.resample": 1}, "config.method.resample: unknown key"),
        ("luffy", {"method.buffer": 4}, "config.method.buffer: unknown key"),
        ("relift", {"method.per_group": 1}, "config.method.per_group: unknown key"),
        ("luffy", {"method.per_group": 8}, "leaves no rollout in a group of 8"),
        (
            "luffy",
            {"demonstrations.verified": True, "teacher.kind": "self"},
            "teacher.kind 'self' gives none",
        ),
        ("pure", {"localiser.kind": "monte_carlo"}, "needs scores of steps"),
        ("vppo", {"loss.ratio": "sequence"}, "averages away the token advantages"),
        ("vppo", {"advantage.std": True}, "set advantage.std to False"),
        (
            "grpo",
            {"method.name": "dense"},
            "config.method.name = 'dense' is unknown; one of grpo, scope, luffy, relift, process,"
            " pure, vppo",
        ),
        ("grpo", {"loss.tis_cap": 2.0}, "use 'recompute'"),
        ("grpo", {"training.mini_batches": 3}, "does not divide rollout.prompts = 16"),
        (
            "grpo",
            {"training.mini_batches": 4, "training.micro_batches": 64},
            "does not divide prompts x group = 32 of a mini-batch",
        ),
        ("grpo", {"training.epochs": 0}, "training.epochs = 0 must be at least 1"),
        ("scope", {**NO_TAIL, "loss.teacher_term": "shaped"}, "unverified rows have none"),
        ("scope", {**NO_TAIL, "loss.teacher_steps": 2}, "takes the teacher's term away"),
        ("scope", {"localiser.noise": 2.0}, "must be a probability"),
        ("vppo", {"method.alpha": 2.0}, "must lie in [0, 1]"),
        ("vppo", {"localiser.kind": "monte_carlo"}, "needs scores of steps"),
        ("vppo", {"advantage.overlong_tokens": 4}, "takes no punished rewards"),
        ("grpo", {"advantage.overlong_tokens": 65}, "is more than rollout.new_tokens = 64"),
        ("vppo", {"localiser.threshold": 5.0}, "threshold must lie in (0, 1)"),
        ("process", {"localiser.noise": 7.0}, "must be a probability"),
        ("process", {"localiser.kind": "orcale"}, "localiser.kind = 'orcale' is unknown"),
        ("scope", {**NO_TAIL, "loss.teacher_term": "mask"}, "learn by the teacher's term alone"),
        ("scope", {**NO_TAIL, "loss.teacher_weight": 0.0}, "learn by the teacher's term alone"),
        ("scope", {**NO_TAIL, "method.tails": 3}, "method.tail 'none' writes none"),
        ("luffy", {}, "would clone demonstrations that the verifier refuses"),
        ("grpo", {"rollout.group": 1}, "must be at least 2"),
        ("grpo", {"rollout.temperature": 0.0}, "makes the rows of a group alike"),
        ("grpo", {"checkpoint.every": 0}, "checkpoint.every = 0 must be at least 1"),
        ("grpo", {"samples.every": 0}, "samples.every = 0 must be at least 1"),
        ("luffy", {"method.per_group": -1}, "must be at least 1"),
        ("grpo", {"method.resample": -1}, "must be 0 or more"),
        ("scope", {"method.resample": -1}, "must be 0 or more"),
    ],
)
def test_what_cannot_go_together_is_refused_with_a_reason(
    method: str, changes: dict[str, Any], reason: str
):
    config = default_config(method)
    with config.unlocked():
        for key, value in changes.items():
            section, name = key.split(".")
            config[section][name] = value
    with pytest.raises(ValueError) as error:
        train_config(config)
    assert reason in str(error.value) and "\n" not in str(error.value)
