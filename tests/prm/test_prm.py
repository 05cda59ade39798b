"""Process reward models: the three published input formats (literal tokens and scores from torch),
batches in chunks and on a mesh, and the ProcessBench protocol."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from support.fixtures import mesh_of
from support.prm_fixtures import (
    CHECKPOINTS,
    SOLUTIONS,
    byte_level_tokenizer,
    metaspace_tokenizer,
    write_checkpoint,
)

from scope_jax import evaluate_prm, models
from scope_jax.configuration import default_config, train_config
from scope_jax.data.processbench import LabelledSolution, load_processbench
from scope_jax.evaluate_prm import (
    UNSCORED,
    ScoredItems,
    best_threshold,
    mean_metrics,
    predictions,
    subset_metrics,
)
from scope_jax.models.weights import weight_table
from scope_jax.prm import ProcessRewardModel
from scope_jax.prm.model import score_batches
from scope_jax.text import load_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "prm_formats.npz"
FORMATS = list(CHECKPOINTS)
PROBLEMS, STEPS = [p for p, _ in SOLUTIONS], [s for _, s in SOLUTIONS]


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("prm")
    for name in FORMATS:
        write_checkpoint(name, folder / name)
    return {name: folder / name for name in FORMATS}


@pytest.fixture(scope="module")
def prms(directories) -> dict[str, ProcessRewardModel]:
    return {name: ProcessRewardModel.load(path) for name, path in directories.items()}


def shown(prm: ProcessRewardModel, prompt: str, steps: list[str]) -> tuple[list[str], list[int]]:
    ids, marks = prm.encode(prompt, steps)
    return prm.tokenizer.convert_ids_to_tokens(ids), marks


def bare(name: str, tokenizer=None) -> ProcessRewardModel:
    """The PRM of a format without weights: enough to encode."""
    made, config, _ = CHECKPOINTS[name]()
    return ProcessRewardModel({}, config, tokenizer or made, name)


# ---- how a solution is written down


def test_qwen_format_literal_tokens():
    tokens, marks = shown(bare("qwen"), "Is it?", ["a.\n\n", "\nb is."])
    text = "".join(tokens).replace("Ġ", " ").replace("Ċ", "\n")
    assert (
        text == "<|im_start|>system\nPlease reason step by step, and put your final answer within"
        " \\boxed{}.<|im_end|>\n<|im_start|>user\nIs"
        " it?<|im_end|>\n<|im_start|>assistant\na.<extra_0>b is.<extra_0><|im_end|>\n"
    )
    assert tokens[-11:] == [
        "Ċ",
        "a",
        ".",
        "<extra_0>",
        "b",
        "Ġ",
        "is",
        ".",
        "<extra_0>",
        "<|im_end|>",
        "Ċ",
    ]
    assert marks == [len(tokens) - 8, len(tokens) - 3]


def test_math_shepherd_format_literal_tokens():
    prm = bare("math_shepherd")
    tokens, marks = shown(prm, "Q?", ["1.\n", "2  is.\n\n"])
    assert tokens == [
        "<s>",
        "▁",
        "Q",
        "?",
        "▁",
        "1",
        ".",
        "▁ки",
        "<0x0A>",
        "2",
        "▁▁",
        "is",
        ".",
        "▁ки",
    ]
    assert marks == [7, 13]
    # At the very start of a text the tag has a space of its own; two spaces before it would be
    # another token.
    assert prm.tokenizer.convert_ids_to_tokens(prm.tokenizer.encode("x  ки")) == [
        "▁",
        "x",
        "▁▁",
        "ки",
    ]


def test_skywork_format_literal_tokens():
    prm = bare("skywork")
    tokens, marks = shown(prm, "Q?", ["\n1 is.\n\n", "2.\n\n  3.\n", "4"])
    assert tokens == (
        [
            "<|endoftext|>",
            "Q",
            "?",
            "Ċ",
            "1",
            "Ġ",
            "is",
            ".",
            "Ċ",
            "2",
            ".",
            "Ċ",
            "Ġ",
            "Ġ",
            "3",
            ".",
            "Ċ",
            "4",
            "Ċ",
        ]
    )
    assert marks == [8, 16, 18]  # of a step with several lines the last newline
    # The trap is there: a whole text has full stop and newline in one token, and the mark would be
    # lost.
    assert ".Ċ" in prm.tokenizer.convert_ids_to_tokens(prm.tokenizer.encode("2.\n3."))
    assert shown(prm, "Q?", ["", "5"]) == (["<|endoftext|>", "Q", "?", "Ċ", "Ċ", "5", "Ċ"], [4, 6])


def test_a_trained_sentencepiece_tokenizer(tmp_path):
    import io

    import sentencepiece

    lines = [f"Step {i}: {i} + {i} - 1 = {2 * i - 1}. ки" for i in range(60)] + ["+ - ки"] * 40
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",  # as in Llama and Mistral: a newline stays one
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tag = pieces.piece_to_id("▁ки")
    assert tag != pieces.unk_id()
    prm = bare("math_shepherd", load_tokenizer(tmp_path))
    problem, steps = "Sum 7 and 8", ["Step 1: 7 + 8 = 15.\n", "Step 2: - 1"]
    ids, marks = prm.encode(problem, steps)
    # The library that trained it, on the whole text: its own space in front, one <s>.
    assert ids == [
        pieces.bos_id(),
        *pieces.encode("Sum 7 and 8 Step 1: 7 + 8 = 15. ки\nStep 2: - 1 ки"),
    ]
    assert marks == [place for place, token in enumerate(ids) if token == tag] and len(marks) == 2
    assert marks[1] == len(ids) - 1


@pytest.mark.parametrize(("name", "text"), [("qwen", "a <extra_0> b"), ("math_shepherd", "киев")])
def test_a_text_with_a_mark_in_it_is_not_scored(prms, name, text):
    for problem, steps in (("Q?", ["1", text]), (text, ["1", "2"])):
        score, valid, unscored = prms[name].score([problem, "Q?"], [steps, ["1"]])
        assert (
            unscored == 1
            and valid.tolist() == [[False, False], [True, False]]
            and (score[0] == 0).all()
        )


# ---- which format it is


def test_the_format_is_recognised(prms, directories):
    assert {name: prm.format for name, prm in prms.items()} == {name: name for name in FORMATS}
    assert json.loads((directories["qwen"] / "config.json").read_text())["architectures"] == [
        "Qwen2ForProcessRewardModel"
    ]
    plain = dataclasses.replace(prms["math_shepherd"].config, model_type="qwen2")
    with pytest.raises(
        ValueError, match=r"a qwen2 model with head 'lm' is no known process reward model"
    ) as caught:
        ProcessRewardModel({}, plain, byte_level_tokenizer())
    assert "set models.prm_format to math_shepherd" in str(caught.value) and "\n" not in str(
        caught.value
    )
    # What is named is believed, as far as the head allows.
    assert ProcessRewardModel({}, plain, byte_level_tokenizer(), "math_shepherd").encode(
        "Q", ["1"]
    )[1] == [3]


def test_a_run_refuses_an_unknown_format():
    config = default_config()
    config.models.prm_format = "qwen2"
    with pytest.raises(
        ValueError,
        match=(
            r"config\.models\.prm_format = 'qwen2' is unknown; one of auto, qwen, math_shepherd,"
            r" skywork"
        ),
    ):
        train_config(config)


def test_the_published_config_of_qwen_is_read(tmp_path):
    """The fields of Qwen2.5-Math-PRM-7B's config.json that say what it is; the code it names is
    never loaded."""
    published = {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 4096,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    prm = ProcessRewardModel({}, models.read_config(tmp_path), byte_level_tokenizer())
    assert (prm.format, prm.config.max_positions, prm.config.rope_theta) == ("qwen", 4096, 10000.0)
    assert weight_table(prm.config)["prm_output"].hf == "score.2.weight"
    # What is longer than that is not scored.
    assert prm.score(["Q?"], [["1 " * 2100]])[2] == 1


def test_what_is_no_prm_is_refused(prms, directories, tmp_path):
    qwen, shepherd = prms["qwen"], prms["math_shepherd"]
    for config, tokenizer, name, message in [
        (
            qwen.config,
            metaspace_tokenizer(),
            "auto",
            "the PRM's tokenizer has no '<extra_0>' token",
        ),
        (
            shepherd.config,
            letters(),
            "math_shepherd",
            "no single token for ' ки'; a Math-Shepherd PRM needs it",
        ),
        (
            shepherd.config,
            letters(),
            "auto",
            "a mistral model with head 'lm' is no known process reward model",
        ),
        (prms["skywork"].config, letters(), "skywork", "the PRM's tokenizer has no newline token"),
        (
            qwen.config,
            qwen.tokenizer,
            "skywork",
            "this checkpoint has head 'prm'; a PRM of format 'skywork' has 'value'",
        ),
        (
            qwen.config,
            qwen.tokenizer,
            "orm",
            "models.prm_format 'orm' is unknown; one of auto, qwen, math_shepherd, skywork",
        ),
    ]:
        with pytest.raises(ValueError) as caught:
            ProcessRewardModel({}, config, tokenizer, name)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^{directories['qwen']}: this checkpoint has head 'prm'"):
        ProcessRewardModel.load(directories["qwen"], format="math_shepherd")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        ProcessRewardModel.load(tmp_path)


def letters():
    """A tokenizer of two letters: no newline, no tag, no mark."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({"<unk>": 0, "a": 1, "1": 2}, [], unk_token="<unk>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


