"""Every shipped template, on tokenizers of its family: serving's prompts, training's tokens and the mask agree.

The oracles are the families' published templates (from TRL where it has them, else as their model cards show them), each
family's turns written out once more in plain Python, and transformers' own `apply_chat_template`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from llmkit.engine import mask
from llmkit.engine.templates import OURS, ChatTemplate, Message, render, resolve
from llmkit.errors import DataError

Messages = Sequence[Message]
LINES = [
    "Hello, how are you today? I am fine, thank you.\n\nThe quick brown fox jumps over the lazy dog.",
    "system user assistant model [INST] [/INST] <<SYS>>\n<</SYS>>\n\n",
    "你好，今天天气怎么样？今天天气很好，谢谢你。法国的首都是哪里？法国的首都是巴黎。",
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")
MARKS = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "llama2": ["<unk>", "<s>", "</s>"],
    "mistral": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
    "phi3": ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
}
EOS = {
    "chatml": "<|im_end|>",
    "qwen": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama2": "</s>",
    "mistral": "</s>",
    "phi3": "<|end|>",
    "gemma": "<end_of_turn>",
}
# What of an answer is learnt.
LEARNT: dict[str, Callable[[str], str]] = {
    **{name: (lambda text, eos=eos: text + eos) for name, eos in EOS.items()},
    "llama2": lambda text: f" {text} </s>",
    "mistral": lambda text: f" {text}</s>",
}
ALTERNATING = ("gemma", "llama2", "mistral")

MISTRAL_V3 = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}"""
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


class Family(NamedTuple):
    """A template of ours and a tokenizer that it suits."""

    name: str
    tokenizer: Any
    template: ChatTemplate


def byte_level(name: str) -> Any:
    split = LLAMA3_SPLIT if name == "llama3" else QWEN_SPLIT
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=480, special_tokens=MARKS[name], initial_alphabet=alphabet, show_progress=False)
    )
    bos = "<|begin_of_text|>" if name == "llama3" else None
    eos = "<|end_of_text|>" if name == "llama3" else "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos)


