"""The model card of a finished run: what was trained on what, how, and what came of it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scope_jax.report import run_facts
from scope_jax.report.tables import markdown
from scope_jax.run import names_of_run, read_metrics

_SUITE = re.compile(r"(?P<suite>eval[^/]*?)(_t(?P<temperature>[\d.]+))?/(?P<figure>pass@\d+)")
_TITLES = {"eval": "test problems", "eval_ood": "longer or harder problems"}


def model_card(workdir: Path) -> str:
    """README.md of the model of a run: header, facts, results with 95 % intervals over problems
    (1.96 standard errors), config. Reads the workdir's config.json, summary.json, metrics.jsonl and
    hub.json; raises FileNotFoundError where the run is not finished."""
    texts = {}
    for name in ("config.json", "summary.json"):
        path = workdir / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; give the workdir of a finished run of scope_jax.train"
            )
        texts[name] = json.loads(path.read_text())
    config, summary = texts["config.json"], texts["summary.json"]
    rows = read_metrics(workdir / "metrics.jsonl")
    names = names_of_run(workdir)
    title = run_facts.title(config) or workdir.name
    parts = [
        _header(config, names),
        f"# {title}",
        *run_facts.intro(config),
        "Trained with scope_jax, an independent implementation of SCOPE (arXiv 2602.24110) and its"
        " rivals in JAX.",
        markdown(
            ["", ""],
            [
                [name, value]
                for name, value in run_facts.facts(config, summary, rows, "")
                if name != "folder"
            ],
        ),
        "## Results",
        _results(summary.get("final") or {}, config),
        "## How it was made",
        *_commits(names),
        "```json\n" + json.dumps(config, indent=2, sort_keys=True) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _header(config: Mapping[str, Any], names: Mapping[str, str]) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["jax", "rlvr", str((config.get("method") or {}).get("name") or "rl")],
    }
    base = str((config.get("models") or {}).get("policy") or "")
    if base in names:
        fields["base_model"] = base.partition("@")[0]
    return f"---\n{yaml.safe_dump(fields, sort_keys=True)}---"


def _results(final: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A row for each suite, temperature and k that the last evaluation has."""
    evaluation = config.get("evaluation") or {}
    usual = evaluation.get("temperature", 1.0)
    rows = []
    for name, value in final.items():
        match = _SUITE.fullmatch(name)
        if match is None or value is None:
            continue
        suite = match["suite"]
        place = f"{suite}_t{match['temperature']}" if match["temperature"] else suite
        error, problems = final.get(f"{name}/se"), final.get(f"{place}/problems")
        within = f" ± {100 * 1.96 * error:.1f}" if error is not None else ""
        rows.append(
            [
                _TITLES.get(suite, suite.removeprefix("eval_")),
                match["temperature"] or f"{usual:g}",
                match["figure"],
                f"{100 * value:.1f}{within}",
                "-" if problems is None else f"{problems:.0f}",
            ]
        )
    if not rows:
        return "The run had no evaluation."
    samples = evaluation.get("samples")
    told = f"{samples} samples for each problem. " if samples else ""
    table = markdown(["problems of", "temperature", "", "%", "problems"], rows)
    return f"{told}± half of the 95 % interval over problems; one run.\n\n{table}"


def _commits(names: Mapping[str, str]) -> list[str]:
    if not names:
        return []
    return [
        markdown(["from the hub", "commit"], [[name, commit] for name, commit in names.items()])
    ]
