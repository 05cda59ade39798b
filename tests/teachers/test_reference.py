"""The reference solution as a teacher of mathematics: which step it writes, and every token of the
row after it. Problems are in the published format of GSM8K, and in that of MATH."""

import jax
import numpy as np
import pytest
from support.tokenizer_fixtures import word_level_bpe

from scope_jax.correction import (
    CorrectionSpec,
    Groups,
    LocaliserSpec,
    Scene,
    SelectSpec,
    choose,
    correct,
    locate,
    make_localiser,
)
from scope_jax.rollout import Policy, SampleSpec, from_prompts, splice
from scope_jax.tasks import Problem
from scope_jax.tasks.mathematics import Mathematics
from scope_jax.teachers import ReferenceTeacher, TeacherSpec
from scope_jax.teachers.demonstrations import DemonstrationJob
from scope_jax.teachers.replies import opening_blanks, reference_steps
from scope_jax.text import BLANK_LINE, SENTENCES
from scope_jax.types import Owner

TOKENIZER = word_level_bpe("qwen")
CLIPS = (
    "She sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "She sold 48+24 = <<48+24=72>>72 clips in all.\n#### 72"
)
BLOCKS = "She sold <<48/2=24>>24 in May.\n\nThat is 48+24 = <<48+24=72>>72 in all.\n#### 72"
ONE_LINE = "She sold 48/2 = <<48/2=24>>24 in May. We add 48 and get <<48+24=72>>72.\n#### 72"
WRONG = "WRONG"


class Marked(Mathematics):
    """A step that says so is wrong."""

    def check_steps(self, problem, steps, *, complete=True):
        return [not any(WRONG in step for step in steps[: n + 1]) for n in range(len(steps))]


def corrected(solution: str, row: str, answer: str = "72", **domain):
    """(metrics, the text of each token of the row, the owner of each), after the reference has
    written its step to one failed row of a group of two."""
    problem = Problem("1", "Clips?", answer, solution)
    end = TOKENIZER.eos_token_id
    batch = from_prompts([TOKENIZER.encode(problem.prompt)], 2, 400)
    ids = TOKENIZER.encode(row) + [end]
    rows = splice(
        batch,
        np.array([ids, ids], np.int32),
        np.array([len(ids)] * 2),
        Owner.POLICY,
        logp_BJ=np.zeros((2, len(ids)), np.float32),
        finished_B=np.array([True, True]),
    )
    reward = np.array([0, 1], np.float32)
    groups = Groups(rows, 2, [problem] * 2, reward, reward == 1, reward >= 0, reward >= 0, {})
    scene = Scene(
        Marked(**domain),
        Policy(None, TOKENIZER, SampleSpec(max_new_tokens=380, end_ids=(end,))),
        jax.random.key(0),
        teacher=ReferenceTeacher(TeacherSpec("reference", step_tokens=99)),
        localiser=make_localiser(LocaliserSpec("oracle")),
    )
    spec = CorrectionSpec(select=SelectSpec(per_group=1, good_steps=0, keep_failure=False))
    chosen = choose(locate(groups, groups.failed_B, scene), groups, spec.select, 0)
    out = correct(chosen, groups, scene, spec)
    start, stop = int(out.rows.prompt_length_B[0]), int(out.rows.length_B[0])
    tokens = [TOKENIZER.decode([i]) for i in np.asarray(out.rows.tokens_BT)[0, start:stop]]
    owner = np.asarray(out.rows.owner_BT)[0, start:stop]
    assert row.startswith("".join(tokens[: np.sum(owner == Owner.POLICY)]))
    return out.metrics, tokens, "".join("T" if o == Owner.TEACHER else "p" for o in owner)


def spelt(text: str) -> list[str]:
    """The tokens of a text by themselves."""
    return [TOKENIZER.decode([i]) for i in TOKENIZER.encode(text)]


def test_a_step_of_gsm8k_without_its_markup_token_by_token():
    metrics, tokens, owner = corrected(CLIPS, "We add.\n\nWRONG\n\nThen so")
    assert tokens == [
        *("We", " add", ".\n\n"),
        *("S", "h", "e", " so", "l", "d", " ", "4", "8", "+", "2", "4", " ", "=", " ", "7", "2"),
        *(" ", "c", "l", "i", "p", "s", " ", "i", "n", " a", "l", "l", ".\n\n"),
    ]
    assert owner == "p" * 3 + "T" * (len(tokens) - 3)
    assert (metrics["scope/corrected"], metrics["scope/leaks"]) == (1, 0)