def sentencepiece(name: str, *extra: str) -> Any:
    """BPE with byte fallback over characters and a few words, and over the pieces in `extra`."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    pieces = [piece for piece, _ in sorted(trained.get_vocab().items(), key=lambda item: (len(item[0]), item[1]))]
    pieces += ["\n▁", "▁\n", "\n\n", "。▁", "]▁", *extra]
    texts = dict.fromkeys([*MARKS[name], *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *"。]你", *pieces])
    vocab = {text: index for index, text in enumerate(texts)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in vocab
        for cut in range(1, len(piece))
        if piece[0] != "<" and piece[:cut] in vocab and piece[cut:] in vocab
    ]
    if name == "gemma":
        tokenizer = GemmaTokenizer(vocab=vocab, merges=merges)
    else:
        tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, eos_token="<|endoftext|>" if name == "phi3" else "</s>")
    # Phi-3's marks swallow the white space behind them.
    marks = [AddedToken(mark, rstrip=name == "phi3", normalized=False, special=True) for mark in MARKS[name]]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    found = {}
    for name in OURS:
        folder = tmp_path_factory.mktemp(name)
        (byte_level if name in ("chatml", "qwen", "llama3") else sentencepiece)(name).save_pretrained(folder)
        found[name] = Family(name, AutoTokenizer.from_pretrained(folder), resolve(name, folder))
    return found


WORDS = st.one_of(
    st.sampled_from(
        ["你好", "今天", "世界。", "Hello", "fine", " ", "\n", "\n\n", "\t", "\u3000", "👩‍👩‍👧", "🇨🇳", "e\u0301", "."]
    ),
    st.sampled_from(
        ["<|im_end", "|im_end|>", "assistant\n", "< /s>", "[INS", "<end_of_turn", "model\n", "<|", "</", "<<SYS>>"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=5),
)
HONEST = st.lists(WORDS, max_size=8).map("".join)
FORGED = st.lists(st.one_of(WORDS, st.sampled_from(sorted({mark for marks in MARKS.values() for mark in marks}))), max_size=8)


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str] = HONEST) -> list[Message]:
    """An optional system prompt, then one to three exchanges."""
    roles = ["user", "assistant"] * draw(st.integers(1, 3))
    roles = ["system", *roles] if draw(st.booleans()) else roles
    return [{"role": role, "content": draw(text)} for role in roles]


def spelled(tokenizer: Any, ids: Sequence[int], name: str) -> str:
    """The text of some tokens, without what decoders do at the beginning of a text."""
    if name in ("chatml", "qwen", "llama3"):
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    pieces = tokenizer.convert_ids_to_tokens(ids)
    is_byte = [len(piece) == 6 and piece.startswith("<0x") for piece in pieces]
    raw = (
        bytes([int(piece[3:5], 16)]) if byte else piece.replace("▁", " ").encode()
        for piece, byte in zip(pieces, is_byte, strict=True)
    )
    return b"".join(raw).decode()


def runs(encoded: mask.Encoded) -> list[list[int]]:
    found: list[list[int]] = []
    before = False
    for token, learnt in zip(encoded.input_ids, encoded.labels_mask, strict=True):
        if learnt:
            found = found if before else [*found, []]
            found[-1].append(token)
        before = learnt
    return found


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=60, deadline=None)
@given(messages=conversations())
def test_what_is_trained_is_what_serving_sees(name: str, messages: list[Message], families: dict[str, Family]) -> None:
    """Ids are transformers' own; what is learnt is the answers and EOS; each prompt's ids are a prefix of training's."""
    _, tokenizer, template = families[name]
    if mask.special_texts(tokenizer, template).search("".join(message["content"] for message in messages)):
        return
    encoded = mask.encode(messages, tokenizer, template)
    whole = tokenizer.apply_chat_template(messages, chat_template=template.text, tokenize=True, return_dict=False)
    assert encoded.input_ids == list(whole)
    answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    assert [spelled(tokenizer, run, name) for run in runs(encoded)] == [LEARNT[name](answer) for answer in answers]
    assert {run[-1] for run in runs(encoded)} == {tokenizer.convert_tokens_to_ids(EOS[name])}
    starts = [index for index, kept in enumerate(encoded.labels_mask) if kept and not encoded.labels_mask[index - 1]]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for turn, start in zip(turns, starts, strict=True):
        prompt = render(messages[:turn], tokenizer, template, add_generation_prompt=True)
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == encoded.input_ids[:start]


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=40, deadline=None)
@given(messages=conversations(FORGED.map("".join)))
def test_text_that_imitates_special_tokens_never_becomes_one(
    name: str, messages: list[Message], families: dict[str, Family]
) -> None:
    _, tokenizer, template = families[name]
    found = mask.encode_all([{"id": "a", "messages": messages}], tokenizer, template, max_length=100_000)
    forged = any(mark in message["content"] for mark in MARKS[name] for message in messages)
    assert (found.forged, len(found.items)) == ((1, 0) if forged else (0, 1))
    specials = set(tokenizer.convert_tokens_to_ids(MARKS[name])) - {tokenizer.unk_token_id}
    for item in found.items:
        answers = sum(message["role"] == "assistant" for message in messages)
        learnt = [token for token, kept in zip(item.input_ids, item.labels_mask, strict=True) if kept and token in specials]
        assert len(learnt) == answers


def test_an_answer_that_merges_into_the_prompt_is_refused_by_name() -> None:
    """No template can mend a tokenizer that joins the end of the role's line and a letter."""
    tokenizer = sentencepiece("gemma", "\n你")
    template = ChatTemplate(
        "gemma", (Path(mask.__file__).parent / "chat_templates" / "gemma.jinja").read_text(), "<end_of_turn>"
    )
    for answer, fits in (("我", True), ("你", False)):
        record = {"id": "abc", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]}
        if fits:
            assert len(mask.encode_all([record], tokenizer, template, max_length=100).items) == 1
            continue
        with pytest.raises(DataError, match="share a token with the prompt") as caught:
            mask.encode_all([record], tokenizer, template, max_length=100)
        assert "abc" in caught.value.where


