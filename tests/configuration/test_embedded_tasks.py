"""The configs of the embedded tasks fit their domains: room for problems and solutions, weights
where the commands of the checkpoints put them."""

import pytest

from scope_jax.configs import checkpoints, run, tasks
from scope_jax.configuration import train_config
from scope_jax.configuration.supervision import supervise_config
from scope_jax.data.load import domain_of
from scope_jax.tasks import GeneratedDomain
from scope_jax.tasks.arithmetic import TERMS, applies

EMBEDDED = ("arithmetic", "arithmetic_long", "countdown")


@pytest.mark.parametrize("task", [*EMBEDDED, "countdown_six"])
def test_problems_and_right_solutions_have_room(task):
    config = train_config(run.get_config(f"scope,{task}"))
    domain = domain_of(config.task)
    assert isinstance(domain, GeneratedDomain)
    longest = max(config.task.options["lengths"])
    further = max(config.task.options["ood_lengths"])
    assert further > longest
    assert config.rollout.prompt_tokens >= domain.prompt_length(longest)
    assert config.rollout.new_tokens >= domain.completion_length(longest)
    assert config.evaluation.prompt_tokens >= domain.prompt_length(further)
    assert config.evaluation.new_tokens >= domain.completion_length(further)
    for index in range(20):
        problem = domain.problem(0, "test", index, longest)
        assert len(problem.prompt) <= config.rollout.prompt_tokens


@pytest.mark.parametrize("task", EMBEDDED)
def test_weights_lie_where_one_folder_of_the_task_has_them(task):
    folder = tasks.CACHE if task == "arithmetic" else f"{tasks.CACHE}/{task}"
    config = train_config(run.get_config(f"scope,{task}"))
    models = config.models
    assert (models.policy, models.teacher, models.prm) == (
        f"{folder}/base",
        f"{folder}/teacher",
        f"{folder}/prm",
    )
    teacher = supervise_config(checkpoints.get_config(f"teacher,{task}"))
    prm = supervise_config(checkpoints.get_config(f"prm,{task}"))
    assert teacher.start == f"{folder}/base" and prm.start == f"{folder}/teacher"
    assert prm.target.rollouts.policy == f"{folder}/base"


def test_who_reads_and_writes_the_marks_of_long_signed_terms():
    config = train_config(run.get_config("grpo,arithmetic_long"))
    assert domain_of(config.task).marks
    made = {
        name: supervise_config(checkpoints.get_config(f"{name},arithmetic_long"))
        for name in ("base", "teacher", "prm")
    }
    domains = {name: settings.generated_domain() for name, settings in made.items()}
    assert all(domain.marks for domain in domains.values())
    assert 0 < domains["base"].marked < 0.2 and domains["teacher"].marked == 1.0
    # The base slips in most borrows, in whatever line, and these come late; teacher and labels know
    # the arithmetic.
    base = domains["base"]
    borrows = [(t, term) for t in range(10) for term in TERMS if applies("borrow", t, term, 10)]
    struck = [
        fact for fact in borrows if base.believed(*fact, 11) == base.believed(*fact, 1) != (0, 0)
    ]
    assert (len(struck), len(borrows)) == (29, 45)  # as docs/embedded_task.md says
    assert {base.believed(*fact, 1) for fact in struck} == {(1, 0.97)}
    assert made["base"].target.style == "additions_first"
    assert domains["teacher"].misconception == domains["prm"].misconception == 0
    assert set(config.task.options["lengths"]) == set(made["prm"].target.rollouts.lengths)
