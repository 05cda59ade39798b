"""The page of a run: what was done with what, figures with curves, rescues, samples, the rest
folded away. And what is said where a run cannot learn."""

import json
import re

import pytest
from test_report import EVIL, Page, item, rollout

from scope_jax.report import Watch, read_sample_file
from scope_jax.report.run_facts import facts, intro, short_path, title
from scope_jax.report.run_page import write_run_report
from scope_jax.run.metrics import MetricsWriter

CONFIG = {
    "steps": 4,
    "method": {"name": "grpo"},
    "task": {"name": "arithmetic", "train": {}},
    "models": {"policy": "runs/checkpoints/base", "teacher": "x/large", "prm": "x/scorer"},
    "teacher": {"kind": "model"},
    "localiser": {"kind": "prm"},
    "rollout": {"prompts": 8, "group": 4},
    "lora": {"rank": None},
    "sft": {"steps": 0},
}
SUMMARY = {"steps": 3, "updates": 2, "skipped": 0, "device": "2 x cpu", "final": {"odd/name": 0.25}}
GRPO = {
    "reward/mean": 0.5,
    "completion/length_mean": 40.0,
    "completion/truncated_share": 0.25,
    "advantage/zero_group_share_after": 0.0,
    "policy/entropy": 0.7,
    "time/total": 100.0,
    "time/rollout": 1.5,
    "odd/name": float("nan"),
}
SCOPE = GRPO | {"scope/accepted_share": 0.5, "scope/failed_share": 0.5}


def run(folder, rows, config=CONFIG, samples=(), summary=SUMMARY):
    """The page of a run with these lines of metrics; `samples`: {name: content}."""
    with MetricsWriter(folder) as writer:
        for step, row in enumerate(rows):
            writer.write(step, row)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "samples").mkdir(exist_ok=True)
    for name, content in dict(samples).items():
        (folder / "samples" / name).write_text(json.dumps(content))
    return write_run_report(folder).read_text(encoding="utf-8")


def captions(page):
    return [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]


def test_a_page_of_grpo_speaks_of_grpo(tmp_path):
    rows = [GRPO | {"reward/mean": 0.1 * n, "update/no_signal": n == 0} for n in range(3)]
    rows[2] |= {"eval/pass@1": 0.5, "time/evaluate": 61.0}
    (tmp_path / "evaluation_at_start.json").write_text('{"eval/pass@1": 0.125}')
    text = run(tmp_path, rows, samples={"step_000000.json": {"rollouts": [rollout()]}})
    assert "SCOPE" not in text and "escue" not in re.sub("(?s)<style>.*</style>", "", text)
    page = Page(text)
    top = page.words[: page.words.index("Length in tokens")]
    assert top == [
        *("GRPO on arithmetic", "GRPO on arithmetic"),
        "Each rollout is judged, and compared with the mean of its group: GRPO and its relatives.",
        *("policy", "checkpoints/base, all weights trained", "method", "GRPO"),
        *("task", "arithmetic", "steps", "3 of 4, each of 8 problems × 4 rollouts"),
        *("updates", "2, 1 left out for want of an advantage", "device", "2 x cpu"),
        *("time", "6 min", "folder", tmp_path.name),
        *("pass@1", "0.500", "before training 0.125"),
        *("Reward", "0.2", "the last value; at first 0", *top[-9:]),
    ]
    assert captions(page)[:3] == ["Reward", "Length in tokens", "Rollouts cut off"]
    assert captions(page)[3:5] == ["Entropy in nats", "Groups without an advantage"]
    # All the rest is closed at the end: nothing stands open behind it.
    behind = page.words[page.words.index("All 5 figures") :]
    assert behind[:4] == ["All 5 figures", "figure", "value", "steps"]
    assert behind[-2:] == ["final/odd/name", "0.250"]
    assert "open" not in dict(attrs for tag, attrs in page.tags if tag == "details" and attrs)


