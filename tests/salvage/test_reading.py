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
