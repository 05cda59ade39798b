"""A teacher that is the data set's own solution."""

import dataclasses

from scope_jax.teachers.base import (
    Ask,
    Corrected,
    Job,
    TeacherSpec,
    WrittenStep,
    encode_known,
    write_steps,
)
from scope_jax.teachers.demonstrations import (
    DemonstrationJob,
    Demonstrations,
    Refused,
    write_solutions,
)
from scope_jax.teachers.replies import reference_steps, unix_newlines, without_thoughts


@dataclasses.dataclass(frozen=True)
class ReferenceTeacher:
    """The step of the reference solution that has the number of the wrong one, capped at the last
    that may be given: the step that ends the solution corrects a last step only.
    The solution is in the domain's own form (`Domain.reference_solution`): of GSM8K without its
    calculator notes and hashes. Steps that the policy already wrote, blanks aside, are passed over,
    and thoughts (`<think>...</think>`) are no steps."""

    spec: TeacherSpec = dataclasses.field(default_factory=lambda: TeacherSpec(kind="reference"))
    generator: None = None

    def correct(self, job: Job) -> Corrected:
        """A step of the reference solution for each row."""
        steps = [self._step(ask, job) for ask in job.asks]
        return write_steps(job, steps, self.spec, shows_answer=True)

    def demonstrate(self, job: DemonstrationJob) -> Demonstrations:
        """The reference solution of each problem."""
        solutions = [job.domain.reference_solution(problem) for problem in job.problems]
        return write_solutions(job, [text or Refused("no_solution") for text in solutions])

    def _step(self, ask: Ask, job: Job) -> WrittenStep | str:
        if not ask.problem.solution:
            return "no_solution"
        bare = without_thoughts(ask.problem.solution)
        if bare is None:
            return "thinking"
        problem = dataclasses.replace(ask.problem, solution=unix_newlines(bare))
        solution = job.domain.reference_solution(problem)
        if not solution:
            return "no_solution"
        steps = reference_steps(solution, job.domain.separator, job.domain.divider)
        covered = {_without_blanks(step) for step in ask.kept}
        final = len(steps) - 1
        most = final if ask.last else final - 1  # what may be given
        for number in range(max(min(len(ask.kept), most), 0), most + 1):
            if _without_blanks(steps[number]) not in covered:
                return encode_known(steps[number], number == final, ask, job)
        only_the_end = not ask.last and steps and _without_blanks(steps[final]) not in covered
        return "leak" if only_the_end else "no_step"


def _without_blanks(text: str) -> str:
    return "".join(text.split())
