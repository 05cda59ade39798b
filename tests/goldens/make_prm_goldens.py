"""Makes prm_formats.npz: step scores of the three published PRM formats, by torch and
transformers.

    python tests/goldens/make_prm_goldens.py            write prm_formats.npz beside this script
    python tests/goldens/make_prm_goldens.py --check    make it afresh; compare it and ours with it

Each format is written down here a second time, after its model card: how a solution becomes ids,
where its scores stand and what is done with the head. The weights come from fixtures.py and reach
torch through the directory that `models.save` wrote; transformers and the names below must find
every tensor in it. Needs the extra [oracle].
"""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from support.prm_fixtures import CHECKPOINTS, SOLUTIONS, write_checkpoint  # noqa: E402
from transformers import AutoTokenizer, MistralForCausalLM, Qwen2Model  # noqa: E402
from transformers.utils import logging  # noqa: E402

from scope_jax.prm import ProcessRewardModel  # noqa: E402

PATH = HERE / "prm_formats.npz"
TOLERANCE = 1e-4


def trunk(directory: Path, cls):
    """The transformers model of the directory; every weight that it wants must be there."""
    model, info = cls.from_pretrained(
        str(directory), dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"{directory}: {cls.__name__} misses {sorted(info['missing_keys'])}")
    return model.eval()


def head_tensors(directory: Path, prefix: str) -> dict[str, torch.Tensor]:
    tensors = load_file(directory / "model.safetensors")
    return {
        name.removeprefix(prefix): torch.tensor(value)
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def qwen(
    directory: Path, tokenizer, problem: str, steps: list[str]
) -> tuple[list[int], list[float]]:
    conversation = [
        {
            "role": "system",
            "content": "Please reason step by step, and put your final answer within \\boxed{}.",
        },
        {"role": "user", "content": problem},
        {
            "role": "assistant",
            "content": "<extra_0>".join(step.strip() for step in steps) + "<extra_0>",
        },
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(conversation, tokenize=False))
    model = trunk(directory, Qwen2Model)
    size = model.config.hidden_size
    head = torch.nn.Sequential(
        torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 2)
    )
    head.load_state_dict(head_tensors(directory, "score."))
    classes = head(model(torch.tensor([ids])).last_hidden_state)[0].softmax(dim=-1)
    at = torch.tensor(ids) == tokenizer.encode("<extra_0>")[0]
    return ids, classes[at, 1].tolist()


def math_shepherd(
    directory: Path, tokenizer, problem: str, steps: list[str]
) -> tuple[list[int], list[float]]:
    text = problem + " " + "\n".join(step.strip() + " ки" for step in steps)
    ids = tokenizer.encode("<s>") + tokenizer.encode(text)
    candidates, tag = tokenizer.encode("+ -")[-2:], tokenizer.encode("ки")[-1]
    model = trunk(directory, MistralForCausalLM)
    scores = model(torch.tensor([ids])).logits[0][:, candidates].softmax(dim=-1)[:, 0]
    return ids, scores[torch.tensor(ids) == tag].tolist()


def skywork(
    directory: Path, tokenizer, problem: str, steps: list[str]
) -> tuple[list[int], list[float]]:
    ids = tokenizer.encode(tokenizer.bos_token + problem + "\n")
    newline, ends = tokenizer.encode("\n")[-1], []
    for step in steps:
        for line in step.strip().split("\n"):
            ids = ids + tokenizer.encode(line) + [newline]
        ends.append(len(ids) - 1)
    model, head = trunk(directory, Qwen2Model), head_tensors(directory, "v_head.summary.")
    value = model(torch.tensor([ids])).last_hidden_state[0] @ head["weight"].T + head["bias"]
    return ids, torch.sigmoid(value[:, 0])[ends].tolist()


REPLICAS = {"qwen": qwen, "math_shepherd": math_shepherd, "skywork": skywork}


def main() -> int:
    check = "--check" in sys.argv[1:]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    made: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for name in CHECKPOINTS:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            directory = Path(folder)
            write_checkpoint(name, directory)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            for number, (problem, steps) in enumerate(SOLUTIONS):
                ids, score = REPLICAS[name](directory, tokenizer, problem, steps)
                made[f"{name}_{number}_ids"] = np.array(ids, np.int32)
                made[f"{name}_{number}_score"] = np.array(score, np.float32)
            prm = ProcessRewardModel.load(directory)
            found, valid, _ = prm.score(
                [problem for problem, _ in SOLUTIONS], [steps for _, steps in SOLUTIONS]
            )
        theirs = np.concatenate(
            [made[f"{name}_{number}_score"] for number in range(len(SOLUTIONS))]
        )
        gap = (
            float(np.abs(found[valid] - theirs).max())
            if found[valid].shape == theirs.shape
            else np.inf
        )
        print(
            f"{name}: ours against torch {gap:.1e}, scores {theirs.min():.3f} to {theirs.max():.3f}"
        )
        if gap > TOLERANCE:
            wrong.append(f"{name}: our scores are {gap:.1e} away from torch, more than {TOLERANCE}")
    if check:
        kept = dict(np.load(PATH, allow_pickle=False))
        same = made.keys() == kept.keys() and all(
            made[key].shape == kept[key].shape for key in made
        )
        drift = max(float(np.abs(made[key] - kept[key]).max()) for key in made) if same else np.inf
        print(f"torch against {PATH.name} {drift:.1e}")
        if drift > TOLERANCE:
            wrong.append(
                f"{PATH}: {drift:.1e} away from what torch computes now; run this script without"
                " --check"
            )
    else:
        np.savez_compressed(PATH, **made)
    print("\n".join(wrong) or "all agree", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
