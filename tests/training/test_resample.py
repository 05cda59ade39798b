"""Dynamic sampling after the rescue, by hand: which groups are replaced, which stay, what it cost.

The policy writes `+198` behind every prompt, the teacher the line `+7` in its place, and the
verdicts follow a script: each problem has a list of them, for its rows in turn and then for the
rows that were rescued.
"""

import contextlib
import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from support.hand_made import DOMAIN, PLAIN, STEP, TOKENIZER, bigram, text

from scope_jax import streams, tasks
from scope_jax.configuration import Scope, default_config, train_config
from scope_jax.correction import Groups, LocaliserSpec, Rescue, make_localiser, rescue
from scope_jax.data import Problems, batch_indices
from scope_jax.data.load import Task
from scope_jax.devices.mesh import make_mesh
from scope_jax.learning import group_advantages
from scope_jax.rollout import from_prompts
from scope_jax.run import PhaseTimer
from scope_jax.teachers import ModelTeacher
from scope_jax.training.actors import Actors
from scope_jax.training.resample import Round, joined_metrics, replace_silent
from scope_jax.training.rollouts import Progress, Step, collect_rollouts, scene_of
from scope_jax.training.samples import Samples
from scope_jax.types import Rollout

WRITER = bigram("=+198#\n+")  # one line and the end, behind a prompt and behind a teacher's line
TEACHER = bigram("=+7\n")
SOURCE = [DOMAIN.make_problem(["+3", f"-{n}"], id=f"p{n}") for n in range(1, 9)]  # never 198
ORDER = [SOURCE[n] for n in batch_indices(0, 0, 8, 8)]  # as a run with seed 0 draws them
ALL_RIGHT, ALL_WRONG, BOTH = [1, 1], [0, 0], [1, 0]
NAMES = ("problems", "reward_B", "right_B", "include_B", "own_B")
NOBODY = from_prompts([[2]] * 2, 2, 3)  # four rows of a prompt alone
RESCUED, LOST = [*ALL_WRONG, 1], [*ALL_WRONG, 0]
# Batches of four prompts of two rows, each prompt's verdicts; what is drawn in later rounds.
FIRST = [BOTH, ALL_RIGHT, RESCUED, LOST]


class Scripted(tasks.Arithmetic):
    """Signed terms whose verifier reads its verdicts off a list for each problem."""

    def verify(self, problems: Any, texts: Any) -> list[bool]:
        return [bool(self.script[problem.id].pop(0)) for problem in problems]


@dataclasses.dataclass
class Played:
    """A step up to its final groups."""

    before: Groups
    final: Groups
    metrics: dict[str, float]
    gallery: list[dict[str, Any]]
    progress: Progress
    safe_points: int

    @property
    def drawn(self) -> list[int]:
        """The prompt of each final group, by the order in which they were drawn."""
        return [ORDER.index(problem) for problem in self.final.problems[:: self.final.group]]


@dataclasses.dataclass(frozen=True)
class Seen(ModelTeacher):
    """The teacher, and the seeds that it was given."""

    seeds: list[int] = dataclasses.field(default_factory=list)

    def correct(self, job: Any) -> Any:
        self.seeds.append(job.seed)
        return ModelTeacher(self.generator, self.spec).correct(job)


def play(
    script: list[list[int]],
    resample: int,
    mesh: Any = None,
    teacher: ModelTeacher = ModelTeacher(TEACHER, STEP),
    **settings: Any,
) -> Played:
    """`script`: verdicts of the prompts in the order in which they are drawn."""
    config = default_config("scope")
    config.rollout.prompts, config.rollout.group = 4, 2
    config.rollout.prompt_tokens, config.rollout.new_tokens = 5, 16
    config.method.select.good_steps = 0  # the first line is wrong already
    config.localiser.kind = "oracle"
    config.method.resample = resample
    config.update_from_flattened_dict(settings)
    typed = train_config(config)
    assert isinstance(typed.method, Scope)
    domain = Scripted(start="zero")
    domain.script = {p.id: list(v) for p, v in zip(ORDER, script, strict=False)}
    model = dataclasses.replace(PLAIN, end_ids=(0,))
    task = Task(domain, Problems.from_list(SOURCE), {})
    localiser = make_localiser(LocaliserSpec("oracle"), None)
    actors = Actors(model, {}, TOKENIZER, task, teacher, localiser)
    progress, seen = Progress(), []
    step = Step(0, jax.random.key(5), 11, PhaseTimer(), Samples(due=True))
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        groups = collect_rollouts(actors, WRITER, typed, progress, step)
        scene = scene_of(actors, WRITER, typed, step)
        rescued = rescue(groups, scene, typed.method)
        around = (actors, WRITER, typed, progress, step)
        found = replace_silent(*around, groups, rescued, lambda: seen.append(1))
    assert not any(domain.script[ORDER[n].id] for n in range(progress.position))  # all were used
    metrics = groups.metrics | found.metrics
    return Played(groups, found.groups, metrics, found.gallery, progress, len(seen))


