"""A teacher that is a model behind an OpenAI-compatible address."""

import dataclasses
from typing import Any

from scope_jax.streams import Host, request_seed
from scope_jax.tasks import Domain, Problem
from scope_jax.teachers.base import (
    Ask,
    Corrected,
    Job,
    TeacherSpec,
    encode_reply,
    write_steps,
)
from scope_jax.teachers.client import Endpoint, Reply
from scope_jax.teachers.demonstrations import (
    DemonstrationJob,
    Demonstrations,
    Refused,
    write_solutions,
)
from scope_jax.teachers.prompts import prompt_text
from scope_jax.teachers.replies import most_characters, read_reply, without_thoughts
from scope_jax.text.steps import can_stop


@dataclasses.dataclass(frozen=True, eq=False)
class EndpointTeacher:
    """The model behind an `Endpoint`. Its log-probs are not known (NaN)."""

    endpoint: Endpoint
    spec: TeacherSpec = dataclasses.field(default_factory=lambda: TeacherSpec(kind="endpoint"))
    generator: None = None

    def __post_init__(self) -> None:
        if self.endpoint.spec.api == "completions" and self.spec.prompted:
            raise ValueError(
                "teacher.endpoint.api 'completions' continues the solution's text and takes no"
                " prompt; use api 'chat', or template 'continue' without teacher.prompt"
            )

    def correct(self, job: Job) -> Corrected:
        """One step for each row, asked for in one batch of requests."""
        replies, counters = self.endpoint.ask([self.body(ask, job) for ask in job.asks])
        most = most_characters(job.policy.tokenizer, self.spec.step_tokens)
        steps = [
            reply
            if isinstance(reply, str)
            else encode_reply(self._read(reply, ask, job, most), job, most=most, ask=ask)
            for ask, reply in zip(job.asks, replies, strict=True)
        ]
        return write_steps(
            job, steps, self.spec, metrics=counters, shows_answer=self.spec.shows_answer
        )

    def demonstrate(self, job: DemonstrationJob) -> Demonstrations:
        """A solution of each problem, asked for in one batch of requests."""
        bodies = [self._solve(n, problem, job) for n, problem in enumerate(job.problems)]
        replies, counters = self.endpoint.ask(bodies)
        solutions: list[str | Refused] = []
        for reply in replies:
            if isinstance(reply, str):
                solutions.append(Refused(reply))
            else:
                solutions.append(reply.text if reply.complete else Refused("too_long"))
        return write_solutions(job, solutions, counters)

    def body(self, ask: Ask, job: Job) -> dict[str, Any]:
        """The request for one row, which is also the key its answer is kept under."""
        settings = self.endpoint.spec
        body: dict[str, Any] = {
            "model": settings.model,
            "temperature": self.spec.temperature,
            "max_tokens": settings.max_tokens or self.spec.step_tokens,
        }
        if settings.api == "chat":
            body["messages"] = [{"role": "user", "content": prompt_text(ask, self.spec)}]
        else:
            body |= {"prompt": job.domain.policy_prompt(ask.problem) + "".join(ask.kept)}
            divider = job.domain.divider
            if can_stop(divider):
                body["stop"] = [divider if isinstance(divider, str) else "\n\n"]
        if self.spec.temperature > 0:
            body["seed"] = request_seed(job.seed, ask.row)
        return body | settings.extra_fields()

    def _read(self, reply: Reply, ask: Ask, job: Job, most: int) -> tuple[str, bool] | str:
        """The step in a reply. A text that goes on inside of open thoughts is part of them."""
        so_far = job.domain.policy_prompt(ask.problem) + "".join(ask.kept)
        inside = self.endpoint.spec.api == "completions" and without_thoughts(so_far) is None
        return read_reply(
            reply.text, reply.complete, ask.last, job.domain, most=most, continued=inside
        )

    def _solve(self, number: int, problem: Problem, job: DemonstrationJob) -> dict[str, Any]:
        """The request for a whole solution of one problem."""
        settings = self.endpoint.spec
        body: dict[str, Any] = {
            "model": settings.model,
            "temperature": job.temperature,
            "max_tokens": job.sampling.max_new_tokens,
            **self._shown(problem, job.domain),
        }
        if job.temperature > 0:
            body["seed"] = request_seed(job.seed, Host.ENDPOINT_SOLUTION, number)
        return body | settings.extra_fields()

    def _shown(self, problem: Problem, domain: Domain) -> dict[str, Any]:
        """The part of a request that holds the problem."""
        shown = domain.policy_prompt(problem)
        if self.endpoint.spec.api != "chat":
            return {"prompt": shown}
        system = [{"role": "system", "content": domain.system}] if domain.system else []
        return {"messages": [*system, {"role": "user", "content": shown}]}