# ---- scores


@pytest.mark.parametrize("name", FORMATS)
def test_scores_are_those_of_torch(prms, name):
    goldens = np.load(GOLDENS, allow_pickle=False)
    score, valid, unscored = prms[name].score(PROBLEMS, STEPS)
    assert unscored == 0 and valid.sum(axis=1).tolist() == [len(steps) for steps in STEPS]
    for row, (ids, _) in enumerate(prms[name].encode_rows(PROBLEMS, STEPS)):
        assert ids == goldens[f"{name}_{row}_ids"].tolist()
        theirs = goldens[f"{name}_{row}_score"]
        np.testing.assert_allclose(score[row, : len(theirs)], theirs, atol=1e-4, rtol=0)
    spread = score[valid]
    assert (
        spread.std() > 0.02 and len(np.unique(spread)) == spread.size
    )  # a constant would pass nothing


@pytest.mark.parametrize("name", FORMATS)
def test_chunks_change_nothing(prms, name):
    prm = prms[name]
    whole, valid, _ = prm.score(PROBLEMS * 3, STEPS * 3)
    # Room for one or two rows at a time.
    parts, parts_valid, unscored = dataclasses.replace(prm, tokens_at_once=256).score(
        PROBLEMS * 3, STEPS * 3
    )
    assert unscored == 0 and (valid == parts_valid).all()
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    np.testing.assert_array_equal(whole[:3], whole[3:6])


