"""A teacher that is the domain's own program."""

import dataclasses

from scope_jax.devices.mesh import to_host
from scope_jax.streams import Host, host_rng
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
from scope_jax.teachers.replies import unix_newlines


@dataclasses.dataclass(frozen=True)
class ProgramTeacher:
    """`Domain.next_step` and `Domain.demonstration` in the style of `spec`."""

    spec: TeacherSpec = dataclasses.field(default_factory=lambda: TeacherSpec(kind="program"))
    generator: None = None

    def correct(self, job: Job) -> Corrected:
        """The next step of each row by the program."""
        return write_steps(job, [self._step(ask, job) for ask in job.asks], self.spec)

    def demonstrate(self, job: DemonstrationJob) -> Demonstrations:
        """A solution of each problem by the program."""
        solutions: list[str | Refused] = []
        # Rows without a problem fill the batch.
        for problem, row in zip(job.problems, to_host(job.rows.row_id_B).tolist(), strict=False):
            rng = host_rng(job.seed, Host.PROGRAM_SOLUTION, row)
            text = job.domain.demonstration(problem, rng, self.spec.style)
            solutions.append(text or Refused("no_solution"))
        return write_solutions(job, solutions)

    def _step(self, ask: Ask, job: Job) -> WrittenStep | str:
        rng = host_rng(job.seed, Host.PROGRAM_STEP, ask.row)
        step = job.domain.next_step(ask.problem, ask.kept, rng, self.spec.style, ask.wrong)
        if step is None:
            return "no_step"
        step = unix_newlines(step)
        return encode_known(step, not step.endswith(job.domain.separator), ask, job)