def test_a_page_of_scope_has_its_figures_and_rescues(tmp_path):
    config = CONFIG | {"method": {"name": "scope"}, "lora": {"rank": 8}}
    samples = {
        "step_000000.json": [item(prompt="of an earlier version")],
        "step_000002.json": {
            "step": 2,
            "rescues": [item(prompt="lost", verdict_after=False, not_rescued="tail_cut_off")]
            + [item(prompt="won")],
            "rollouts": [rollout(problem="a newer one")],
        },
    }
    text = run(tmp_path, [SCOPE] * 3, config, samples)
    page = Page(text)
    assert page.words[0] == "SCOPE on arithmetic" and "(arXiv 2602.24110)" in text
    facts = dict(zip(page.words[3:21:2], page.words[4:22:2], strict=True))
    assert facts["policy"] == "checkpoints/base, adapters of rank 8"
    assert (facts["teacher"], facts["steps scored by"]) == ("large", "scorer")
    assert captions(page)[1] == "Salvage rate of chosen failures" and "50%" in page.words
    shown = [w for w in page.words if w in ("of an earlier version", "lost", "won", "a newer one")]
    assert shown == ["won", "lost", "of an earlier version", "a newer one"]
    assert "not rescued: the new end was cut off" in page.words
    one = Page(write_run_report(tmp_path, most_samples=1).read_text())
    assert "won" in one.words and "lost" not in one.words
    read = write_run_report(tmp_path, how_to_read="a < b").read_text()
    assert "How to read a step: a &lt; b" in read
    assert write_run_report(tmp_path, how_to_read="a < b").read_text() == read  # the same again


def test_each_evaluation_has_pass_1_and_the_largest_k(tmp_path):
    names = ["pass@1", "pass@2", "pass@16", "pass@4"]
    rows = [{f"eval/{name}": 0.5 for name in names} | {"eval_amc/pass@1": 0.25, "eval/x": 1.0}] * 2
    page = Page(run(tmp_path, rows))
    start = page.words.index("pass@1")
    assert page.words[start : start + 6] == [
        *("pass@1", "0.500", "pass@16", "0.500", "pass@1, amc", "0.250")
    ]
    assert {"eval/pass@1", "eval/pass@16"} <= {*page.words}  # one chart of both
    assert captions(page)[:1] == ["pass@k in evaluations"]


def test_files_that_cannot_be_read_are_named(tmp_path):
    run(tmp_path, [GRPO])
    (tmp_path / "samples" / "000003.json").write_text('[{"prompt": "torn')
    (tmp_path / "samples" / "000004.json").write_text('[{"prompt": "no steps"}]')
    (tmp_path / "samples" / "000005.json").write_text('{"rollouts": [{"text": "no verdict"}]}')
    (tmp_path / "samples" / "000006.json").write_text("7")
    (tmp_path / "config.json").write_text("[")
    page = Page(write_run_report(tmp_path).read_text())
    notes = page.words[page.words.index("Notes") + 1 :][:5]
    assert [
        re.match(r"samples/(\d+).json could not be read \((\w+)", n).groups() for n in notes[:4]
    ] == [
        ("000006", "AttributeError"),
        ("000005", "KeyError"),
        ("000004", "KeyError"),
        ("000003", "JSONDecodeError"),
    ]
    assert notes[4] == "config.json could not be read."
    assert page.words[0] == f"Run {tmp_path.name}"  # without the config the folder's name


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither metrics\.jsonl nor summary\.json"):
        write_run_report(tmp_path)


def test_a_hostile_config_is_text(tmp_path):
    config = json.loads(json.dumps(CONFIG))
    config["method"]["name"] = config["task"]["name"] = config["models"]["policy"] = EVIL
    config["task"]["train"] = {EVIL: {}}
    page = Page(run(tmp_path, [GRPO], config, summary=SUMMARY | {"device": EVIL}))
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.tags)
    assert sum("evil" in word.lower() for word in page.words) >= 5


def test_a_model_by_the_name_of_its_folder():
    assert short_path("/data/Qwen2.5-1.5B-Instruct") == "Qwen2.5-1.5B-Instruct"
    assert short_path("runs/one/model") == "one/model"
    assert short_path("/c/hub/models--Qwen--Qwen3-8B/snapshots/ab12") == "Qwen/Qwen3-8B"
    assert short_path("") == ""