def check_rows(found: Played) -> None:
    """Each row holds the prompt of its problem; the rows of an advantage are those that differ."""
    rows: Rollout = jax.device_get(found.final.rollout)
    for b, problem in enumerate(found.final.problems):
        start = int(rows.prompt_length_B[b])
        assert TOKENIZER.decode(rows.tokens_BT[b, :start]) == problem.prompt
        assert text(rows, b) in ("+198#", "+7\n+198#")
    assert found.final.own_B.all() and found.final.include_B.all()


@pytest.mark.parametrize(
    "mesh", [None, (4, 1, 1), pytest.param((1, 2, 1), marks=pytest.mark.long)], ids=str
)
def test_groups_that_tell_nothing_after_the_rescue_are_replaced(mesh: Any):
    """Prompts 1 and 3 tell nothing after the rescue; of 4 and 5 in their places, 4 failed
    altogether and is rescued, 5 is all right; 6, in the place of 5, has two rewards."""
    where = None if mesh is None else make_mesh(*mesh, devices=jax.devices()[: int(np.prod(mesh))])
    found = play([*FIRST, RESCUED, ALL_RIGHT, BOTH], 3, where)
    assert found.drawn == [0, 4, 2, 6] and found.progress.position == 7
    assert found.safe_points == 2  # the third round was not needed
    assert found.final.reward_B.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert found.final.right_B.tolist() == [True, False] * 4
    advantage = group_advantages(found.final.reward_B, 2, include_B=found.final.include_B)
    assert advantage.tolist() == [0.5, -0.5] * 4
    written = ["+198#", "+198#", "+7\n+198#", "+198#", "+7\n+198#", "+198#", "+198#", "+198#"]
    assert [text(found.final.rollout, b) for b in range(8)] == written
    # Row ids are those of the batches: 0 to 7, 8 to 15, 16 to 23, at the places.
    assert found.final.rollout.row_id_B.tolist() == [0, 1, 10, 11, 4, 5, 22, 23]
    check_rows(found)
    wanted = {
        "resample/prompts": 7,
        "resample/zero_groups_before_rescue": 5,  # prompts 1 to 5
        "resample/zero_groups_after_rescue": 3,  # 1, 3 and 5
        "resample/zero_groups_left": 0,
        "advantage/zero_group_share": 5 / 7,
        "rollout/batches": 3,
        "cost/rollout_tokens": 7 * 2 * 4,  # without the end
        "reward/mean": (1 + 2 + 0 + 0 + 0 + 2 + 1) / 14,
        # One failure of each group that failed altogether is chosen; a line and a tail for each.
        "scope/failed_share": 8 / 14,
        "scope/located_share": 1,
        "scope/first_error_position": 0,
        "scope/selected": 3,
        "scope/corrected": 3,
        "scope/accepted": 2,
        "scope/accepted_share": 2 / 3,
        "cost/teacher_tokens": 3 * 3,
        "cost/tail_tokens": 3 * 5,
        "scope/teacher_token_share": 2 * 3 / (8 * 5 + 2 * 3),
    }
    assert {name: found.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert [item["verdict_after"] for item in found.gallery] == [True, False, True]


@pytest.mark.parametrize(
    ("resample", "later", "kept", "left", "batches"),
    [
        (1, [LOST, ALL_RIGHT], [0, 4, 2, 5], 2, 2),  # the last that were drawn stay
        (1, [ALL_RIGHT, BOTH], [0, 4, 2, 5], 1, 2),
        (2, [LOST, BOTH, ALL_RIGHT], [0, 6, 2, 5], 1, 3),
        (2, [RESCUED, BOTH], [0, 4, 2, 5], 0, 2),
    ],
)
def test_what_tells_nothing_in_the_end_stays_and_is_counted(
    resample: int, later: list[list[int]], kept: list[int], left: int, batches: int
):
    found = play([*FIRST, *later], resample)
    assert (found.drawn, found.metrics["rollout/batches"]) == (kept, batches)
    assert found.metrics["resample/zero_groups_left"] == left
    assert found.metrics["resample/prompts"] == found.progress.position == 4 + len(later)
    same = np.ptp(found.final.reward_B.reshape(4, 2), axis=1) == 0
    assert same.sum() == left
    check_rows(found)


def test_nothing_more_is_drawn_where_every_group_tells():
    found = play([BOTH, RESCUED, RESCUED, BOTH], 2)
    assert found.drawn == [0, 1, 2, 3] and found.progress.position == 4
    assert found.metrics["rollout/batches"] == 1 and found.safe_points == 0
    assert found.metrics["resample/zero_groups_before_rescue"] == 2
    assert found.metrics["resample/zero_groups_after_rescue"] == 0


def test_appended_rows_go_with_their_group():
    """Groups of two and one place more, which holds the prompt alone where nothing was rescued."""
    found = play([*FIRST, RESCUED, BOTH], 1, **{"method.place": "append"})
    assert found.drawn == [0, 4, 2, 5] and found.final.group == 3
    nan = np.nan
    wanted = [1, 0, nan, 0, 0, 1, 0, 0, 1, 1, 0, nan]
    np.testing.assert_array_equal(found.final.reward_B, wanted)
    assert found.final.include_B.tolist() == [not np.isnan(r) for r in wanted]
    rescued = [text(found.final.rollout, b) for b in (2, 5, 8, 11)]
    assert rescued == ["", "+7\n+198#", "+7\n+198#", ""]


def test_credit_at_the_divergence_goes_with_its_group():
    """Prompts are five tokens and the first line is wrong: a pair's credit begins at 5. The parent
    is the lower row of each rescued group; the other failure gives its place."""
    more = {"method.place": "pair", "method.credit": "divergence"}
    found = play([*FIRST, RESCUED, BOTH], 1, **more)
    assert found.drawn == [0, 4, 2, 5]
    assert found.final.reward_B.tolist() == [1, 0, 0, 1, 0, 1, 1, 0]
    assert found.final.credit_from_B is not None
    assert found.final.credit_from_B.tolist() == [0, 0, 5, 5, 5, 5, 0, 0]
    assert found.metrics["scope/paired"] == 2


def test_each_round_has_a_seed_of_its_own():
    teacher = Seen(TEACHER, STEP)
    play([*FIRST, LOST, RESCUED, LOST], 2, teacher=teacher)
    assert teacher.seeds == [11, streams.round_seed(11, 1), streams.round_seed(11, 2)]
    assert len(set(teacher.seeds)) == 3


def test_figures_of_several_rounds_are_those_of_all_their_rows():
    """Two rounds of two prompts of two rows, the second with one fresh prompt: shares and means
    are formed over the rows of both, counts are added up."""

    def a_round(fresh: list[bool], reward: list[float], errors: list[bool], **metrics: float):
        rewards = np.array(reward, np.float32)
        given = (SOURCE[:1] * 4, rewards, rewards == 1, ~np.isnan(rewards), np.ones(4, bool))
        groups = Groups(rollout=NOBODY, group=2, **dict(zip(NAMES, given, strict=True)), metrics={})
        located = SimpleNamespace(
            rows=SimpleNamespace(rows_R=np.flatnonzero(groups.failed_B)),
            has_error_R=np.array(errors),
        )
        named = {f"scope/{name}": float(value) for name, value in metrics.items()}
        return Round(np.array(fresh), groups, Rescue(groups, named, [], located))

    one = a_round(
        *([True, True], [1, 0, 0, 0], [True, True, False]),
        **{"selected": 2, "accepted": 2, "teacher_accepted": 1, "candidates_accepted": 3},
        **{"first_error_position": 0.25, "step_logp_taken": -2.0, "step_logp_accepted": -1.0},
    )
    # The policy repaired three rows by itself, and no step of a teacher was taken.
    two = a_round(
        *([True, False], [0, 0, np.nan, np.nan], [True, False]),
        **{"selected": 4, "accepted": 3, "teacher_accepted": 0, "candidates_accepted": 0},
        **{"first_error_position": 0.75},
    )
    found = joined_metrics([one, two], NOBODY)
    wanted = {
        "scope/selected": 6,
        "scope/accepted": 5,
        "scope/accepted_share": 5 / 6,
        "scope/failed_share": 5 / 6,
        "scope/located_share": 3 / 5,
        "scope/first_error_position": (2 * 0.25 + 0.75) / 3,
        "scope/step_logp_taken": -2.0,
        "scope/step_logp_accepted": -1.0,
        "scope/teacher_token_share": 0,
        "resample/prompts": 3,
        "resample/zero_groups_before_rescue": 2,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