@pytest.mark.parametrize(
    ("solution", "steps"),
    [
        (
            CLIPS,
            ["She sold 48/2 = 24 clips in May.\n\n", "She sold 48+24 = 72 clips in all.\n\n"],
        ),
        (
            CLIPS.replace("\n", "\r\n"),
            ["She sold 48/2 = 24 clips in May.\n\n", "She sold 48+24 = 72 clips in all.\n\n"],
        ),
        (BLOCKS, ["She sold 24 in May.\n\n", "That is 48+24 = 72 in all.\n\n"]),
        (
            BLOCKS.replace("\n\n", "\n \n"),
            ["She sold 24 in May.\n\n", "That is 48+24 = 72 in all.\n\n"],
        ),
        (ONE_LINE, ["She sold 48/2 = 24 in May.\n\n", "We add 48 and get 72.\n\n"]),
        ("We get <<48+24=72>>72.\n#### 72", ["We get 72.\n\n"]),
        ("#### 72", []),
        ("#### 72\nShe sold 24.\nThen 72.", ["She sold 24.\n\n", "Then 72.\n\n"]),
    ],
)
def test_the_steps_of_gsm8k(solution, steps):
    """Lines, or blocks, or sentences; the answer's step is the last one, and no markup is left."""
    domain = Mathematics()
    found = domain.reference_solution(Problem("1", "?", "72", solution))
    last = "The final answer is $\\boxed{72}$."
    assert reference_steps(found, "\n\n", domain.divider) == [*steps, last]


@pytest.mark.parametrize("solution", [CLIPS, CLIPS.replace("\n", "\r\n"), BLOCKS, ONE_LINE])
def test_no_step_before_the_last_is_refused_for_the_hashes(solution):
    for number in (0, 1):
        kept = "We add.\n\n" * number
        metrics, tokens, owner = corrected(solution, f"{kept}WRONG\n\nThen so\n\nThen")
        written = "".join(t for t, o in zip(tokens, owner, strict=True) if o == "T")
        assert (metrics["scope/corrected"], metrics["scope/leaks"]) == (1, 0)
        assert written.endswith(".\n\n") and not any(c in written for c in "<>#\r")
        assert ("72" in written) is (number == 1)


def test_the_last_step_ends_the_row_in_a_box_token_by_token():
    for solution in (CLIPS, BLOCKS, ONE_LINE):
        metrics, tokens, owner = corrected(solution, "We add.\n\nThen we\n\nWRONG")
        last = spelt("The final answer is $\\boxed{72}$.")
        assert tokens == ["We", " add", ".\n\n", "Then", " we", "\n\n", *last, "<|end|>"]
        assert owner == "p" * 6 + "T" * (len(last) + 1)
        assert (metrics["scope/corrected"], metrics["scope/leaks"]) == (1, 0)


def test_a_longer_rollout_gets_the_last_step_before_the_answer():
    """Its third step of four is wrong; the solution has two, and the answer."""
    for kept in ("We add.\n\nThen we\n\n", "We add.\n\n" * 5):
        metrics, tokens, owner = corrected(CLIPS, kept + "WRONG\n\nso")
        written = "".join(t for t, o in zip(tokens, owner, strict=True) if o == "T")
        assert written == "She sold 48+24 = 72 clips in all.\n\n"
        assert (metrics["scope/corrected"], metrics["scope/leaks"]) == (1, 0)


@pytest.mark.parametrize(
    ("solution", "row"),
    [
        ("We add <<1+1=2>>2.\nSo the answer is 72.\nThen we add.\n#### 72", "We\n\nWRONG\n\nso"),
        ("We add.\n#### 72", "We add.\n\nWRONG\n\nso"),  # nothing else is left
        ("#### 72", "We add.\n\nWRONG\n\nso"),
        ("We add.\n\nSo $\\boxed{72}$.", "We add.\n\nWRONG\n\nso"),
    ],
)
def test_the_answer_is_not_given_to_a_step_before_the_last(solution, row):
    metrics, _, owner = corrected(solution, row)
    assert (metrics["scope/corrected"], metrics["scope/leaks"]) == (0, 1)
    # A step that tells the answer in words is there, and not used.
    assert ("T" in owner) is ("the answer is" in solution)