def test_both_forms_of_a_samples_file(tmp_path):
    path = tmp_path / "step_000020.json"
    path.write_text(json.dumps([item()]))
    old = read_sample_file(path)
    assert (old.step, old.rescues, old.rollouts) == (20, [item()], [])
    path.write_text(json.dumps({"step": 20, "rescues": [item()], "rollouts": [rollout()]}))
    new = read_sample_file(path)
    assert (new.step, new.rescues, new.rollouts) == (20, [item()], [rollout()])


# ---- runs that cannot learn


def said(*phases):
    """[(step, line)] of what is said while a run goes through (steps, changes to GRPO's)."""
    watch, found, step = Watch(), [], 0
    for count, changes in phases:
        for _ in range(count):
            found += [(step, line) for line in watch.see(step, GRPO | changes)]
            step += 1
    return found


SILENT = {"advantage/zero_group_share_after": 1.0}


def test_a_run_that_learns_is_left_in_peace():
    assert said((30, {})) == []
    # Nine steps of each are not enough.
    assert said((9, SILENT | {"reward/mean": 0.0}), (1, {}), (9, SILENT)) == []
    # 0.5 at the most over any ten.
    assert said((5, {"completion/truncated_share": 0.75}), (20, {})) == []


def test_reward_0_from_the_first_step_on_is_said_once():
    [(step, line)] = said((30, SILENT | {"reward/mean": 0.0}))
    assert step == 9
    assert line.startswith("nothing to learn from: in steps 0-9 no rollout was right, so no group")
    # Rescues give advantages, but none of the policy's own rollouts was right.
    [(step, line)] = said((30, {"reward/mean": 0.0}))
    assert step == 9 and line.startswith("no rollout was right in steps 0-9, the first ones: see")
    # It was right before: a bad phase, and no more.
    assert said((1, {}), (30, {"reward/mean": 0.0})) == []


def test_groups_of_one_reward_are_said():
    [(step, line)] = said((5, {}), (20, SILENT | {"reward/mean": 1.0}))
    assert step == 14 and "in steps 5-14 every rollout had the reward 1, so no group" in line
    watch = Watch()
    lines = [watch.see(n, GRPO | SILENT | {"reward/mean": n % 2}) for n in range(20)]
    assert [n for n, found in enumerate(lines) if found] == [9]
    assert "all rollouts of each group had the same reward" in lines[9][0]


def test_cut_off_rollouts_are_said():
    [(step, line)] = said((20, {"completion/truncated_share": 0.84}))
    assert step == 9
    assert line.startswith("most rollouts are cut off: 84% of those of steps 0-9 reached rollout.")
    assert said((20, {"completion/truncated_share": 0.5})) == []


def test_supervised_steps_do_not_count():
    watch = Watch()
    assert [watch.see(n, {"loss/total": 1.0}) for n in range(20)] == [[]] * 20
    assert watch.see(20, GRPO | SILENT) == []


def test_the_page_says_it_too(tmp_path):
    page = Page(run(tmp_path, [GRPO | SILENT | {"reward/mean": 0.0}] * 12))
    assert page.words[page.words.index("warning") + 1].startswith("nothing to learn from: in steps")


def test_runs_that_use_nothing_of_their_methods_name_are_called_what_they_are():
    alone = CONFIG | {"sft": {"steps": 4}}
    assert title(alone) == "SFT on arithmetic" and "Supervised" in intro(alone)[0]
    first = CONFIG | {"sft": {"steps": 2}}
    assert title(first) == "GRPO on arithmetic"
    distilled = CONFIG | {"loss": {"distill_weight": 1.0, "outcome_weight": 0.0}}
    assert title(distilled) == "Distillation on arithmetic" and "token" in intro(distilled)[0]
    beside = CONFIG | {"loss": {"distill_weight": 0.1, "outcome_weight": 1.0}}
    assert title(beside) == "GRPO on arithmetic"
    for config, taught in ((CONFIG, False), (alone, True), (distilled, True), (beside, True)):
        assert ("teacher" in dict(facts(config, {}, [], ""))) == taught
