"""Correction, the method itself: find the first wrong step, have the teacher correct it, let the policy go on."""

from scope_jax.correction.demonstrations import Demonstrations, demonstrate, without
from scope_jax.correction.endpoint import Endpoint, EndpointSpec, EndpointTeacher
from scope_jax.correction.first_error import first_error, prefix_quality
from scope_jax.correction.locate import Located, in_steps, locate
from scope_jax.correction.prm import ProcessRewardModel
from scope_jax.correction.rescue import CorrectionSpec, Rescue, rescue
from scope_jax.correction.select import SelectSpec, select
from scope_jax.correction.splice import cut, place_rows, splice, take_rows
from scope_jax.correction.teachers import ModelTeacher, ProgramTeacher, ReferenceTeacher, Teacher, TeacherSpec, Writer

__all__ = [
    "CorrectionSpec",
    "Demonstrations",
    "Endpoint",
    "EndpointSpec",
    "EndpointTeacher",
    "Located",
    "ModelTeacher",
    "ProcessRewardModel",
    "ProgramTeacher",
    "ReferenceTeacher",
    "Rescue",
    "SelectSpec",
    "Teacher",
    "TeacherSpec",
    "Writer",
    "cut",
    "demonstrate",
    "first_error",
    "in_steps",
    "locate",
    "place_rows",
    "prefix_quality",
    "rescue",
    "select",
    "splice",
    "take_rows",
    "without",
]