def test_chunks_have_few_shapes():
    lengths = sorted([300, 130, 128, 127, 65, 64, 20] + [8] * 300, reverse=True)
    chunks = list(score_batches(lengths, 512, 1024))
    assert [shape for _, shape in chunks] == [(3, 320), (8, 128), (128, 8), (128, 8), (128, 8)]
    assert [c for part, _ in chunks for c in lengths[part]] == lengths  # each row once
    assert all(
        rows * width <= 1024 and max(lengths[part]) <= width for part, (rows, width) in chunks
    )
    # Where more fits, a quarter of the rows that were asked for, whatever their number is: long
    # rows do not widen short ones.
    room = 1 << 20
    assert [shape for _, shape in score_batches(lengths, 512, room)] == [
        (128, 320),
        (128, 8),
        (128, 8),
    ]
    assert [shape for _, shape in score_batches(lengths[:7], 512, room)] == [(128, 320)]


@pytest.mark.parametrize("name", FORMATS)
def test_scores_on_a_mesh(prms, name):
    prm, mesh = prms[name], mesh_of("2x2x2")
    alone, _, _ = prm.score(PROBLEMS, STEPS)
    with jax.set_mesh(mesh):
        laid_out = dataclasses.replace(
            prm, params=jax.device_put(prm.params, models.shardings(prm.config, mesh))
        )
        assert [shape for _, shape in score_batches([100, 50, 20], 3, prm.tokens_at_once)] == [
            (4, 112)
        ]  # rows over data x fsdp
        spread, valid, _ = laid_out.score(PROBLEMS, STEPS)
    np.testing.assert_allclose(spread, alone, atol=1e-5)


# ---- ProcessBench: metrics


SCORES = ScoredItems(
    score_BJ=np.array(
        [
            [0.9, 0.2, 0.9],
            [0.9, 0.9, 0.1],
            [0.9, 0.8, 0.9],
            [0.6, 0.9, 0.9],
            [0.9, 0.9, 0.0],
            [0, 0, 0],
        ],
        np.float32,
    ),
    valid_BJ=np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]], bool),
    scored_B=np.array([1, 1, 1, 1, 1, 0], bool),
    label_B=np.array([1, 1, -1, 0, -1, -1]),
)