def test_a_solution_with_a_box_of_its_own():
    boxed = "We add.\n\nThen $x = 72$.\n\nSo $\\boxed{72}$."
    for row in ("We\n\nWRONG\n\nso", "We\n\nThen\n\nWRONG\n\nso"):
        metrics, tokens, _ = corrected(boxed, row)
        assert "".join(tokens).endswith("\n\nThen $x = 72$.\n\n") and metrics["scope/leaks"] == 0
    _, tokens, _ = corrected(boxed, "We\n\nThen\n\nWRONG")
    assert "".join(tokens) == "We\n\nThen\n\nSo $\\boxed{72}$.<|end|>"


def test_thoughts_are_taken_out_before_the_solution_is_worded():
    solution = "<think>Is it \\boxed{5}?\n\nNo.</think>\n\n" + CLIPS
    _, tokens, owner = corrected(solution, "We add.\n\nWRONG\n\nso")
    written = "".join(t for t, o in zip(tokens, owner, strict=True) if o == "T")
    assert written == "She sold 48+24 = 72 clips in all.\n\n"


def test_demonstrations_have_the_same_form():
    problems = [Problem("1", "Clips?", "72", CLIPS.replace("\n", "\r\n"))]
    job = DemonstrationJob(
        problems,
        from_prompts([TOKENIZER.encode("Clips?")], 1, 200),
        TOKENIZER,
        SampleSpec(max_new_tokens=180, end_ids=(0,)),
        Mathematics(),
        0.0,
        jax.random.key(0),
        0,
    )
    found = ReferenceTeacher().demonstrate(job)
    text = (
        "She sold 48/2 = 24 clips in May.\nShe sold 48+24 = 72 clips in all.\n\n"
        "The final answer is $\\boxed{72}$."
    )
    length = int(found.rollout.length_B[0])
    ids = np.asarray(found.rollout.tokens_BT)[0, len(TOKENIZER.encode("Clips?")) : length]
    assert [TOKENIZER.decode([i]) for i in ids] == [*spelt(text), "<|end|>"]


# ---- sentences: the blank before the next one was cut off with the wrong step


def test_a_step_after_a_sentence_begins_with_the_blank():
    solution = "We add. First, we add 24. Then so.\n#### 72"
    row = "We add step by step. Then WRONG so. Then so. We add"
    metrics, tokens, owner = corrected(solution, row, boundary="sentences")
    assert tokens == [
        *("We", " add", " step", " by", " step", "."),
        *(" First", ",", " we", " add", " ", "2", "4", ".\n\n"),
    ]
    assert owner == "pppppp" + "T" * 8 and metrics["scope/corrected"] == 1
    # A blank that was a token of its own is kept, and not written twice.
    _, tokens, owner = corrected(solution, row.replace("Then W", "W"), boundary="sentences")
    assert tokens[:9] == ["We", " add", " step", " by", " step", ".", " ", "First", ","]
    assert owner.startswith("p" * 7 + "T")


@pytest.mark.parametrize(
    ("kept", "wrong", "divider", "blanks"),
    [
        (["We add."], " First, we", SENTENCES, " "),
        (["A.\n\n", "We add."], " First. So", SENTENCES, " "),
        (["We add. "], "First, we", SENTENCES, ""),
        (["We add.\n\n"], "First, we", SENTENCES, ""),
        (["We add.\n\n"], "  First, we", BLANK_LINE, ""),  # indentation is the step's own
        (["We add.\n"], "\nFirst", BLANK_LINE, "\n"),
        (["We add."], "\n\nFirst", "\n\n", "\n\n"),
        (["+777\n"], "-9\n", "\n", ""),
        (["+777\n"], " -9\n", "\n", ""),
        (["+777\n"], "\n", "\n", ""),
        ([], " First", SENTENCES, ""),
        (["We add"], " First", SENTENCES, ""),  # no boundary is there
    ],
)
def test_opening_blanks(kept, wrong, divider, blanks):
    assert opening_blanks(kept, wrong, divider) == blanks
