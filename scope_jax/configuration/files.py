"""Config files: those that the package ships, and those of a user."""

import importlib.util
import sys
import traceback
from importlib import resources
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict


def read_config(name: str, shipped: str) -> ConfigDict:
    """What `get_config` of a config file returns. `name`: FILE.py, or FILE.py:WORDS for a file
    whose `get_config` takes words. A file that is not there is looked for among the shipped ones
    (`configs/`), and words without a file are those of the shipped file `shipped`.

    Raises FileNotFoundError, and ValueError where the file is no config or an error in it is one of
    a setting.
    """
    path, _, words = name.partition(":")
    if not path.endswith(".py"):
        path, words = shipped, name
    module = load_file(path)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path}: no function get_config()")
    try:
        config = module.get_config(words) if words else module.get_config()
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config() must return a ConfigDict, not {type(config).__name__}"
        )
    return config


def load_file(path: str | Path) -> ModuleType:
    """A config or sweep file as a module: a path, or one that starts with `configs/` (or not) of
    the shipped ones. Raises FileNotFoundError, and ValueError where it is no Python file, or
    cannot be run."""
    shipped = resources.files("scope_jax.configs")
    inside = Path(str(shipped)) / str(path).removeprefix("configs/")
    place = Path(path) if Path(path).is_file() else inside
    if not place.is_file():
        raise FileNotFoundError(f"{path}: no such file, and none of the shipped configs")
    spec = importlib.util.spec_from_file_location(f"_file_{place.stem}", place)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Where a dataclass is defined, it is looked up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ValueError:
        raise
    except Exception as error:
        at = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)][-1]
        line = error.lineno if isinstance(error, SyntaxError) else at
        said = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {said}") from error
    return module