@pytest.mark.slow
def test_gemma_3_trains_on_what_it_serves(gemma_270m: Path) -> None:
    _prove_on_a_real_model(gemma_270m, "gemma", conversations(st.one_of(HONEST, FORGED.map("".join))))


@pytest.mark.slow
def test_smollm2_trains_on_what_it_serves(smollm2: Path) -> None:
    """By its own template, which trims nothing: of what `llmkit clean` has trimmed."""
    _prove_on_a_real_model(
        smollm2, "model", conversations(st.one_of(HONEST, FORGED.map("".join)).map(lambda text: text.strip() or "x"))
    )


def _prove_on_a_real_model(folder: Path, name: str, given_some: st.SearchStrategy[list[Message]]) -> None:
    tokenizer, template = AutoTokenizer.from_pretrained(folder), resolve(name, folder)
    specials = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}

    @settings(max_examples=400, deadline=None)
    @given(messages=given_some)
    def prove(messages: list[Message]) -> None:
        encodings = mask.encode_all([{"messages": messages}], tokenizer, template, max_length=100_000)
        said = "\n".join(message["content"] for message in messages)
        assert encodings.forged == any(token in said for token in specials.values())
        if encodings.forged:
            return
        (encoded,) = encodings.items
        assert all(run[-1] in specials and not specials.keys() & set(run[:-1]) for run in runs(encoded))
        whole = tokenizer.apply_chat_template(messages, chat_template=template.text, tokenize=True, return_dict=False)
        assert encoded.input_ids == list(whole)
        # Of SmolLM2's 256 bytes some are no token: a rare character of theirs comes back changed, with or without a template.
        answers = [message["content"].strip() + template.eos for message in messages if message["role"] == "assistant"]
        alone = tokenizer(answers, add_special_tokens=False)["input_ids"]
        assert [tokenizer.decode(run) for run in runs(encoded)] == [tokenizer.decode(ids) for ids in alone]

    prove()


def published(name: str) -> str:
    """The template as its authors publish it; Mistral's and Llama 2's by their model cards."""
    by_card = {"mistral": MISTRAL_V3, "llama2": LLAMA2_CHAT}
    in_trl = {"gemma": "gemma3", "qwen": "qwen3_instruct_2507", "chatml": "qwen3_instruct_2507"}
    if name in by_card:
        return by_card[name]
    return (Path(trl.__file__).parent / "chat_templates" / f"{in_trl.get(name, name)}.jinja").read_text("utf-8")


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=40, deadline=None)
@given(messages=conversations(HONEST.map(lambda text: text.strip() or "hm")), asks=st.booleans())
def test_it_writes_what_the_family_publishes(
    name: str, messages: list[Message], asks: bool, families: dict[str, Family]
) -> None:
    """Whole conversations and prompts; of Mistral, whose system prompt wanders, the first prompt alone has one."""
    _, tokenizer, template = families[name]
    told = messages[0]["role"] == "system"
    if asks:
        messages = messages[:-1]
    if name == "mistral" and told:
        messages, asks = messages[:2], True
    theirs = tokenizer.apply_chat_template(messages, chat_template=published(name), tokenize=False, add_generation_prompt=asks)
    assert render(messages, tokenizer, template, add_generation_prompt=asks) == theirs


@pytest.mark.parametrize("name", ALTERNATING)
@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["user", "assistant", "assistant"], ["user", "system"]])
def test_turns_that_do_not_alternate_are_refused_where_the_family_refuses_them(
    name: str, roles: list[str], families: dict[str, Family]
) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(DataError, match="alternate"):
        render(messages, families[name].tokenizer, families[name].template)


@pytest.mark.parametrize("name", OURS)
def test_a_system_prompt_is_carried_without_being_folded_in_from_outside(name: str, families: dict[str, Family]) -> None:
    template = families[name].template
    assert (template.folds_system, template.eos) == (False, EOS[name])


def test_qwen_and_chatml_write_the_same(families: dict[str, Family]) -> None:
    messages = [{"role": role, "content": f" {role} 你好\n"} for role in ("system", "user", "assistant", "user")]
    texts = {render(messages, families["qwen"].tokenizer, families[name].template) for name in ("qwen", "chatml")}
    assert len(texts) == 1
