"""`task.options`: values from a config or the command line as the fields of a class."""

import dataclasses
import math
import types
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, Union, cast, get_args, get_origin

Made = TypeVar("Made")


def made_of(kind: type[Made], options: Mapping[str, Any], known: Collection[str]) -> Made:
    """`kind` with these options, which may be those that are `known`. A list, or one value alone,
    stands for a tuple. Raises ValueError, one line with the option's whole name, for an unknown one
    and for a value of another type, and what `kind` refuses."""
    for key in options:
        if key not in known:
            words = ", ".join(sorted(known)) or "none"
            raise ValueError(f"config.task.options.{key}: unknown; known: {words}")
    fields = dataclasses.fields(cast(Any, kind)) if options else ()
    hints = {field.name: field.type for field in fields}
    return kind(**{key: _value(hints[key], value, key) for key, value in options.items()})


def _value(hint: Any, value: Any, key: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        parts = tuple(value) if isinstance(value, list | tuple) else (value,)
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(parts)
        if len(kinds) != len(parts):
            raise _wrong(key, value, f"{len(kinds)} values")
        return tuple(_value(one, part, key) for one, part in zip(kinds, parts, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(hint, type):  # a class of its own says what it takes
        return value
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _wrong(key, value, f"a value of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(key, value, "a finite number")
    return value


def _wrong(key: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"config.task.options.{key} = {value!r:.60}: expected {wanted}")
