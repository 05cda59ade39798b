"""A teacher behind an OpenAI-compatible address: vLLM, SGLang, `transformers serve`, or a hosted
service; `scope_jax.teachers.client` asks it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scope_jax.tasks import Domain, Problem
from scope_jax.teachers.client import Endpoint
from scope_jax.teachers.kinds import (
    Ask,
    Corrected,
    Job,
    TeacherSpec,
    encode_reply,
    prompt_text,
    write_steps,
)
from scope_jax.teachers.replies import read_reply


@dataclasses.dataclass(frozen=True, eq=False)
class EndpointTeacher:
    """The teacher behind an `Endpoint`. Its log-probs are not known (NaN)."""

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
        replies, counters = self.endpoint.ask([self.body(ask, job) for ask in job.asks])
        steps = [
            (
                reply
                if isinstance(reply, str)
                else encode_reply(read_reply(reply.text, reply.complete, ask.last, job.domain), job)
            )
            for ask, reply in zip(job.asks, replies, strict=True)
        ]
        return write_steps(job, steps, metrics=counters, shows_answer=self.spec.shows_answer)

    def body(self, ask: Ask, job: Job) -> dict[str, Any]:
        """The request for one row: also what its answer is kept under. A seed is sent where
        sampling needs one."""
        settings = self.endpoint.spec
        body: dict[str, Any] = {
            "model": settings.model,
            "temperature": job.temperature,
            "max_tokens": settings.max_tokens or job.step_tokens,
        }
        if settings.api == "chat":
            body["messages"] = [{"role": "user", "content": prompt_text(ask, self.spec)}]
        else:
            body |= {"prompt": ask.problem.prompt + "".join(ask.kept)}
            if not job.domain.boundary:
                body["stop"] = [job.domain.separator]
        if job.temperature > 0:
            body["seed"] = int(
                np.random.SeedSequence([job.seed, ask.row]).generate_state(1)[0] >> 1
            )
        return body | settings.extra_fields()

    def solve(
        self,
        problems: Sequence[Problem],
        domain: Domain,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> tuple[list[str | tuple[str, str]], dict[str, float]]:
        """(a whole solution per problem, or ("", reason), counters)."""
        bodies: list[dict[str, Any]] = []
        for number, problem in enumerate(problems):
            body: dict[str, Any] = {
                "model": self.endpoint.spec.model,
                "temperature": temperature,
                "max_tokens": max_tokens,
            }
            shown = domain.policy_prompt(problem)
            if self.endpoint.spec.api == "chat":
                system = [{"role": "system", "content": domain.system}] if domain.system else []
                body["messages"] = [*system, {"role": "user", "content": shown}]
            else:
                body["prompt"] = shown
            if temperature > 0:
                body["seed"] = int(
                    np.random.SeedSequence([seed, 5, number]).generate_state(1)[0] >> 1
                )
            bodies.append(body | self.endpoint.spec.extra_fields())
        replies, counters = self.endpoint.ask(bodies)
        found: list[str | tuple[str, str]] = [
            (
                ("", reply)
                if isinstance(reply, str)
                else reply.text
                if reply.complete
                else ("", "too_long")
            )
            for reply in replies
        ]
        return found, counters