def test_predictions_and_metrics_literal():
    found = predictions(SCORES, 0.5)
    assert found.tolist() == [1, 2, -1, -1, -1, UNSCORED]
    # Erroneous: rows 0, 1, 3, of which 1 is exact, and 1 at the error or before it. Correct: rows
    # 2, 4, 5, the last unscored.
    assert subset_metrics(found, SCORES.label_B) == {
        "items": 6,
        "erroneous": 3,
        "correct": 3,
        "unscored": 1,
        "error_accuracy": pytest.approx(1 / 3),
        "correct_accuracy": pytest.approx(2 / 3),
        "f1": pytest.approx(4 / 9),
        "not_later": pytest.approx(1 / 3),
    }
    # A cut before the error is not later, but no match either.
    early = subset_metrics(np.array([0, UNSCORED]), np.array([1, 1]))
    assert (early["not_later"], early["error_accuracy"]) == (0.5, 0.0)
    assert (early["correct_accuracy"], early["f1"]) == (None, None)
    assert subset_metrics(np.array([0, 0]), np.array([1, -1]))["f1"] == 0.0


def test_threshold_search():
    # Below 0.61 row 3 is missed; from 0.81 on row 2 is taken for wrong: 0.61 to 0.80 are best, the
    # lowest counts.
    assert best_threshold(SCORES) == 0.61
    assert best_threshold(SCORES, [0.9, 0.7, 0.75]) == 0.7
    assert best_threshold(SCORES, [0.05, 0.02]) == 0.02  # all F1 are 0
    with pytest.raises(ValueError, match="it needs erroneous and correct solutions"):
        best_threshold(dataclasses.replace(SCORES, label_B=np.full(6, -1)))


def test_mean_over_subsets():
    one, two = (
        subset_metrics(np.array([0, -1]), np.array([0, -1])),
        subset_metrics(np.array([0, 0]), np.array([1, -1])),
    )
    lacking = subset_metrics(np.array([1]), np.array([1]))
    mean = mean_metrics([one, two, lacking])
    assert (mean["items"], mean["erroneous"], mean["f1"]) == (5, 3, 0.5)
    assert mean["error_accuracy"] == pytest.approx(2 / 3)


# ---- ProcessBench: files and the command


def row(number: int, label: int, **more) -> dict:
    problem, steps = SOLUTIONS[number % 3]
    item = {
        "id": f"x-{number}",
        "generator": "g",
        "problem": problem,
        "steps": steps,
        "label": label,
    }
    return item | {"final_answer_correct": label == -1} | more


def test_files_in_the_published_fields(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [row(0, 1), row(1, -1), row(2, 3)]
    (tmp_path / "omnimath.json").write_text(json.dumps(rows))
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:2]))
    (tmp_path / "math.json").write_text(
        "".join(json.dumps(r) + "\n" for r in rows)
    )  # one object a line under this name too
    for part in range(2):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows[part : part + 1]),
            tmp_path / f"gsm8k-0000{part}-of-00002.parquet",
        )
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("not data")
    subsets = load_processbench(tmp_path)
    assert [(s.name, len(s.items), s.skipped) for s in subsets] == [
        ("gsm8k", 2, 0),
        ("math", 3, 0),
        ("omnimath", 3, 0),
        ("own", 2, 0),
    ]
    expected = LabelledSolution("x-2", PROBLEMS[2], tuple(STEPS[2]), 3, "g", False)
    assert subsets[2].items[2] == expected == subsets[1].items[2]
    assert subsets[0].items[1] == LabelledSolution(
        "x-1", PROBLEMS[1], tuple(STEPS[1]), -1, "g", True
    )
    assert load_processbench(tmp_path / "omnimath.json") == [subsets[2]]


