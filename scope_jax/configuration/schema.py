"""From a `ConfigDict` to a typed, frozen tree of dataclasses, and back.

A tree is a dataclass whose fields are numbers, words (`Literal`), tuples, free dictionaries,
`None` or further dataclasses. A field that is a union of dataclasses is one of several named
variants: each has a field `name: Literal[...]`, by which it is told apart. Fields marked `derived`
are no settings.
"""

import ast
import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from scope_jax.configuration.renamed import renamed_to

T = TypeVar("T")


def to_config_dict(tree: Any) -> ConfigDict:
    """The settings of a tree of dataclasses as a ConfigDict that can be changed."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in settings(type(value))}
        return value

    return ConfigDict(plain(tree))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """The dataclass `cls` with these values, and everything below it.

    Raises ValueError, one line with the dotted name, for an unknown key (and the nearest known
    one), a missing key, a value of another type or that is none of the words, and what the
    dataclasses themselves refuse.
    """
    hints = get_type_hints(cls)
    names = [field.name for field in settings(cls)]
    for key in values:
        if key not in names:
            raise ValueError(f"{where}.{key}: unknown key; {_nearest(key, names, where)}")
    for name in names:
        if name not in values:
            raise ValueError(f"{where}.{name}: missing; start from default_config()")
    made = {name: _value(hints[name], values[name], f"{where}.{name}") for name in names}
    try:
        return cls(**made)
    except ValueError as error:
        raise ValueError(_in_section(str(error), where)) from None


def _in_section(text: str, where: str) -> str:
    """What a dataclass refused, under the name of its section: "LossSpec.clip_low = 2.0" is
    "config.loss.clip_low = 2.0", and "loss.clip_low" too. What has its whole name keeps it."""
    if text.startswith(("config.", "config:")):
        return text
    text = re.sub(r"^[A-Z]\w*\.", f"{where}.", text)
    section = where.removeprefix("config.")
    return f"config.{text}" if text.startswith((f"{section}.", f"{section}:")) else text


def settings(cls: Any) -> list[dataclasses.Field]:
    """The fields of a dataclass that are settings."""
    return [field for field in dataclasses.fields(cls) if not field.metadata.get("derived")]


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything that is no section; an empty section is a value."""
    for key, value in values.items():
        if isinstance(value, ConfigDict | dict) and len(value):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def set_value(cls: type, config: ConfigDict, name: str, value: Any) -> None:
    """Set the setting with this dotted name in a ConfigDict that describes a `cls`.

    A text stands for a value of the setting's type, as on the command line ("None" where the
    setting may be None; "2,3" or "(2, 3)" for a tuple); other values are taken as they are. Below a
    free dictionary, such as `task.options`, any name may be set. Raises ValueError for an unknown
    name, with the nearest known one (or with today's, where it is in the class's `OLD_NAMES`), and
    for a text or value of another type.
    """
    *path, last = name.split(".")
    hint: Any = cls
    section: Any = config
    for part in path:
        hint = _hint_of(hint, part, section, name)
        if hint is Any and part not in section:
            with section.unlocked():
                section[part] = ConfigDict()
        section = section[part] if hint is not None else None
        if not isinstance(section, ConfigDict):
            raise _unknown(cls, config, name)
    parent, hint = hint, _hint_of(hint, last, section, name)
    if hint is None:
        raise _unknown(cls, config, name)
    if last == "name" and _is_union_of_dataclasses(parent) and value != section.name:
        _variant(parent, {"name": value}, f"config.{path[-1]}")  # refuses names of none
        raise ValueError(
            f"config.{name} = {value!r}: this config is one of {section.name!r}, with settings of"
            f" its own; start from a config of {value!r}"
        )
    try:
        value = _parsed(hint, value) if isinstance(value, str) else value
        value = _value(hint, value, f"config.{name}") if hint is not Any else value
    except ValueError as error:
        reason = str(error).removeprefix(f"config.{name}")
        raise ValueError(
            f"config.{name}{reason if reason.startswith(' ') else f': {reason}'}"
        ) from None
    if dataclasses.is_dataclass(value):
        value = to_config_dict(value)
    with section.unlocked(), section.ignore_type():
        section[last] = value


# ---- types


def _unknown(cls: type, config: ConfigDict, name: str) -> ValueError:
    now = renamed_to(name, getattr(cls, "OLD_NAMES", {}))
    if now is not None:
        return ValueError(f"config.{name}: renamed; it is now {now}")
    return ValueError(
        f"config.{name}: unknown key; {_nearest(name, [n for n, _ in leaves(config)])}"
    )


def _hint_of(hint: Any, part: str, section: Any, name: str) -> Any:
    """The type of the entry `part` of a section of type `hint`; Any below a free dictionary, None
    where there is no such entry."""
    if hint is Any or get_origin(hint) is dict:
        return Any
    if _is_union_of_dataclasses(hint):
        hint = _variant(hint, section, name)
    known = get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
    return known[part] if known and part in [f.name for f in settings(hint)] else None


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` says, or ValueError."""
    origin, kinds = get_origin(hint), get_args(hint)
    if _is_union_of_dataclasses(hint):
        if not isinstance(value, Mapping | ConfigDict):
            raise ValueError(f"{where} = {value!r}: expected the settings of a variant")
        return from_dict(_variant(hint, value, where), value, where)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        [hint] = [kind for kind in kinds if kind is not type(None)]
        return _value(hint, value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping | ConfigDict):
            raise ValueError(f"{where} = {value!r}: expected a section")
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in kinds:
            raise ValueError(f"{where} = {value!r} is unknown; one of {', '.join(map(str, kinds))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} = {value!r}: expected a tuple")
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{where} = {value!r}: expected {len(kinds)} values")
        return tuple(_value(kind, part, where) for kind, part in zip(kinds, value, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping | ConfigDict):
            raise ValueError(f"{where} = {value!r}: expected a dictionary")
        return value.to_dict() if isinstance(value, ConfigDict) else dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{where} = {value!r}: expected a value of type {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{where} = {value!r}: expected a finite number")
    return value


def _parsed(hint: Any, text: str) -> Any:
    """What a text of the command line stands for."""
    origin, kinds = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and type(None) in kinds:
        if text in ("None", "none"):
            return None
        [hint] = [kind for kind in kinds if kind is not type(None)]
        return _parsed(hint, text)
    if hint is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise ValueError(f" = {text!r}: expected true or false")
        return words[text.lower()]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f" = {text!r}: expected a value of type {hint.__name__}") from None
    if hint is str or origin is Literal:
        return text
    if origin is tuple and not text.startswith(("(", "[")):
        return tuple(_parsed(kinds[0], part.strip()) for part in text.split(",") if part.strip())
    if hint is Any and text in ("true", "false"):
        return text == "true"
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text  # a word
    return ConfigDict(value) if isinstance(value, dict) else value


def _is_union_of_dataclasses(hint: Any) -> bool:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()
    return len(kinds) > 1 and all(dataclasses.is_dataclass(kind) for kind in kinds)


def _variant(hint: Any, values: Any, where: str) -> type:
    """The dataclass of a union that `values["name"]` names."""
    known = {get_args(get_type_hints(kind)["name"])[0]: kind for kind in get_args(hint)}
    name = values.get("name")
    if name not in known:
        raise ValueError(f"{where}.name = {name!r} is unknown; one of {', '.join(known)}")
    return known[name]


def _nearest(key: str, names: list[str], where: str = "config") -> str:
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
    return f"the nearest known one is {where}.{near[0]}" if near else "none is known here"
