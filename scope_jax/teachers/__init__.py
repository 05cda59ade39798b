"""Teachers: who writes the corrected step, or a whole demonstration.

In: rows cut before their first error (`Job`), or problems. Out: the rows with one TEACHER step each, or a
whole TEACHER solution; a reason for every row without one.
"""

from scope_jax.teachers.client import Endpoint, EndpointSpec
from scope_jax.teachers.demonstrations import Demonstrations, demonstrate, without
from scope_jax.teachers.endpoint import EndpointTeacher
from scope_jax.teachers.kinds import (
    ModelTeacher,
    ProgramTeacher,
    ReferenceTeacher,
    Teacher,
    TeacherSpec,
)

__all__ = [
    "Demonstrations",
    "Endpoint",
    "EndpointSpec",
    "EndpointTeacher",
    "ModelTeacher",
    "ProgramTeacher",
    "ReferenceTeacher",
    "Teacher",
    "TeacherSpec",
    "demonstrate",
    "without",
]
