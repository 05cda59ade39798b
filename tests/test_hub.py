"""Names of the Hugging Face hub where directories may stand, against a stand-in on loopback."""

import json
import logging

import numpy as np
import pytest
from huggingface_hub import constants
from support.fixtures import TIED, make_params
from support.hub import Hub, serving

from scope_jax import hub as names
from scope_jax import models
from scope_jax.data.sources import read_source, source_of
from scope_jax.errors import StorageError
from scope_jax.run import names_of_run, record_names
from scope_jax.text import character_tokenizer, load_tokenizer

FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "_found", {})
    monkeypatch.chdir(tmp_path)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with serving(monkeypatch, tmp_path / "cache") as found:
        yield found


@pytest.fixture(scope="module")
def model_files(tmp_path_factory) -> dict[str, bytes]:
    """What a repository with a tiny model holds."""
    folder = tmp_path_factory.mktemp("model")
    models.save(folder, TIED, make_params(TIED, 0), character_tokenizer("abc"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def again(monkeypatch):
    """What was looked up before is forgotten, as in another process."""
    monkeypatch.setattr(names, "_found", {})


def test_what_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen/Qwen2.5-0.5B", "a/b@main", "a/b@refs/pr/1", "o-r.g/m_1@v1.0"):
        assert names.is_name(name)
    for place in ("Qwen", "a/b/c", "/a/b", "./a/b", "a/", "~/b", "gs://a/b", "a b/c", "", "a/b@"):
        assert not names.is_name(place)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not names.is_name("a/b") and names.local("a/b").is_dir()  # a directory goes before


def test_a_model_by_its_name(hub: Hub, model_files, tmp_path):
    more = {
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"",
        "original/model.safetensors": b"",
    }
    hub.add("models/org/tiny", {**model_files, **more, "modeling.py": b"import os"})
    config, params = models.load("org/tiny")
    assert config == models.read_config("org/tiny") and config.num_layers == TIED.num_layers
    np.testing.assert_array_equal(params["embed"], make_params(TIED, 0)["embed"])
    assert load_tokenizer("org/tiny")("abc")["input_ids"]
    models.check_files("org/tiny@main")
    served = {path for path, _ in hub.served}
    assert served == {f"org/tiny/{name}" for name in model_files}
    assert names.commits() == {"org/tiny": FIRST, "org/tiny@main": FIRST}
    # The folder of the cache, as people copy it.
    folder = tmp_path / "cache" / "models--org--tiny"
    assert names.local(folder) == folder / "snapshots" / FIRST


def test_a_download_that_was_cut_goes_on(hub: Hub, model_files, monkeypatch):
    hub.add("models/org/tiny", model_files)
    hub.cut = 100
    with pytest.raises(StorageError) as error:
        models.load("org/tiny")
    assert str(error.value).startswith("org/tiny: the download was cut (")
    assert str(error.value).endswith("files that came whole are kept: start the same command again")
    assert hub.served.count(("org/tiny/model.safetensors", 0)) > 1  # tried again by itself
    hub.cut, hub.served[:] = None, []
    assert models.load("org/tiny")[0].num_layers == TIED.num_layers
    assert hub.served == [("org/tiny/model.safetensors", 0)]  # nothing else again


def test_a_run_keeps_its_commit_when_the_branch_moves(hub: Hub, model_files, monkeypatch, tmp_path):
    repository = hub.add("models/org/tiny", model_files)
    assert names_of_run(tmp_path) == {}
    assert names.local("org/tiny").name == FIRST
    record_names(tmp_path)
    assert json.loads((tmp_path / "hub.json").read_text()) == {"org/tiny": FIRST}
    repository.commits[SECOND] = model_files
    repository.refs["main"] = SECOND
    assert names.local("org/tiny").name == FIRST  # as long as the process lives
    again(monkeypatch)
    with names.pinned(names_of_run(tmp_path)):
        assert names.local("org/tiny").name == FIRST
    again(monkeypatch)
    assert names.local("org/tiny").name == SECOND
    with names.pinned(names_of_run(tmp_path)):  # in a process that has looked it up before
        assert names.local("org/tiny").name == FIRST
    again(monkeypatch)
    assert names.local(f"org/tiny@{FIRST}").name == FIRST


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("org/none", FileNotFoundError, "org/none: no such directory here, and no such model at"),
        ("org/gated", FileNotFoundError, "org/gated: gated: accept its terms on"),
        ("org/closed", FileNotFoundError, "org/closed: gated: accept its terms on"),
        ("org/tiny@v9", FileNotFoundError, "org/tiny@v9: org/tiny has no revision 'v9'"),
        (
            "org/pickles",
            ValueError,
            "org/pickles: no model.safetensors (it holds pytorch_model.bin); weights must be",
        ),
        ("org/empty", ValueError, "org/empty: no model.safetensors (it holds no weights)"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub: Hub, model_files, name, error, message):
    hub.add("models/org/tiny", model_files)
    hub.add("models/org/gated", model_files, gated="files")  # as huggingface.co has it
    hub.add("models/org/closed", model_files, gated="all")
    hub.add("models/org/pickles", {"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    hub.add("models/org/empty", {"README.md": b""})
    with pytest.raises(error) as raised:
        models.read_config(name)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
    assert not hub.served


def test_offline_the_cache_is_used(hub: Hub, model_files, monkeypatch):
    hub.add("models/org/tiny", model_files)
    assert names.local("org/tiny").name == FIRST
    again(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert names.local("org/tiny").name == FIRST
    with pytest.raises(StorageError) as error:
        names.local("org/other")
    assert str(error.value) == (
        "org/other: no such directory, the hub is offline (HF_HUB_OFFLINE is set) and its cache has"
        " no such model"
    )


def test_a_hub_that_cannot_be_reached(hub: Hub, model_files, monkeypatch):
    hub.add("models/org/tiny", model_files)
    assert names.local("org/tiny").name == FIRST
    again(monkeypatch)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert names.local("org/tiny").name == FIRST
    with pytest.raises(StorageError, match=r"org/other: .* cannot be reached \(ConnectError"):
        names.local("org/other")


def test_a_token_that_is_not_valid_is_no_hub_that_is_down(hub: Hub, model_files, monkeypatch):
    hub.add("models/org/tiny", model_files)
    assert names.local("org/tiny").name == FIRST
    again(monkeypatch)
    hub.token = "of-today"
    assert names.local("org/tiny").name == FIRST  # what is here needs no token
    with pytest.raises(FileNotFoundError) as error:  # another try would not help
        names.local("org/other")
    assert "the hub refuses (HfHubHTTPError: " in str(error.value)
    assert "Invalid credentials" in str(error.value)
    assert "is HF_TOKEN, or the login, valid?" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_set_by_its_name(hub: Hub, tmp_path):
    rows = "".join(
        json.dumps({"question": f"{n}+1", "answer": str(n + 1)}) + "\n" for n in range(3)
    )
    hub.add("datasets/org/sums", {"train.jsonl": rows.encode(), "weights.bin": b"\x80"})
    fields = {"prompt": "question", "answer": "answer"}
    source = source_of({"path": "org/sums", "fields": fields}, "here", "data")
    problems = read_source(source)
    assert [problems[n].prompt for n in range(3)] == ["0+1", "1+1", "2+1"]
    assert [path for path, _ in hub.served] == ["org/sums/train.jsonl"]
    # A folder below the data directory goes before, and a file that is missing is no name.
    (tmp_path / "data" / "org" / "sums").mkdir(parents=True)
    assert source_of({"path": "org/sums"}, "here", "data").path == "data/org/sums"
    assert source_of({"path": "org/x.jsonl"}, "here", "data").path == "data/org/x.jsonl"
    assert source_of({"path": "org/sums"}, "here", "gs://b").path == "gs://b/org/sums"
