"""What all programs share on the command line: flags, a config with overrides, how they end."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from scope_jax import hub
from scope_jax.configuration.files import read_config
from scope_jax.configuration.schema import set_value
from scope_jax.devices import hosts, watch
from scope_jax.devices.mesh import use_cpu_cores
from scope_jax.models.config import read_config as read_model_config
from scope_jax.models.weights import count_weights
from scope_jax.run import Stopped, compile_cache, failures


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a program, `--name=value`; a dash in a name is as good as an underscore."""

    name: str
    help: str
    default: Any = None
    # str, int, float, bool, Path, list (words between commas), or tuple (given again for each).
    kind: type = str
    required: bool = False
    words: tuple[str, ...] = ()  # the values that it may have


CACHE_FLAG = Flag("compilation_cache", compile_cache.HELP)


def run(
    entry: Callable[[ConfigDict, str | None, Any], str],
    schema: type,
    *,
    file: str,
    workdir: bool = True,
    more: Sequence[Flag] = (),
    caches: bool = True,
) -> None:
    """A program that takes a config: parse `--config=NAME [--config.key=value ...] --workdir=DIR`,
    call `entry(config, workdir, flag values)` and print what it returns. An error ends the program
    as the table in `scope_jax.run.failures` says.

    `schema`: the dataclass that the config describes. `file`: the shipped config file that NAME is
    looked up in where it is no file itself (`read_config`). `workdir`: whether the flag must be
    given. `more`: further flags. `caches`: whether compiled programs are kept.
    """
    overrides, arguments = split_overrides(sys.argv[1:])
    config_help = (
        f"Config: FILE.py, FILE.py:WORDS, or words for configs/{file}; --config.key=value changes a"
        " setting"
    )
    distributed_help = (
        "Join other processes: auto (TPU slices, Slurm), or HOST:PORT/N/I for number I of N"
        " processes"
    )
    known = [
        Flag("config", config_help),
        Flag("workdir", "Directory that this command writes"),
        Flag("distributed", distributed_help),
        *([CACHE_FLAG] if caches else []),
        *more,
    ]

    def checked(values: Any) -> str:
        if caches:
            compile_cache.keep_compiled_programs(values.compilation_cache)
        if values.config is None:
            raise ValueError(
                "--config is missing; give a config file, or words for a shipped one such as"
                f" --config={'scope' if file == 'run.py' else 'base'},arithmetic"
            )
        config = read_config(values.config, file)
        for name, text in overrides:
            set_value(schema, config, name, text)
        if workdir and not values.workdir:
            raise ValueError("--workdir is missing; give the directory to write")
        # Before `connect`, which asks for the devices.
        named = [getattr(values, "model", None), *models_of(config)]
        if values.distributed:  # what a name means is agreed on afterwards
            named = [place for place in named if place and not hub.is_name(place)]
        use_cpu_cores(0 if divides_devices(config) else max(map(weights_of, named), default=0))
        hosts.connect(values.distributed)
        return entry(config, values.workdir, values)

    values = parse_or_exit(arguments, known)
    _end(checked, values, values.workdir or ".")


def models_of(config: ConfigDict) -> list[str | None]:
    """The directories of the models that a config names."""
    named = config.models if "models" in config else {}
    rollouts = (config.get("target") or {}).get("rollouts") or {}
    return [
        *(named.get(who) for who in ("policy", "teacher", "prm")),
        config.get("start"),
        rollouts.get("policy"),
    ]


def divides_devices(config: ConfigDict) -> bool:
    """Whether a config's mesh asks for several devices by a number."""
    return any(isinstance(size, int) and size > 1 for size in (config.get("mesh") or {}).values())


def weights_of(directory: str | Path | None) -> int:
    """Numbers in the weights of a model by its config.json; 0 where that cannot be read, which is
    said when the model is loaded. Of a name of the hub that file alone is fetched: whether the
    rest makes sense is not known yet."""
    try:
        return count_weights(read_model_config(hub.described(directory))) if directory else 0
    except (OSError, ValueError):
        return 0