def test_malformed_items_are_named_skipped_and_counted(tmp_path):
    bad = [
        row(0, 3),
        row(0, -2),
        row(0, True),
        row(1, 0, steps=[]),
        row(1, 0, steps="1"),
        row(1, 0, problem=" "),
        [],
        {"label": 1},
    ]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [row(0, 0), *bad]) + "{\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (subset,) = load_processbench(path)
    assert (len(subset.items), subset.skipped) == (1, 9)
    messages = [str(w.message) for w in caught]
    assert (
        messages[0]
        == f"{path}: line 2: field 'label': expected the index of one of 3 steps or -1, found 3;"
        " skipped"
    )
    for part, message in zip(
        ["-2", "True", "'steps'", "'steps'", "'problem'", "found list", "'problem'", "not JSON"],
        messages[1:],
    ):
        assert part in message
    with (
        pytest.raises(ValueError, match=r"gsm8k\.jsonl: line 4: .*more than 2 malformed lines"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        load_processbench(path, max_malformed=2)
    (tmp_path / "math.json").write_text("[]")
    with pytest.raises(ValueError, match=r"math\.json: no item in it"):
        load_processbench(tmp_path / "math.json")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no ProcessBench data there"):
        load_processbench(tmp_path / "none")


def test_the_command(prms, directories, tmp_path):
    """Against the same protocol in plain Python, on scores of the tiny checkpoint."""
    prm = prms["skywork"]
    long = row(0, -1, steps=["7 + 8 = 15. " * 30])  # past 256 positions
    data = {
        "gsm8k": [row(0, 1), row(1, -1), row(2, 3), row(2, -1)],
        "math": [row(1, 0), row(2, -1), long],
    }
    (tmp_path / "data").mkdir()
    for name, rows in data.items():
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(rows))
    score = {p: [float(x) for x in prm.score([p], [s])[0][0]] for p, s in SOLUTIONS}

    def expected(rows: list[dict], threshold: float) -> tuple[float, float, float]:
        matches: dict[bool, list[bool]] = {True: [], False: []}
        for r in rows:
            below = [k for k, s in enumerate(score[r["problem"]]) if s < threshold]
            matches[r["label"] >= 0].append(
                r is not long and (below[0] if below else -1) == r["label"]
            )
        error, correct = (sum(matches[kind]) / len(matches[kind]) for kind in (True, False))
        return error, correct, 2 * error * correct / (error + correct) if error + correct else 0.0

    best = max((t / 100 for t in range(1, 100)), key=lambda t: (expected(data["gsm8k"], t)[2], -t))
    assert expected(data["gsm8k"], best)[2] > 0  # or the case says nothing
    arguments = [
        "--model",
        str(directories["skywork"]),
        "--data",
        str(tmp_path / "data"),
        "--json",
        str(tmp_path / "out.json"),
    ]
    table = evaluate_prm.main([*arguments, "--threshold-from=gsm8k"])
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["format"], record["threshold"], record["threshold_from"]) == (
        "skywork",
        best,
        "gsm8k",
    )
    for name, rows in data.items():
        found = record["subsets"][name]
        assert [found[k] for k in ("error_accuracy", "correct_accuracy", "f1")] == pytest.approx(
            expected(rows, best)
        )
        assert (found["items"], found["unscored"], found["malformed"]) == (
            len(rows),
            int(name == "math"),
            0,
        )
    mean = (record["subsets"]["gsm8k"]["f1"] + record["subsets"]["math"]["f1"]) / 2
    assert record["mean"]["f1"] == pytest.approx(mean) and record["mean"]["unscored"] == 1
    lines = table.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "gsm8k",
        "math",
        "mean",
    ] and f"{100 * mean:.1f}" in lines[4]
    # The record says which checkpoint it is about.
    names = ["config.json", "model.safetensors"]
    digest = [
        f"{n} {hashlib.sha256((directories['skywork'] / n).read_bytes()).hexdigest()}\n"
        for n in names
    ]
    assert record["model_sha256"] == hashlib.sha256("".join(digest).encode()).hexdigest()
    first = evaluate_prm.main([*arguments[:4], "--limit=1", "--threshold=0.01"])
    assert first.splitlines()[2].startswith("| gsm8k | 1 | 0 | ")
    for more, message in [
        (
            ["--threshold-from=aime"],
            "--threshold-from=aime: no such subset; the data has gsm8k, math",
        ),
        (["--threshold=2"], r"threshold 2.0 must lie in \(0, 1\)"),
        (["--thresh=0.5"], "Unknown command line flag 'thresh'"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_prm.main([*arguments, *more])


def test_bad_input_on_the_command_line_is_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "scope_jax.evaluate_prm",
        "--model",
        str(tmp_path),
        "--data",
        str(tmp_path / "none"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(
        f"error: {tmp_path / 'none'}: no ProcessBench data there"
    )
