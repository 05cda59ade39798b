"""Teachers: who writes the corrected step, or a whole demonstration.

In: rows cut before their first error (`Job`), or problems (`DemonstrationJob`). Out: the rows with
one TEACHER step each, or a whole TEACHER solution; a reason for every row without one.
"""

from scope_jax.teachers.base import Teacher, TeacherSpec
from scope_jax.teachers.client import Endpoint, EndpointSpec
from scope_jax.teachers.demonstrations import (
    DemonstrationJob,
    Demonstrations,
    DemonstrationSpec,
    without,
)
from scope_jax.teachers.endpoint import EndpointTeacher
from scope_jax.teachers.model import ModelTeacher
from scope_jax.teachers.program import ProgramTeacher
from scope_jax.teachers.reference import ReferenceTeacher

__all__ = [
    "DemonstrationJob",
    "DemonstrationSpec",
    "Demonstrations",
    "Endpoint",
    "EndpointSpec",
    "EndpointTeacher",
    "ModelTeacher",
    "ProgramTeacher",
    "ReferenceTeacher",
    "Teacher",
    "TeacherSpec",
    "without",
]
