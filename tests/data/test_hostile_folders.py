"""Folders and headers that were made, or broken, so that reading them would not end."""

import gzip
import os
import time
import warnings
from pathlib import Path

import pytest

from scope_jax.data import files
from scope_jax.data.arithmetic_tfds import SignedTermsConfig, prepare
from scope_jax.data.sources import Source, read_source, read_tfds

ROW = '{"prompt": "p", "answer": 1}\n'


def test_a_link_to_a_folder_above_gives_each_problem_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "train.jsonl").write_text(ROW)
    os.symlink(".", tmp_path / "loop")
    os.symlink("..", tmp_path / "data" / "up")
    os.symlink("round", tmp_path / "round")  # to itself
    with pytest.warns(UserWarning, match="a link to a folder that it lies in; left out") as caught:
        assert [p.id for p in read_source(Source(str(tmp_path)))] == ["train-1"]
    assert sorted(Path(str(w.message).split(":")[0]).name for w in caught) == ["loop", "up"]


def test_a_linked_folder_is_read(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").write_text(ROW)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        os.symlink("../elsewhere", tmp_path / "data" / split)
    for split in ("train", "test"):
        found = read_source(Source(str(tmp_path / "data"), split=split))
        assert [p.id for p in found] == [f"{split}/a-1"]


def test_links_that_multiply(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_FILES", 2_000)
    for n in range(9):
        (tmp_path / f"f{n}").mkdir()
        for m in range(5):
            os.symlink(f"../f{n + 1}", tmp_path / f"f{n}" / f"l{m}")
    (tmp_path / "f9").mkdir()
    with pytest.raises(ValueError, match="more than 2000 files: do links lead around"):
        read_source(Source(str(tmp_path)))


def doubling(levels: int) -> str:
    """Aliases that stand for 9**levels values in a few lines."""
    lines = ["a0: &a0 [train.jsonl]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\nconfigs: [{{config_name: x, data_files: [*a{levels - 1}]}}]"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (doubling(20), "aliases stand for more than"),
        ("a: &a {b: [*a]}", "aliases stand for more than"),
        ("[" * 100_000, "nested too deeply"),
        ("- " * 5_000, "nested too deeply"),
        ("date: 2024-02-30", "day is out of range"),
        ("configs: [", "not YAML"),
    ],
)
def test_headers_that_cannot_be_read(tmp_path, header, message):
    (tmp_path / "train.jsonl").write_text(ROW)
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"README\.md: header is .*{message}") as raised:
        read_source(Source(str(tmp_path)))
    assert time.monotonic() - start < 5 and len(str(raised.value).splitlines()) == 1


def test_headers_with_aliases_and_long_patterns(tmp_path):
    (tmp_path / "train.jsonl").write_text(ROW)
    stars = "**/" * 3_000
    header = "files: &files ['train.jsonl']\nconfigs: [{config_name: d, data_files: *files}]"
    for text in (header, header.replace("train.jsonl", f"{stars}*.jsonl")):
        (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
        assert len(read_source(Source(str(tmp_path)))) == 1


def test_headers_of_other_bytes(tmp_path):
    (tmp_path / "train.jsonl").write_text(ROW)
    card = tmp_path / "README.md"
    card.write_bytes(b"---\nname: caf\xe9\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: header is not UTF-8 at its byte 9"):
        read_source(Source(str(tmp_path)))
    header = b"---\nconfigs: [{config_name: d, data_files: train.jsonl}]\n---\n"
    card.write_bytes(b"no header \xe9")
    assert len(read_source(Source(str(tmp_path)))) == 1
    for sound in (header + b"caf\xe9", b"\xef\xbb\xbf" + header, header.replace(b"\n", b"\r\n")):
        card.write_bytes(sound)
        assert len(read_source(Source(str(tmp_path), config="d"))) == 1


@pytest.mark.parametrize("target", ["loop.jsonl", "nowhere.jsonl"])
def test_links_to_no_file(tmp_path, target):
    link = tmp_path / "loop.jsonl"
    link.symlink_to(target)
    for place in (tmp_path, link):
        with pytest.raises((ValueError, FileNotFoundError), match=r"loop\.jsonl: ") as raised:
            read_source(Source(str(place)))
        assert len(str(raised.value).splitlines()) == 1


def test_damaged_gzip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress("\n".join([ROW] * 500 + [os.urandom(999).hex()]).encode())
    for damaged in (whole[:40] + b"\xff" * 20 + whole[60:], whole[:-30], whole[:2] + b"xx"):
        path.write_bytes(damaged)
        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(ValueError, match=r"a\.jsonl\.gz: damaged gzip file"),
        ):
            read_source(Source(str(path)))


# ---- damaged files of TFDS


@pytest.fixture(scope="module")
def config():
    return SignedTermsConfig(train_size=8, validation_size=1, test_size=1, test_ood_size=1)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["", "{}", "[1]", "null"])
def test_damaged_tables_of_tfds(tmp_path, config, name, text):
    directory = prepare(tmp_path, config)
    (directory / name).write_text(text)
    for read in (lambda: read_tfds(directory), lambda: read_source(Source(str(directory)))):
        with pytest.raises(ValueError, match=r"1\.0\.0: damaged TFDS data set: ") as raised:
            read()
        assert len(str(raised.value).splitlines()) == 1
    if name == "dataset_info.json":
        with pytest.raises(ValueError, match=r"damaged TFDS data set: .*delete the folder"):
            prepare(tmp_path, config)


@pytest.mark.parametrize("left", [None, 0, 1_000, 0.9])
def test_damaged_records_of_tfds(tmp_path, config, left):
    directory = prepare(tmp_path, config)
    (file,) = directory.glob("*-train.array_record*")
    whole = file.read_bytes()
    if left is None:
        file.unlink()
    else:
        file.write_bytes(whole[: int(left * len(whole)) if left < 1 else left])
    for read in (
        lambda: read_tfds(directory)[3],
        lambda: read_source(Source(str(directory))),
    ):
        with (
            warnings.catch_warnings(),
            pytest.raises(ValueError, match=r"train record [03]: damaged TFDS data set: "),
        ):
            warnings.simplefilter("ignore")
            read()