def program(
    entry: Callable[[Any], str | None],
    known: Sequence[Flag],
    arguments: Sequence[str] | None = None,
    compiled: Callable[[Any], str | Path] = lambda values: compile_cache.DEFAULT,
) -> None:
    """A program that takes no config: parse its flags, call `entry(flag values)` and print what it
    returns. An error ends the program as the table in `scope_jax.run.failures` says. `arguments`:
    in place of those of the command line. `compiled`: of the flag values, where compiled programs
    are kept unless somebody says otherwise."""

    def with_cache(values: Any) -> str | None:
        compile_cache.keep_compiled_programs(values.compilation_cache, compiled(values))
        return entry(values)

    given = sys.argv[1:] if arguments is None else arguments
    _end(with_cache, parse_or_exit(given, [*known, CACHE_FLAG]), ".")


def parse_or_exit(arguments: Sequence[str], known: Sequence[Flag]) -> Any:
    """`parse`; a bad flag ends the program with one line and exit code 2."""
    try:
        return parse(arguments, known)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def parse(arguments: Sequence[str], known: Sequence[Flag]) -> Any:
    """An object with the value of each flag. `--help` prints the flags and ends the program. Raises
    ValueError for a flag that does not exist, a bad value and a missing one."""
    values = flags.FlagValues()
    for flag in known:
        text = flag.help + (" (required)" if flag.required else "")
        if flag.words:
            flags.DEFINE_enum(flag.name, flag.default, flag.words, text, flag_values=values)
        else:
            _DEFINE[flag.kind](flag.name, flag.default, text, flag_values=values)
    if any(word in ("--help", "-h", "-help") for word in arguments):
        print((sys.modules["__main__"].__doc__ or "").strip() + "\n\nFlags:")
        try:
            # As the docs write them.
            dashed = re.sub(r"(?m)^( *--)\S+", lambda m: m[0].replace("_", "-"), values.get_help())
            print(dashed, flush=True)
        except BrokenPipeError:  # `--help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    words = [
        re.sub(r"^--[\w-]+", lambda name: f"--{name[0][2:].replace('-', '_')}", word)
        for word in arguments
    ]
    try:
        rest = values(["", *words])[1:]
        if rest:
            raise flags.Error(f"{rest[0]!r} is no flag; see --help")
        for flag in known:
            if flag.required and values[flag.name].value is None:
                raise flags.Error(f"--{flag.name} is missing: {flag.help}")
    except flags.Error as error:
        raise ValueError(str(error).splitlines()[0]) from None
    given = {flag.name: values[flag.name].value for flag in known}
    paths = {flag.name for flag in known if flag.kind is Path}
    return SimpleNamespace(
        **{k: Path(v) if k in paths and v is not None else v for k, v in given.items()}
    )


_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    Path: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    list: flags.DEFINE_list,
    tuple: flags.DEFINE_multi_string,
}


def split_overrides(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """([(setting, text)] of `--config.setting=text` and `--config.setting text`, the arguments that
    are left). A setting without a text is "true"."""
    overrides: list[tuple[str, str]] = []
    left: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            left.append(word)
        elif match[2] is not None:
            overrides.append((match[1], match[2]))
        elif words and not words[0].startswith("--"):
            overrides.append((match[1], words.pop(0)))
        else:
            overrides.append((match[1], "true"))
    return overrides, left


def _end(entry: Callable[[Any], str | None], values: Any, place: str) -> None:
    """Call `entry(values)`, print what it returns, and end the program as its error says."""
    # Libraries warn about what is no matter here: models run without PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    try:
        said = entry(values)
        hosts.finish()
        if said is not None and hosts.is_main():
            print(said)
    except Exception as error:
        line, code = failures.ending(error, place)
        if isinstance(error, Stopped):
            hosts.finish()  # all processes have agreed on it
            if hosts.is_main():
                print(line, file=sys.stderr)
            sys.exit(code)
        if line is None:
            watch.crashed(error)
            raise
        print(line, file=sys.stderr)
        watch.fail(line.removeprefix("error: "), code)
        if code == 1:
            failures.leave(code)
        sys.exit(code)
