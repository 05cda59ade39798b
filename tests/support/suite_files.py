"""Small files in the published layout and with the published columns of each suite; rows are
made up."""

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def write_all(data: Path) -> None:
    """A folder for each of the ten, with the splits and subsets beside the one that is meant."""
    parquet(
        data / "aime24/data/train-00000-of-00001.parquet",
        [
            {
                "id": n,
                "problem": f"Find {n}.",
                "solution": f"It is \\boxed{{0{n}}}.",
                "answer": f"0{n}",
                "url": "u",
                "year": "2024",
            }
            for n in (60, 61)
        ],
    )
    jsonl(
        data / "aime25/test.jsonl",
        [{"problem": f"Find ${n}$.", "answer": str(n), "id": str(n - 70)} for n in (70, 71, 72)],
    )
    parquet(
        data / "amc23/data/test-00000-of-00001.parquet",
        [{"id": n, "answer": float(n), "url": "u", "question": f"What is {n}?"} for n in (27, 28)],
    )
    jsonl(
        data / "math500/test.jsonl",
        [
            {
                "problem": "Convert $(0,3)$ to polar coordinates.",
                "solution": "So $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
                "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
                "subject": "Precalculus",
                "level": 2,
                "unique_id": "test/precalculus/807.json",
            },
            {
                "problem": "Who?",
                "solution": "\\boxed{\\text{Evelyn}}",
                "answer": "\\text{Evelyn}",
                "subject": "Algebra",
                "level": 2,
                "unique_id": "test/algebra/1349.json",
            },
        ],
    )
    jsonl(
        data / "minerva/test.jsonl",
        [
            {"question": "How far, in pc?", "answer": "1.33"},
            {"question": "I?", "answer": "m r^{2}"},
        ],
    )
    olympiad = {
        "context": None,
        "image_1": None,
        "modality": "Text-only",
        "difficulty": "Competition",
        "language": "English",
    }
    parquet(
        data / "olympiadbench/OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",
        [
            {
                "id": 1606,
                "question": "Find it.",
                "solution": ["s"],
                "final_answer": ["2"],
                "is_multiple_answer": False,
                **olympiad,
            },
            {
                "id": 1709,
                "question": "Find all.",
                "solution": ["s"],
                "final_answer": ["$(1,8), (2,7)$"],
                "is_multiple_answer": True,
                **{**olympiad, "context": "Let n be a number."},
            },
        ],
    )
    parquet(
        data / "olympiadbench/OlympiadBench/OE_TO_physics_en_COMP/OE_TO_physics_en_COMP.parquet",
        [{"id": 1, "question": "Physics", "solution": ["s"], "final_answer": ["0"], **olympiad}],
    )
    for split, identity in (
        ("test", "Mercury_7175875"),
        ("train", "other"),
        ("validation", "another"),
    ):
        parquet(
            data / f"arc_c/ARC-Challenge/{split}-00000-of-00001.parquet",
            [
                {
                    "id": identity,
                    "question": "Which gas?",
                    "choices": {
                        "text": ["oxygen", "carbon dioxide", "iron"],
                        "label": ["A", "B", "C"],
                    },
                    "answerKey": "B",
                },
                {
                    "id": identity + "_2",
                    "question": "Which one?",
                    "choices": {"text": ["this", "that"], "label": ["1", "2"]},
                    "answerKey": "2",
                },
            ],
        )
    parquet(
        data / "arc_c/ARC-Easy/test-00000-of-00001.parquet",
        [{"id": "easy", "question": "?", "answerKey": "A"}],
    )
    for name, number in (("gpqa_diamond", 3), ("gpqa_main", 1)):
        path = data / f"gpqa_diamond/{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "Pre-Revision Question": "old",
                "Question": f"Which, of these,\nis number {n}?\n",
                "Correct Answer": f"right {n}\n",
                "Incorrect Answer 1": "wrong 1",
                "Incorrect Answer 2": "wrong, 2",
                "Incorrect Answer 3": 'wrong "3"',
                "Explanation": "e",
                "Record ID": f"rec{name}{n}",
                "High-level domain": "Physics",
            }
            for n in range(number)
        ]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    for split, first in (("test", 70), ("validation", 0)):
        parquet(
            data / f"mmlu_pro/data/{split}-00000-of-00001.parquet",
            [
                {
                    "question_id": first + n,
                    "question": "Typical?",
                    "options": [f"option {k}" for k in range(10)],
                    "answer": "I",
                    "answer_index": 8,
                    "cot_content": "",
                    "category": "business",
                    "src": "ori_mmlu",
                }
                for n in range(2)
            ],
        )
    for part in ("main", "socratic"):
        for split in ("test", "train"):
            parquet(
                data / f"gsm8k/{part}/{split}-00000-of-00001.parquet",
                [
                    {"question": "Janet's ducks?", "answer": "9 * 2 = <<9*2=18>>18\n#### 18"},
                    {"question": "Profit?", "answer": "So\n#### 70,000"},
                ],
            )
