import json

import pytest
from support.tokenizer_fixtures import byte_level, write_sentencepiece

from scope_jax.tasks.arithmetic import CHARACTERS, Arithmetic, Problem
from scope_jax.text.steps import step_ends
from scope_jax.text.tokenizers import (
    character_tokenizer,
    encode_in_place,
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
    assert (
        json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
        == "PreTrainedTokenizerFast"
    )


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
    assert encode_prompts(tokenizer, prompts, max_length=6) == (
        [[6, 9, 14, 12, 9, 15], [3]],
        [1, 2],
    )
    assert encode_prompts(tokenizer, prompts[:1], max_length=5) == ([], [0])
    assert encode_in_place(tokenizer, prompts, max_length=6) == [
        [6, 9, 14, 12, 9, 15],
        None,
        None,
        [3],
    ]
    assert encode_in_place(tokenizer, [], max_length=6) == []
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
    tokenizer.chat_template = (
        "<s>{{ messages[0]['content'] }}{% if add_generation_prompt %}b{% endif %}"
    )
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


# ---- published chat formats (written here by hand, with the marks and line breaks of the model
# cards)

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{"
    " m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt"
    " %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not"
    " supported') }}{% endif %}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content |"
    " trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{%"
    " endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('roles must"
    " alternate') }}{% endif %}[INST] {{ m.content }} [/INST]{% endfor %}"
)
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}{%"
    " for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if"
    " add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("specials", "bos", "eos", "template", "plain", "with_system"),
    [
        (
            [
                "<|begin_of_text|>",
                "<|end_of_text|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
                "<|eot_id|>",
                "<|eom_id|>",
            ],
            "<|begin_of_text|>",
            "<|end_of_text|>",
            LLAMA3,
            (
                "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
            (
                "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBox it.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
        (
            ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
            "<bos>",
            "<eos>",
            GEMMA2,
            "<bos><start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n",
            "<bos><start_of_turn>user\nBox it.\n\n1+1?<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            ["<s>", "</s>", "[INST]", "[/INST]"],
            "<s>",
            "</s>",
            MISTRAL,
            "<s>[INST] 1+1? [/INST]",
            "<s>[INST] Box it.\n\n1+1? [/INST]",
        ),
        (
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            None,
            "<|endoftext|>",
            CHATML,
            (
                "<|im_start|>system\nBe"
                " helpful.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
            ),
            (
                "<|im_start|>system\nBox"
                " it.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
    ],
    ids=["llama3", "gemma2", "mistral", "qwen"],
)
def test_chat_templates(specials, bos, eos, template, plain, with_system, tmp_path):
    """The prompt is the template's text, one id for each mark, one beginning-of-text at most, and
    the turn open."""
    made = byte_level(specials, bos=bos, eos=eos)
    made.chat_template = template
    save_tokenizer(made, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for system, wanted in ((None, plain), ("Box it.", with_system)):
        (ids,), dropped = encode_prompts(
            tokenizer, ["1+1?"], max_length=200, chat=True, system=system
        )
        assert tokenizer.decode(ids) == wanted and dropped == []
        assert bos is None or (ids[0], ids.count(tokenizer.bos_token_id)) == (
            tokenizer.bos_token_id,
            1,
        )
        marks = {tokenizer.convert_tokens_to_ids(mark) for mark in specials}
        assert sum(i in marks for i in ids) == sum(wanted.count(mark) for mark in specials)
    (ids,), _ = encode_prompts(tokenizer, ["1+1?"], max_length=200)
    assert tokenizer.decode(ids) == (bos or "") + "1+1?"
    named = {
        name
        for name in ("<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|im_end|>")
        if name in specials
    }
    assert {tokenizer.convert_ids_to_tokens(i) for i in end_ids(tokenizer)} == named | {eos}


def test_a_template_that_fails_otherwise_is_named():
    tokenizer = byte_level(["<e>"], bos=None, eos="<e>")
    tokenizer.chat_template = "{{ raise_exception('no such luck') }}"
    for system in (None, "s"):
        with pytest.raises(ValueError, match="chat template: no such luck"):
            encode_prompts(tokenizer, ["1"], max_length=9, chat=True, system=system)


# ---- sentencepiece


@pytest.mark.parametrize(
    ("model_type", "newlines"), [("bpe", ()), ("bpe", ("\n", "\n\n")), ("unigram", ())]
)
def test_a_directory_with_only_a_sentencepiece_model(tmp_path, model_type, newlines):
    import sentencepiece

    directory = write_sentencepiece(tmp_path / "sp", model_type, newlines)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    tokenizer = load_tokenizer(directory)
    for text in ("Let x be 12.", "So\n\n3 x = 36.\n", "日 \\boxed{36}", " two  blanks"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == oracle.encode(text), text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (oracle.bos_id(), oracle.eos_id())
    assert end_ids(tokenizer) == end_ids(directory) == (oracle.eos_id(),)
    assert encode_prompts(tokenizer, ["Let x"], max_length=99) == (
        [[oracle.bos_id(), *oracle.encode("Let x")]],
        [],
    )
    ids = oracle.encode("Let x be 12.\n\nSo 3 x = 36.\n\n\\boxed{36}")
    ends = step_ends(ids, tokenizer)
    assert [oracle.decode(ids[a:b]).strip() for a, b in zip([0, *ends], ends)] == [
        "Let x be 12.",
        "So 3 x = 36.",
        "\\boxed{36}",
    ]


def test_a_sentencepiece_model_whose_normaliser_is_unknown_is_refused(tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    # The trainer's defaults: blanks are joined, newlines become blanks.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c 1 2 3"] * 9),
        model_writer=model,
        vocab_size=12,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(
        ValueError, match=r"normaliser cannot be reproduced; add the tokenizer\.json"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "newlines"), [("LlamaTokenizer", ()), ("GemmaTokenizer", ("\n", "\n\n"))]
)
def test_a_sentencepiece_model_with_its_class_named(tmp_path, name, newlines):
    """The named class reads it; the text of its ids is known, so that steps can be told."""
    directory = write_sentencepiece(tmp_path, newlines=newlines)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>"})
    )
    tokenizer = load_tokenizer(directory)
    assert type(tokenizer).__name__ == name
    text = "Let x be 12.\n\nSo 3 x = 36.\n\n\n\\boxed{36}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    ends = step_ends(ids, tokenizer)
    steps = [tokenizer.decode(ids[a:b], skip_special_tokens=True) for a, b in zip([0, *ends], ends)]
    assert steps == ["Let x be 12.\n\n", "So 3 x = 36.\n\n\n", "\\boxed{36}"]


def test_a_config_of_the_model_alone_says_nothing_of_the_tokenizer(tmp_path):
    import sentencepiece

    directory = write_sentencepiece(tmp_path)
    (directory / "config.json").write_text(json.dumps({"model_type": "mistral", "eos_token_id": 2}))
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    tokenizer = load_tokenizer(directory)
    assert tokenizer.encode("Let x", add_special_tokens=False) == oracle.encode("Let x")
    assert end_ids(directory) == (2,)
