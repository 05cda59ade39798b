"""Sources of problems, on files of the published formats made here by hand."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from scope_jax.data.files import split_files
from scope_jax.data.sources import Source, read_source, source_of
from scope_jax.tasks.domain import Problem

MATH = [
    {
        "problem": "What is $1+1$?",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": "It is $\\boxed{2}$.",
    },
    {
        "problem": "Find $x$.",
        "level": "Level 3",
        "type": "Algebra",
        "solution": "Half: $\\boxed{\\frac{1}{2}}$.",
    },
    {
        "problem": "Find $S$.",
        "level": "Level 5",
        "type": "Algebra",
        "solution": "So $\\boxed{3}$, no: $\\boxed{\\{1,\\{2\\}\\}}$",
    },
    {
        "problem": "Find $y$.",
        "level": "Level 4",
        "type": "Geometry",
        "solution": "Left to the reader.",
    },
]
GSM8K = [
    {
        "question": "Natalia sold 48 clips?",
        "answer": "She sold 48/2 = <<48/2=24>>24.\n48+24 = <<48+24=72>>72\n#### 72",
    },
    {
        "question": "How much does he earn?",
        "answer": "He earns 1000*2 = <<1000*2=2000>>2,000 dollars\n#### 2,000",
    },
]
OPENR1 = [
    {
        "data_source": "math",
        "prompt": [
            {"role": "system", "content": "Think."},
            {"role": "user", "content": f"Problem {n}?"},
        ],
        "target": [
            {"role": "assistant", "content": f"<think>\nHm.\n</think>\n\nIt is \\boxed{{{n}}}."}
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(n)},
        "extra_info": {"split": "default", "index": n},
    }
    for n in (7, 8)
]
OPENR1_FIELDS = {
    "id": "extra_info.index",
    "answer": "reward_model.ground_truth",
    "solution": "target",
}
GSM8K_FIELDS = {"prompt": "question", "solution": "answer"}


def jsonl(path: pathlib.Path, rows) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def parquet(path: pathlib.Path, rows) -> pathlib.Path:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def answers(path, **settings) -> list[str]:
    return [problem.answer for problem in read_source(Source(path=str(path), **settings))]


# ---- published formats


def test_math_levels_with_answers_from_boxes(tmp_path):
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", MATH)
    source = Source(
        path=str(tmp_path),
        fields={"prompt": "problem"},
        where={"level": ["Level 3", "Level 4", "Level 5"]},
        answer_from="boxed",
    )
    with pytest.warns(
        UserWarning,
        match=r"train-00000-of-00001.parquet: line 4: field 'solution' has no .boxed.*; skipped",
    ):
        problems = read_source(source)
    assert list(problems) == [
        Problem("data/train-00000-of-00001-2", "Find $x$.", "\\frac{1}{2}", MATH[1]["solution"]),
        Problem("data/train-00000-of-00001-3", "Find $S$.", "\\{1,\\{2\\}\\}", MATH[2]["solution"]),
    ]
    assert problems.skipped == 1


def test_math_as_first_published_one_file_a_problem(tmp_path):
    for n, row in enumerate(MATH[:3]):
        path = tmp_path / ("test" if n == 2 else "train") / "algebra" / f"{n}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row, indent=4))
    settings = {"fields": {"prompt": "problem"}, "answer_from": "boxed"}
    assert answers(tmp_path, **settings) == ["2", "\\frac{1}{2}"]
    assert answers(tmp_path, split="test", **settings) == ["\\{1,\\{2\\}\\}"]


def test_gsm8k_repository_with_configs_in_its_readme(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n   "
        " path: main/train-*\n  - split: test\n    path: main/test-*\n- config_name: socratic\n "
        " data_files:\n  - split: train\n    path: socratic/train-*\n---\n# Card\n"
    )
    parquet(tmp_path / "main" / "train-00000-of-00001.parquet", GSM8K)
    parquet(tmp_path / "main" / "test-00000-of-00001.parquet", GSM8K[:1])
    parquet(tmp_path / "socratic" / "train-00000-of-00001.parquet", GSM8K[1:])
    settings = {"fields": GSM8K_FIELDS, "answer_from": "hash"}
    problems = read_source(Source(path=str(tmp_path), config="main", **settings))
    assert [(p.id, p.answer) for p in problems] == [
        ("main/train-00000-of-00001-1", "72"),
        ("main/train-00000-of-00001-2", "2000"),
    ]
    assert problems[0].solution == GSM8K[0]["answer"]
    assert answers(tmp_path, config="main", split="test", **settings) == ["72"]
    assert answers(tmp_path, config="*", **settings) == ["72", "2000", "2000"]
    for wrong, message in (
        ({"config": "main", "split": "dev"}, "config 'main': no split 'dev': it has test, train"),
        ({"config": "mian"}, "no config 'mian': README.md has main, socratic"),
        ({}, "several configs and none is the default; set config to one of main, socratic"),
    ):
        with pytest.raises(ValueError, match=message):
            read_source(Source(path=str(tmp_path), **settings, **wrong))


def test_openr1_demonstrations(tmp_path):
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", OPENR1[:1])
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", OPENR1[1:])
    problems = read_source(Source(path=str(tmp_path), fields=OPENR1_FIELDS))
    assert list(problems) == [
        Problem(str(n), f"Problem {n}?", str(n), f"<think>\nHm.\n</think>\n\nIt is \\boxed{{{n}}}.")
        for n in (7, 8)
    ]


def test_gsm8k_through_tfds(tmp_path):
    """The real builder of the TFDS catalogue (features, examples), given two rows of its own file
    instead of a download."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.text.gsm8k.gsm8k import Gsm8k

    tfds.disable_progress_bar()
    rows = {
        "train": jsonl(tmp_path / "train.jsonl", GSM8K),
        "test": jsonl(tmp_path / "test.jsonl", GSM8K[:1]),
    }

    class Local(Gsm8k, skip_registration=True):
        name = "gsm8k"

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(path) for split, path in rows.items()}

    builder = Local(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    source = Source(path=str(tmp_path / "tfds" / "gsm8k"), fields=GSM8K_FIELDS, answer_from="hash")
    found = {p.answer: p for p in read_source(source)}
    assert sorted(found) == ["2000", "72"] and found["72"].prompt == "Natalia sold 48 clips?"
    short = Source(
        path=str(tmp_path / "tfds" / "gsm8k" / "1.0.0"),
        split="test",
        fields={"prompt": "question", "answer": "short_answer"},
    )
    assert list(read_source(short)) == [Problem("test-0", "Natalia sold 48 clips?", "72")]
    with pytest.raises(
        ValueError, match=r"no split 'dev': it has test, train|no split 'dev': it has train, test"
    ):
        read_source(Source(path=str(tmp_path / "tfds" / "gsm8k"), split="dev", fields=GSM8K_FIELDS))
    with pytest.raises(ValueError, match=r"no feature 'problem': it has .*question"):
        read_source(Source(path=str(tmp_path / "tfds" / "gsm8k"), fields={"prompt": "problem"}))


# ---- layouts


@pytest.mark.parametrize(
    ("names", "split", "wanted"),
    [
        (["data.jsonl"], "train", ["data.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["my-dev.v2.jsonl", "my-train.jsonl"], "validation", ["my-dev.v2.jsonl"]),
        (["training/a.jsonl", "eval/b.jsonl"], "train", ["training/a.jsonl"]),
        (
            ["data/hard-00000-of-00002.jsonl", "data/hard-00001-of-00002.jsonl", "notes.jsonl"],
            "hard",
            None,
        ),
        (
            ["contest.jsonl", "latest.jsonl"],
            "train",
            ["contest.jsonl", "latest.jsonl"],
        ),  # "test" is no word of these
        (["train.jsonl.gz", ".cache/train.jsonl", "train.txt"], "train", ["train.jsonl.gz"]),
    ],
)
def test_splits_by_the_names_of_files(tmp_path, names, split, wanted):
    for name in names:
        jsonl(tmp_path / name, [{"prompt": name, "answer": "1"}])
    found = [str(path.relative_to(tmp_path)) for path in split_files(tmp_path, split)]
    assert found == (names[:2] if wanted is None else wanted)


def test_forms_of_data_files(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "deep/c.jsonl", "both/train.jsonl", "both/test.jsonl"):
        jsonl(tmp_path / name, [{"prompt": name, "answer": name}])
    for form, split, wanted in (
        ("data_files: a.jsonl", "train", ["a.jsonl"]),
        ("data_files: [a.jsonl, b.jsonl]", "train", ["a.jsonl", "b.jsonl"]),
        ("data_files: {dev: './*.jsonl'}", "validation", ["a.jsonl", "b.jsonl"]),
        ("data_files: [{split: x, path: [b.jsonl, 'deep/*']}]", "x", ["b.jsonl", "deep/c.jsonl"]),
        ("data_dir: deep", "train", ["deep/c.jsonl"]),
        ("data_dir: ./both/", "test", ["both/test.jsonl"]),
        ("data_dir: deep\n  data_files: '*.jsonl'", "train", ["deep/c.jsonl"]),
        ("data_files: deep", "train", ["deep/c.jsonl"]),
    ):
        (tmp_path / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  {form}\n---\n"
        )
        assert answers(tmp_path, split=split) == wanted
    for form, message in (
        ("data_files: ../*.jsonl", "outside of the directory"),
        ("data_dir: ../x", "outside of the directory"),
        ("data_dir: none", "no split 'train': it has no file of problems"),
        ("data_files: '*.csv'", "no file of problems matches '\\*.csv'"),
        ("data_files: [1]", "expected patterns or objects"),
        ("data_files: [", "header is not YAML"),
    ):
        (tmp_path / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  {form}\n---\n"
        )
        with pytest.raises(ValueError, match=message):
            answers(tmp_path)


def test_kinds_of_files(tmp_path):
    rows = [{"prompt": "p", "answer": "1"}, {"prompt": "q", "answer": 2}]
    jsonl(tmp_path / "a.jsonl.gz", rows)
    jsonl(tmp_path / "lines.json", rows)
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    jsonl(tmp_path / "odd.data", rows)
    for name in ("a.jsonl.gz", "lines.json", "list.json", "list.json.gz"):
        assert answers(tmp_path / name) == ["1", "2"]
    assert answers(tmp_path / "odd.data", kind="jsonl") == ["1", "2"]
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    for damaged in (whole[:-12], b"\x1f\x8c" + whole[2:]):
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz: damaged gzip file"):
            answers(tmp_path / "a.jsonl.gz")


def test_paths_with_a_scheme_go_through_epath(tmp_path, monkeypatch):
    """A stand-in for a bucket: epath's own gs:// paths over a backend that maps them to a folder.
    No network is there to reach a real one."""
    from etils.epath import backend, gpath

    class Folder(backend._OsPathBackend):
        def _at(self, path):
            return str(path).replace("gs://bucket", str(tmp_path))

        def _back(self, path):
            return path.replace(str(tmp_path), "gs://bucket")

        def open(self, path, mode):
            return super().open(self._at(path), mode)

        def exists(self, path):
            return super().exists(self._at(path))

        def isdir(self, path):
            return super().isdir(self._at(path))

        def glob(self, path):
            return [self._back(found) for found in super().glob(self._at(path))]

        def listdir(self, path):
            return super().listdir(self._at(path))

    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Folder())
    parquet(tmp_path / "math" / "data" / "train-00000-of-00001.parquet", MATH[:1])
    jsonl(tmp_path / "gsm.jsonl.gz", GSM8K)
    assert answers("gs://bucket/math", fields={"prompt": "problem"}, answer_from="boxed") == ["2"]
    assert answers("gs://bucket/gsm.jsonl.gz", fields=GSM8K_FIELDS, answer_from="hash") == [
        "72",
        "2000",
    ]
    with pytest.raises(FileNotFoundError, match="gs://bucket/none: no such file or directory"):
        answers("gs://bucket/none")
    with pytest.raises(ValueError, match="foo://bucket/none: unknown kind of address"):
        answers("foo://bucket/none")


# ---- fields and filters


def test_fields_by_dotted_paths(tmp_path):
    row = {"a.b": "flat", "x": {"y": [{"z": 5}, "last"]}, "q": ["only"], "n": [1, 2]}
    path = jsonl(tmp_path / "a.jsonl", [row])

    def read(**fields: str) -> Problem:
        return read_source(Source(path=str(path), fields=fields))[0]

    assert read(prompt="a.b", answer="x.y.0.z", id="x.y.1") == Problem("last", "flat", "5")
    assert read(prompt="a.b", answer="q").answer == "only"
    for fields, message in (
        ({"answer": "x.y.2"}, r"no field 'x.y.2' \(it has a.b, x, q, n\)"),
        ({"answer": "n"}, "field 'n': expected text, found list"),
        ({"answer": "q", "solution": "s"}, "no field 's'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_source(Source(path=str(path), fields={"prompt": "a.b", **fields}, max_malformed=0))


def test_limits_of_length(tmp_path):
    from scope_jax.text import character_tokenizer

    rows = [{"prompt": "1" * n, "answer": "1", "solution": "2" * (10 - n)} for n in range(1, 10)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    tokenizer = character_tokenizer("012")

    def lengths(**limits: int) -> list[int]:
        problems = read_source(Source(path=str(path), **limits), tokenizer=tokenizer)
        return [len(p.prompt) for p in problems]

    assert lengths(prompt_characters=3) == lengths(prompt_tokens=3) == [1, 2, 3]
    assert lengths(solution_characters=2) == lengths(solution_tokens=2) == [8, 9]
    assert lengths(prompt_characters=5, solution_characters=6) == [4, 5]
    assert lengths(limit=2) == [1, 2]
    with pytest.raises(ValueError, match="a limit in tokens needs a tokenizer"):
        read_source(Source(path=str(path), prompt_tokens=3))
    with pytest.raises(
        ValueError, match="of 9 rows 0 were malformed, 9 left out by `where` and limits"
    ):
        lengths(prompt_characters=5, solution_characters=1)


# ---- bad input


def test_unknown_columns_are_named_with_those_there(tmp_path):
    path = parquet(tmp_path / "a.parquet", MATH)
    for settings, message in (
        ({}, "no column 'prompt': it has problem, level, type, solution"),
        ({"fields": {"prompt": "problem"}}, "no column 'answer'"),
        (
            {"fields": {"prompt": "problem"}, "answer_from": "boxed", "where": {"lvl": [1]}},
            "no column 'lvl'",
        ),
        ({"fields": {"prompt": "problem", "id": "uid"}, "answer_from": "boxed"}, "no column 'uid'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_source(Source(path=str(path), **settings))


def test_answers_that_are_not_there_count_as_malformed(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [*GSM8K, {"question": "q", "answer": "no mark: 5 #### 6"}])
    settings = {"fields": GSM8K_FIELDS, "answer_from": "hash"}
    with pytest.warns(
        UserWarning, match=r"a\.jsonl: line 3: field 'answer' has no line that starts with '####'"
    ):
        assert read_source(Source(path=str(path), **settings)).skipped == 1
    with pytest.raises(ValueError, match=r"line 3: .*; more than 0 malformed lines"):
        read_source(Source(path=str(path), max_malformed=0, **settings))


def test_numbers_of_thousands_of_digits_and_deep_lists_are_malformed_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "p", "answer": 1'
        + "0" * 6000
        + "}\n"
        + "[" * 100_000
        + '\n{"prompt": "p", "answer": "1"}\n'
    )
    with pytest.warns(UserWarning, match="not JSON"):
        problems = read_source(Source(path=str(path)))
    assert [p.id for p in problems] == ["a-3"] and problems.skipped == 2


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such file or directory"):
        answers(tmp_path / "none")
    with pytest.raises(
        FileNotFoundError, match=r"no file of problems in it: expected .parquet, .jsonl"
    ):
        answers(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no TFDS data set.*dataset_info\.json"):
        answers(tmp_path, kind="tfds")
    jsonl(tmp_path / "train.jsonl", [{"prompt": "p", "answer": "a"}])
    with pytest.raises(ValueError, match="no split 'test': it has train"):
        answers(tmp_path, split="test")
    with pytest.raises(ValueError, match=r"no config 'x': README.md has no `configs`"):
        answers(tmp_path, config="x")


def test_settings_are_checked():
    where = "config.task.train.math"
    for settings, message in (
        ({"pth": "x"}, f"{where}.pth: unknown key; the nearest known one is {where}.path"),
        ({}, f"{where}: path is empty"),
        ({"path": "x", "kind": "csv"}, f"{where}: kind = 'csv' is unknown; one of auto, tfds"),
        (
            {"path": "x", "answer_from": "box"},
            f"{where}: answer_from = 'box' is unknown; one of field, boxed, hash",
        ),
        ({"path": "x", "fields": {"question": "q"}}, f"{where}: fields names 'question'"),
        ({"path": "x", "weight": 0.0}, f"{where}: weight = 0.0; expected a positive number"),
        ({"path": "x", "limit": -1}, f"{where}: limit = -1"),
        ({"path": "x", "where": 3}, f"{where}: "),
    ):
        with pytest.raises(ValueError) as caught:
            source_of(settings, where)
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert source_of({"path": "a/b/c"}, where, "data").path == "data/a/b/c"
    assert source_of({"path": "/a/b"}, where, "data").path == "/a/b"
    assert source_of({"path": "a"}, where, "gs://bucket/").path == "gs://bucket/a"
    assert source_of({"path": "x", "where": (("extra.split", ("a",)),)}, where).where == {
        "extra.split": ("a",)
    }


# ---- mixtures


def mixture(weights, sizes=(5, 7, 11), seed=3):
    from scope_jax.data.mixture import mix
    from scope_jax.data.problems import Problems

    names = "abc"[: len(sizes)]
    parts = {
        n: Problems.from_list([Problem(f"{i}", f"{n}{i}", "1") for i in range(s)], n)
        for n, s in zip(names, sizes)
    }
    return mix(parts, dict(zip(names, weights)))


def test_a_mixture_honours_its_weights_at_every_point():
    for weights in ((1, 1, 1), (0.7, 0.2, 0.1), (5, 3, 1), (1, 1 / 3, 0.01), (0.123456, 0.4, 3)):
        mixed = mixture(weights)
        sources = np.array(["abc".index(p.prompt[0]) for p in mixed.draw(3, 0, 1000)])
        share = np.array(weights) / sum(weights)
        had = np.cumsum(sources[:, None] == np.arange(3), axis=0)
        ideal = np.arange(1, 1001)[:, None] * share
        assert np.abs(had - ideal).max() < 1 + 1000 * 1e-4, (
            weights
        )  # weights past 10,000 turns are rounded to 1e-4
        if weights != (0.123456, 0.4, 3) and weights[1] != 1 / 3:
            assert np.abs(had - ideal).max() < 1, weights


def test_a_mixture_resumes_from_the_count_of_problems():
    mixed = mixture((2, 1, 1))
    whole = [p.id for p in mixed.draw(3, 0, 120)]
    for batch in (1, 7, 30):
        assert [p.id for start in range(0, 120, batch) for p in mixed.draw(3, start, batch)][
            :120
        ] == whole
    assert [p.id for p in mixed.draw(4, 0, 120)] != whole
    # Each source by whole epochs of its own, each in another order.
    of_a = [name for name in whole if name.startswith("a/")]
    epochs = np.array(of_a[:60]).reshape(12, 5)
    assert (
        all(sorted(epoch) == [f"a/{i}" for i in range(5)] for epoch in epochs)
        and len({tuple(e) for e in epochs}) > 3
    )
    # What another source weighs changes when a problem of this one comes, not which.
    assert [p.id for p in mixture((6, 1, 1)).draw(3, 0, 120) if p.id.startswith("a/")][:60] == of_a[
        :60
    ]
    assert [p.id for p in mixed.draw(3, 0, 8)] == [
        "a/0",
        "b/6",
        "a/1",
        "c/9",
        "a/2",
        "b/4",
        "a/4",
        "c/4",
    ]  # for ever


def test_a_mixture_is_a_sequence_with_ids_of_its_own():
    mixed = mixture((1, 1, 1))
    assert len(mixed) == 23 and [mixed[i].id for i in (0, 4, 5, 11, 12, 22)] == [
        "a/0",
        "a/4",
        "b/0",
        "b/6",
        "c/0",
        "c/10",
    ]
    assert mixed[-1].prompt == "c10"
    alone = mixture((5,), sizes=(5,))
    assert alone[0].id == "0" and [p.id for p in alone.draw(7, 0, 5)] == [
        str(i) for i in alone_order()
    ]


def alone_order():
    from scope_jax.data.problems import batch_indices

    return batch_indices(7, 0, 5, 5)


def test_turns_are_the_smallest_whole_numbers():
    from scope_jax.data.mixture import turns_of

    assert turns_of([0.5, 0.25, 0.25]) == (2, 1, 1)
    assert turns_of([0.3, 0.7]) == (3, 7)
    assert turns_of([1, 1, 1]) == (1, 1, 1)
    rounded = turns_of([0.1234567, 1e-9, 1])
    assert sum(rounded) in (10_000, 10_001) and min(rounded) == 1
