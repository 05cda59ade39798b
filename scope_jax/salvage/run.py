"""The loop of a salvage: chunk after chunk, each written before the next is read."""

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax

from scope_jax import hub
from scope_jax.errors import StorageError
from scope_jax.run import (
    Stopped,
    StopSignal,
    failures,
    names_of_run,
    prepare_workdir,
    progress,
    record_names,
    try_place,
    write_atomically,
)
from scope_jax.run.lock import locked
from scope_jax.run.metrics import say_beside_bars
from scope_jax.salvage.cast import Cast, planned
from scope_jax.salvage.encode import ALONE, Row
from scope_jax.salvage.fields import Logged
from scope_jax.salvage.forms import FILES, OUTCOMES, Lines, lines_of, right_lines
from scope_jax.salvage.ledger import Ledger
from scope_jax.salvage.play import BAD, RIGHT, play, tally
from scope_jax.salvage.reading import Chunk, Source, open_source
from scope_jax.salvage.settings import Settings
from scope_jax.salvage.summary import summary_of

SUMMARY = "summary.json"
# Requests in a row without an answer after which a server counts as down; some rows may be what it
# cannot answer, each by itself. Fewer do where it cannot be reached, or has no time for anybody.
UNANSWERED, SURELY_DOWN = 16, 4
SHOWN = 5  # bad lines that are shown as they come; all are in outcomes.jsonl


def salvage(settings: Settings, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Correct the failed rollouts of a file; returns the summary, which is in `summary.json` too.

    Raises ValueError and FileNotFoundError for bad input, before a weight is read and before
    anything is written; Stopped where SIGTERM or Ctrl-C asked for it, after a whole chunk.
    """
    source = open_source(settings)
    out = Path(settings.out)
    # A salvage that goes on has the models that it began with.
    with jax.set_mesh(mesh), hub.pinned(names_of_run(out)):
        load = planned(settings, mesh)
        try_place(out, SUMMARY, *FILES)
        with locked(out):
            prepare_workdir(out, dataclasses.asdict(settings), name="settings.json")
            record_names(out)
            ledger = Ledger(out, source.path)
            say_beside_bars(f"{source.path}: fields as of {source.layout}")
            with StopSignal() as stop:
                _go_on(source, ledger, load, stop)
            unread = source.path.stat().st_size - ledger.state.place.offset
            if unread:
                say_beside_bars(
                    f"{source.path}: the last {unread} bytes are not read: half of a line, or more"
                    " than was there; when it is whole, the same command goes on"
                )
            summary = summary_of(ledger.state, settings, source.layout, settings.out)
            summary["unread_bytes"] = unread
            write_atomically(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _go_on(source: Source, ledger: Ledger, load: Any, stop: StopSignal) -> None:
    """Play what is left of the file."""
    size = source.path.stat().st_size
    if next(source.chunks(ledger.state.place), None) is None:
        return  # all of it is done
    bar = progress(size, ledger.state.place.offset, "bytes of rollouts")
    shown = 0
    with load() as cast:
        failures.begun()
        for chunk in source.chunks(ledger.state.place):
            before = ledger.state.place.offset
            lines, counts, cost, prompts = played(chunk, cast)
            check_servers(cast)
            if prompts[ALONE] and not ledger.state.prompts.get(ALONE):
                say_beside_bars(
                    f"{source.path}: line {chunk.end.line} and before: {prompts[ALONE]} prompts are"
                    " not what the tokenizer's chat template gives: taken as they stand (said once,"
                    " counted in summary.json)"
                )
            ledger.state.add(counts, cost, prompts)
            for line in lines[OUTCOMES]:
                if line["outcome"] == BAD and shown < SHOWN:
                    shown += 1
                    say_beside_bars(f"{source.path}: line {line['line']}: {line['reason']}")
            ledger.add(lines, chunk.end)
            bar.set_postfix_str(_so_far(ledger.state.counts), refresh=False)
            bar.update(chunk.end.offset - before)
            if stop.requested() and chunk.end.offset < size:
                bar.close()
                raise Stopped(
                    f"{stop.name}: {ledger.folder}: stopped after line {chunk.end.line}; the same"
                    " command goes on"
                )
    bar.close()


def _so_far(counts: dict[str, int]) -> str:
    failed = sum(n for name, n in counts.items() if name not in (RIGHT, BAD, "not_judged"))
    usable = counts.get("rescued", 0) + counts.get("unverified", 0)
    return f"{sum(counts.values())} rows, {failed} failed, {usable} corrected"


def check_servers(cast: Cast) -> None:
    """Raise where a server does not answer, before the chunk that it was asked for is written: the
    same command asks for these rows again. ValueError where it refuses, StorageError where it may
    come back."""
    for endpoint in cast.endpoints:
        silence = endpoint.silence
        most = SURELY_DOWN if {"connection", "rate_limited"} & set(silence) else UNANSWERED
        if sum(silence.values()) < most:
            continue
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(silence.items()))
        words = f"{endpoint.url}: no answer to {sum(silence.values())} requests ({reasons})"
        if set(silence) == {"refused"}:
            raise ValueError(f"{words}: {endpoint.refusal}")
        raise StorageError(
            f"{words}; nothing of their rows is written: start the same command again"
        )


class Playing(NamedTuple):
    """What a chunk came to."""

    lines: Lines  # of each file, by the order of the rollouts
    counts: collections.Counter[str]
    cost: dict[str, float]
    prompts: collections.Counter[str]  # how those that were logged as texts were read


def played(chunk: Chunk, cast: Cast) -> Playing:
    """Play the rows of a chunk."""
    settings, encoder = cast.settings, cast.encoder
    bad, rows = list(chunk.bad), []
    for logged in chunk.rows:
        row = encoder.row(logged)
        if isinstance(row, Row):
            rows.append(row)
        else:
            bad.append((logged.line, row))
    result = play(rows, cast)
    counts = tally(result.fates)
    found: list[tuple[int, Lines]] = []
    for fate in result.fates:
        right = fate.outcome == RIGHT
        lines = (
            right_lines(fate.row, settings, encoder.tokenizer)
            if right
            else lines_of(fate, settings, encoder.tokenizer)
        )
        found.append((fate.row.logged.line, lines))
    for logged in chunk.right:
        one: Row | Logged | str = encoder.row(logged) if settings.right_steps else logged
        if isinstance(one, str):
            bad.append((logged.line, one))
            continue
        counts[RIGHT] += 1
        found.append((logged.line, right_lines(one, settings, encoder.tokenizer)))
    for line, reason in bad:
        found.append((line, {OUTCOMES: [{"line": line, "outcome": BAD, "reason": reason}]}))
    counts[BAD] += len(bad)
    every: Lines = {name: [] for name in FILES}
    for _, lines in sorted(found, key=lambda pair: pair[0]):
        for name, more in lines.items():
            every[name] += more
    read = collections.Counter(row.reading for row in rows)
    return Playing(every, counts, result.cost | _seconds(cast), read)


def _seconds(cast: Cast) -> dict[str, float]:
    """Seconds of each phase since the last call, and of all."""
    spent = {name.removeprefix("time/"): value for name, value in cast.timer.pop().items()}
    spent = {"tails" if name == "correct" else name: value for name, value in spent.items()}
    return {f"seconds_{name}": value for name, value in spent.items()} | {
        "seconds": sum(spent.values())
    }
