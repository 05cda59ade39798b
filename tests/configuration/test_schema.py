"""From a dictionary or a command line to a tree of dataclasses, on a tree small enough to see."""

import dataclasses
from dataclasses import field
from typing import Any, ClassVar, Literal

import pytest

from scope_jax.configuration.schema import from_dict, leaves, set_value, to_config_dict


@dataclasses.dataclass(frozen=True)
class Square:
    name: Literal["square"] = "square"
    side: float = 1.0


@dataclasses.dataclass(frozen=True)
class Circle:
    name: Literal["circle"] = "circle"
    radius: float | None = None


@dataclasses.dataclass(frozen=True)
class Size:
    width: int = 2
    lengths: tuple[int, ...] = (2, 3)
    band: tuple[float, float] = (0.1, 0.9)

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError(f"config.size.width = {self.width} must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Tree:
    OLD_NAMES: ClassVar = {"breadth": "size.width"}

    seed: int = 0
    title: str | None = None
    quick: bool = False
    colour: Literal["red", "blue"] = "red"
    shape: Square | Circle = Square()
    size: Size = Size()
    options: dict[str, Any] = field(default_factory=dict)
    area: float | None = field(default=None, metadata={"derived": True})


def changed(**changes: Any) -> dict[str, Any]:
    return to_config_dict(Tree()).to_dict() | changes


def test_a_tree_and_back():
    config = to_config_dict(Tree())
    assert dict(leaves(config.to_dict())) == {
        "seed": 0,
        "title": None,
        "quick": False,
        "colour": "red",
        "shape.name": "square",
        "shape.side": 1.0,
        "size.width": 2,
        "size.lengths": (2, 3),
        "size.band": (0.1, 0.9),
        "options": {},
    }
    assert from_dict(Tree, config.to_dict()) == Tree()


def test_values_of_a_dictionary_get_the_types_of_their_fields():
    size = {"width": 3, "lengths": [4], "band": [0, 1]}
    got = from_dict(Tree, changed(size=size, shape={"name": "circle", "radius": 2}))
    assert got.shape == Circle(radius=2.0) and isinstance(got.shape.radius, float)
    assert got.size == Size(3, (4,), (0.0, 1.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(sed=1), "config.sed: unknown key; the nearest known one is config.seed"),
        (
            changed(size={"widht": 2}),
            "config.size.widht: unknown key; the nearest known one is config.size.width",
        ),
        (
            changed(shape={"name": "circle", "side": 1.0}),
            "config.shape.side: unknown key; the nearest known one is config.shape.name",
        ),
        (changed(area=1.0), "config.area: unknown key"),
        ({"seed": 1}, "config.title: missing; start from default_config()"),
        (changed(size={"width": 2}), "config.size.lengths: missing"),
        (changed(seed="1"), "config.seed = '1': expected a value of type int"),
        (changed(seed=True), "config.seed = True: expected a value of type int"),
        (changed(seed=1.5), "config.seed = 1.5: expected a value of type int"),
        (changed(seed=None), "config.seed = None: expected a value of type int"),
        (changed(quick=1), "config.quick = 1: expected a value of type bool"),
        (changed(title=3), "config.title = 3: expected a value of type str"),
        (changed(colour="green"), "config.colour = 'green' is unknown; one of red, blue"),
        (changed(size=3), "config.size = 3: expected a section"),
        (changed(shape="circle"), "config.shape = 'circle': expected the settings of a variant"),
        (
            changed(shape={"side": 1.0}),
            "config.shape.name = None is unknown; one of square, circle",
        ),
        (
            changed(shape={"name": "cube", "side": 1.0}),
            "config.shape.name = 'cube' is unknown; one of square, circle",
        ),
        (changed(options=3), "config.options = 3: expected a dictionary"),
        (
            changed(size={"width": 2, "lengths": 3, "band": (0.0, 1.0)}),
            "config.size.lengths = 3: expected a tuple",
        ),
        (
            changed(size={"width": 2, "lengths": ("a",), "band": (0.0, 1.0)}),
            "config.size.lengths = 'a': expected a value of type int",
        ),
        (
            changed(size={"width": 2, "lengths": (), "band": (0.5,)}),
            "config.size.band = (0.5,): expected 2 values",
        ),
        (
            changed(size={"width": -1, "lengths": (), "band": (0.0, 1.0)}),
            "config.size.width = -1 must be 0 or more",
        ),
    ],
)
def test_what_is_refused_is_named_in_one_line(values, message):
    with pytest.raises(ValueError) as error:
        from_dict(Tree, values)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "7", 7),
        ("seed", 7, 7),
        ("title", "None", None),
        ("title", "a, b", "a, b"),
        ("title", "7", "7"),
        ("quick", "true", True),
        ("quick", "False", False),
        ("colour", "blue", "blue"),
        ("shape.side", "2", 2.0),
        ("shape.side", "1e-3", 0.001),
        ("size.lengths", "4,5", (4, 5)),
        ("size.lengths", "4,", (4,)),
        ("size.lengths", "(4, 5)", (4, 5)),
        ("size.lengths", "[4]", (4,)),
        ("size.lengths", [4, 5], (4, 5)),
        ("size.band", "0,1", (0.0, 1.0)),
        ("options.a", "3", 3),
        ("options.a", "word", "word"),
        ("options.a", "true", True),
        ("options.a.b", "(3, 4)", (3, 4)),
    ],
)
def test_a_text_stands_for_a_value_of_the_settings_type(name, text, value):
    config = to_config_dict(Tree())
    set_value(Tree, config, name, text)
    got = dict(leaves(config))[name]
    assert got == value and type(got) is type(value)
    assert set(dict(leaves(config))) - {name} <= set(dict(leaves(to_config_dict(Tree()))))


