"""The file is read a chunk at a time, and what is written can be gone on with."""

import gc
import json

import pytest
from support.salvage_files import logged, write_rollouts

from scope_jax.salvage.fields import Logged
from scope_jax.salvage.forms import FILES, MIXED
from scope_jax.salvage.ledger import Ledger
from scope_jax.salvage.reading import Place, open_source
from scope_jax.salvage.settings import Settings


def source(path, rows: int = 4):
    return open_source(Settings(str(path), "out", "teacher", prm="prm", rows=rows))


def lines(count: int, every: int = 2):
    """Every second row is right, by default."""
    return [logged("x", float(n % every == 0), n) for n in range(count)]


def most_held(path, rows: int) -> int:
    """The largest number of rows that were alive at once while a file was read."""
    most = 0
    for chunk in source(path, rows).chunks(Place()):
        alive = sum(isinstance(one, Logged) for one in gc.get_objects())
        most = max(most, alive)
        del chunk
    return most


def test_the_rows_held_do_not_grow_with_the_file(tmp_path):
    write_rollouts(tmp_path / "short", lines(40))
    write_rollouts(tmp_path / "long", lines(200))
    write_rollouts(tmp_path / "right", lines(400, every=1))
    held = [most_held(tmp_path / name, 4) for name in ("short", "long", "right")]
    assert 4 <= held[0] == held[1] <= 2 * 8 and held[2] <= 2 * 64


def test_chunks_hold_every_line_once_and_follow_from_the_place_alone(tmp_path):
    rows = [*lines(7), "", "nonsense", *lines(6), "[1]"]
    path = tmp_path / "r.jsonl"
    write_rollouts(path, rows, after=json.dumps(logged("x", 0, 99)))  # no newline at the end
    chunks = list(source(path).chunks(Place()))
    seen = [
        sorted([*(row.line for row in chunk.rows + chunk.right), *(line for line, _ in chunk.bad)])
        for chunk in chunks
    ]
    assert [line for part in seen for line in part] == [*range(1, 8), *range(9, 18)]
    assert [len(chunk.rows) for chunk in chunks] == [4, 3]
    reasons = [reason for chunk in chunks for _, reason in chunk.bad]
    assert reasons == ["not JSON: Expecting value at column 1", "expected an object, found list"]
    again = list(source(path).chunks(chunks[0].end))
    assert [(c.rows, c.right, c.bad, c.end) for c in again] == [
        (c.rows, c.right, c.bad, c.end) for c in chunks[1:]
    ]
    assert chunks[-1].end == Place(path.stat().st_size, 17)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rollout in it"),
        ("not json\n", "no rollout in its first lines; line 1: not JSON"),
        ('{"q": 1}\n', "line 1: no fields of a prompt and a completion among q; name them"),
        (
            '{"prompt": "a", "completion": "b", "reward": 0}\n',
            "line 1: field 'answer' is missing: the verifier needs it",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(ValueError) as caught:
        source(tmp_path / "r.jsonl")
    assert message in str(caught.value) and str(tmp_path / "r.jsonl") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x15\x04", "a parquet file: expected JSON lines, which pandas.read_parquet(it)"),
        (b"\x1f\x8b\x08\x00", "compressed: expected JSON lines; gunzip it"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, content, message):
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        source(tmp_path / "r.jsonl")
    assert message in str(caught.value)
    with pytest.raises(FileNotFoundError, match="a folder: expected one file of JSON lines"):
        source(tmp_path)


def test_half_a_line_at_the_end_is_left_until_it_is_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    whole = write_rollouts(tmp_path / "whole", lines(6))
    text = (tmp_path / "whole").read_text()
    cut = text.index('"r4"') + 4
    path.write_text(text[:cut])
    chunks = list(source(path).chunks(Place()))
    assert [len(chunk.rows) for chunk in chunks] == [2] and not chunks[0].bad
    assert chunks[-1].end == Place(text.index('{"id": "r4"'), 4)
    path.write_text(text)  # whoever wrote it has gone on
    rest = list(source(path).chunks(chunks[-1].end))
    assert [row.id for chunk in rest for row in chunk.rows + chunk.right] == ["r5", "r4"]
    assert rest[-1].end == list(source(whole).chunks(Place()))[-1].end
    # One that stays half is read by nobody, and does no harm.
    path.write_text(text + '{"id": "r6", "prob')
    assert list(source(path).chunks(Place()))[-1].end == Place(len(text), 6)


def test_a_line_that_is_too_long_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("scope_jax.salvage.reading.MOST_BYTES", 1 << 20)
    path = tmp_path / "r.jsonl"
    write_rollouts(path, [logged("x", 0, 0), logged("y" * (3 << 20), 0, 1), logged("z", 0, 2)])
    (chunk,) = source(path).chunks(Place())
    assert [row.id for row in chunk.rows] == ["r0", "r2"]
    assert chunk.bad == [(2, "longer than 1 MiB")]
    assert chunk.end == Place(path.stat().st_size, 3)


# ---- the ledger


def test_what_a_cut_chunk_wrote_is_taken_off(tmp_path):
    write_rollouts(tmp_path / "r.jsonl", lines(4))
    out = tmp_path / "out"
    out.mkdir()
    ledger = Ledger(out, tmp_path / "r.jsonl")
    ledger.state.add({"right": 2}, {"seconds": 0.5})
    ledger.add({name: [{"a": 1}] for name in FILES}, Place(10, 1))
    with (out / MIXED).open("a") as file:
        file.write('{"half of a li')
    again = Ledger(out, tmp_path / "r.jsonl")
    assert (out / MIXED).read_text() == '{"a": 1}\n'
    assert again.state == ledger.state and again.state.place == Place(10, 1)


def test_files_of_somebody_else_are_not_touched(tmp_path):
    write_rollouts(tmp_path / "r.jsonl", lines(4))
    (tmp_path / MIXED).write_text("mine\n")
    with pytest.raises(ValueError, match=r"mixed.jsonl is there, without progress.json"):
        Ledger(tmp_path, tmp_path / "r.jsonl")
    assert (tmp_path / MIXED).read_text() == "mine\n"


def test_another_file_and_a_lost_one_are_noticed(tmp_path):
    path, out = tmp_path / "r.jsonl", tmp_path / "out"
    write_rollouts(path, lines(4))
    out.mkdir()
    Ledger(out, path).add({name: [{"a": 1}] for name in FILES}, Place(10, 1))
    before = path.read_text()
    path.write_text(before.replace("r0", "s0"))
    with pytest.raises(ValueError, match="another file than the one"):
        Ledger(out, path)
    path.write_text(before + "more\n")  # it may grow
    Ledger(out, path)
    (out / MIXED).write_text("")
    with pytest.raises(ValueError, match="0 bytes, 9 were written; bring it back"):
        Ledger(out, path)
