import json

import pytest

from scope_jax.tasks.arithmetic import CHARACTERS, Arithmetic, Problem
from scope_jax.tasks.steps import step_ends
from scope_jax.tasks.tokenizers import (
    character_tokenizer,
    encode_prompts,
    end_ids,
    load_tokenizer,
    save_tokenizer,
)

TEXT = "47:+7-3=+715\n-382"
IDS = [6, 9, 14, 12, 9, 13, 5, 15, 12, 9, 3, 7, 16, 13, 5, 10, 4]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(CHARACTERS)


def test_one_token_per_character_and_lossless(tokenizer):
    assert tokenizer.encode(TEXT) == IDS
    assert tokenizer.decode(IDS) == TEXT
    assert tokenizer.encode(CHARACTERS) == list(range(2, 17))
    assert [tokenizer.decode([i]) for i in range(2, 17)] == list(CHARACTERS)
    assert len(tokenizer) == 24 and tokenizer.convert_ids_to_tokens(23) == "<reserved_6>"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0 and tokenizer.bos_token_id is None
    assert tokenizer.encode("3<extra_0>4<|endoftext|>") == [5, 1, 6, 0]
    assert tokenizer.decode([5, 1, 6, 0], skip_special_tokens=True) == "34"
    assert tokenizer.decode([2, 2, 16, 16, 3]) == "00\n\n1"


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "mistral", None])
def test_auto_tokenizer_keeps_the_ids_whatever_model_lies_beside(tokenizer, tmp_path, model_type):
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(TEXT) == IDS and loaded.decode(IDS) == TEXT
    assert loaded.encode("3<extra_0>4<|endoftext|>") == [5, 1, 6, 0]
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.eos_token_id, loaded.pad_token_id) == (0, 0)
    assert encode_prompts(loaded, ["47:"], max_length=9, chat=True) == ([[6, 9, 14]], [])
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_steps_of_a_completion_end_at_its_newlines(tokenizer):
    ids = tokenizer.encode("+715\n-382\n+972\n-161") + [0]
    ends = step_ends(ids, tokenizer, "\n")
    assert ends == [5, 10, 15, 20]
    steps = [tokenizer.decode(ids[i:j], skip_special_tokens=True) for i, j in zip([0, *ends], ends)]
    problem = Problem("p", "47:+7-3+9-1=", "61")
    assert Arithmetic().check_steps(problem, steps) == [True] * 4


def test_chat_template_adds_nothing_and_ignores_the_system(tokenizer):
    messages = [
        {"role": "system", "content": "99"},
        {"role": "user", "content": "47:+7="},
        {"role": "assistant", "content": "+715<extra_0>"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "47:+7=+715<extra_0>"


def test_prompts_that_do_not_fit_are_dropped_and_named(tokenizer):
    prompts = ["47:+7=", "47:+7-3=", "", "1"]
    assert encode_prompts(tokenizer, prompts, max_length=6) == ([[6, 9, 14, 12, 9, 15], [3]], [1, 2])
    assert encode_prompts(tokenizer, prompts[:1], max_length=5) == ([], [0])
    assert encode_prompts(tokenizer, ["47"], max_length=6, chat=True, system="99") == ([[6, 9]], [])
    with pytest.raises(ValueError, match="prompt 1 'a1': has characters"):
        encode_prompts(tokenizer, ["1", "a1"], max_length=6)


def test_never_a_doubled_beginning_and_no_end(tmp_path):
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = tokenizers.decoders.Fuse()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "<s>{{ messages[0]['content'] }}{% if add_generation_prompt %}b{% endif %}"
    assert tokenizer.encode("ab") == [0, 2, 3, 1]
    assert encode_prompts(tokenizer, ["ab", "<s>ab"], max_length=9)[0] == [[0, 2, 3], [0, 2, 3]]
    assert encode_prompts(tokenizer, ["a"], max_length=9, chat=True)[0] == [[0, 2, 3]]
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompts(tokenizer, ["a"], max_length=9, chat=True)


def test_every_end_token_is_found(tokenizer, tmp_path):
    assert end_ids(tokenizer) == (0,)
    save_tokenizer(tokenizer, tmp_path)
    assert end_ids(tmp_path) == (0,)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "eos_token_id": 3}))
    assert end_ids(tmp_path) == (0, 3)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert end_ids(str(tmp_path)) == (0, 5, 7) == end_ids(load_tokenizer(tmp_path))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json: line 1: not JSON"):
        end_ids(tmp_path)
    turns = character_tokenizer("ab")
    turns.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    assert end_ids(turns) == (0, turns.convert_tokens_to_ids("<|im_end|>"))


def test_bad_directories_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing: no tokenizer there"):
        load_tokenizer(tmp_path / "missing")
    (tmp_path / "tokenizer.json").write_text("{damaged")
    with pytest.raises(ValueError, match="tokenizer cannot be read") as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="without repetition"):
        character_tokenizer("aa")