def test_none_and_back():
    config = to_config_dict(Tree(shape=Circle(radius=2.0)))
    for text, value in (("None", None), ("3", 3.0), ("None", None), ("0.5", 0.5)):
        set_value(Tree, config, "shape.radius", text)
        assert config.shape.radius == value
        assert from_dict(Tree, config.to_dict()).shape == Circle(radius=value)


def test_a_whole_section_is_set():
    config = to_config_dict(Tree())
    set_value(Tree, config, "options", {"a": {"b": 1}})
    set_value(Tree, config, "options.a.c", "2")
    set_value(Tree, config, "size", {"width": 5, "lengths": [1], "band": [0.0, 1.0]})
    got = from_dict(Tree, config.to_dict())
    assert got.options == {"a": {"b": 1, "c": 2}} and got.size == Size(5, (1,), (0.0, 1.0))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sed", "1", "config.sed: unknown key; the nearest known one is config.seed"),
        (
            "size.widht",
            "1",
            "config.size.widht: unknown key; the nearest known one is config.size.width",
        ),
        ("sizes.width", "1", "config.sizes.width: unknown key"),
        (
            "shape.radius",
            "1",
            "config.shape.radius: unknown key; the nearest known one is config.shape.side",
        ),
        ("seed.x", "1", "config.seed.x: unknown key; the nearest known one is config.seed"),
        ("breadth", "3", "config.breadth: renamed; it is now config.size.width"),
        ("area", "1", "config.area: unknown key"),
        ("seed", "x", "config.seed = 'x': expected a value of type int"),
        ("seed", "None", "config.seed = 'None': expected a value of type int"),
        ("quick", "maybe", "config.quick = 'maybe': expected true or false"),
        ("colour", "green", "config.colour = 'green' is unknown; one of red, blue"),
        ("shape.name", "circle", "config.shape.name = 'circle': this config is one of 'square'"),
        ("size.lengths", "a,b", "config.size.lengths = 'a': expected a value of type int"),
        ("size.band", "1", "config.size.band = (1.0,): expected 2 values"),
    ],
)
def test_what_a_command_line_may_not_say(name, text, message):
    config = to_config_dict(Tree())
    with pytest.raises(ValueError) as error:
        set_value(Tree, config, name, text)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert config.to_dict() == to_config_dict(Tree()).to_dict()
