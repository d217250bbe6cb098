"""How byte-level BPE splits a text before it merges, by llama.cpp's names. Knows tokenizer.json's steps; no tokens.

The expressions are compiled into llama.cpp; a file only names one. Two ways find the name: the steps of tokenizer.json,
for equal steps split equally whatever the vocabulary, and the hash that llama.cpp's converter keeps of the ids of one fixed
text, which knows a vocabulary.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from llmkit.errors import DataError, UsageError

_LETTERS = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|{_LETTERS}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_SHORT}|{_LETTERS}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_TEKKEN = rf"{_LETTERS}{_UPPER}*{_LOWER}+|{_LETTERS}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_LETTERS}{_UPPER}*{_LOWER}+{_SHORT}?|{_LETTERS}{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def _split(expression: str) -> Sequence[Mapping[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return split, {**_BYTES, "use_regex": False}


# (llama.cpp's name, tokenizer.json's pre_tokenizer, its ignore_merges)
STRUCTURES: tuple[tuple[str, Sequence[Mapping[str, Any]], bool], ...] = (
    ("gpt-2", (_BYTES,), False),
    ("smollm", ({"type": "Digits", "individual_digits": True}, _BYTES), False),
    ("llama-bpe", _split(_LLAMA3), True),
    ("smaug-bpe", _split(_LLAMA3), False),
    ("qwen2", _split(_QWEN2), False),
    ("tekken", _split(_TEKKEN), True),
    ("gpt-4o", _split(_GPT4O), False),
)

# llama.cpp's expressions for these know neither marks nor capitals beyond ASCII: 9 of 2,000 mixed lines get other ids.
APPROXIMATE = frozenset({"tekken", "gpt-4o"})

# Every name llama.cpp takes for byte-level BPE.
NAMES = frozenset(  # one literal a name would take two screens
    """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
    deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 exaone exaone-moe exaone4 f2llmv2 falcon falcon-h1
    falcon3 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-97m grok-2 hunyuan
    hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano
    joyai-llm kanana2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0
    minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe
    seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion
    ufakzeka viking youtu
    """.split()  # noqa: SIM905
)

# The text whose ids llama.cpp's converter hashes, and the first 16 digits of the hashes it knows.
_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫\ufe0f (multiple emojis conc"
    "atenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在ap"
    "ple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been"
    " 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
_HASHES = {
    "a.x-4.0": "b0a6b1c0bd5998eb",
    "afmoe": "49fc0303c9e0d2c2",
    "bailingmoe": "96a5f08be6259352",
    "bailingmoe2": "9b1be57e70d20d95",
    "bloom": "3c30d3ad1d6b6420",
    "chameleon": "60824e3c0d9401f8",
    "chatglm-bpe": "81d72c7348a9f0eb b6e8e1518dc4305b",
    "codeshell": "7b3e7548e4308f52",
    "cohere2moe": "52df12b4c8d4176e",
    "command-r": "9c2227e4dd922002",
    "dbrx": "a8594e3edff7c29c",
    "deepseek-coder": "347715f544604f91",
    "deepseek-llm": "049ecf7629871e30",
    "deepseek-r1-qwen": "b3f499bb4255f8ca",
    "deepseek-v3": "877081d19cf6996e",
    "exaone": "4e2b24cc4770243d",
    "exaone-moe": "6c81ce329e080288",
    "exaone4": "2085e1638f6c377a",
    "f2llmv2": "862f827721df9560",
    "falcon": "8aeee3860c56296a",
    "falcon-h1": "3eda48b4c4dc7de7 48f8e02c0359c0bb 60476e1243776c4f a6b57017d60e6edb",
    "falcon3": "9d032fcbd5501f4a",
    "gigachat": "ad851be1dba641f2",
    "glm4": "9ca2dd618e8afaf0 a1336059768a55c9 cdf5f35325780597",
    "gpt-2": "0fe1cf6eda062318 3ce83efda5659b07",
    "gpt-4o": "ccc2ef013c104be7",
    "gpt3-finnish": "bc01ce58980e1db4",
    "granite-docling": "53e325976a6e1423",
    "granite-embed-multi-97m": "f241072145675bf8",
    "grok-2": "66b8d4e19ab16c3b",
    "hunyuan": "7e57df22b1fe23a7",
    "hunyuan-dense": "bba3b3366b646dbd",
    "hy_v4": "e6ddf9c6686791c1",
    "jais": "b53802fb28e26d64",
    "jais-2": "bc5108ee1eb6a3d6",
    "jina-v1-en": "c7699093ba4255a9",
    "jina-v2-code": "7967bfa498ade6b7",
    "jina-v2-de": "27949a2493fc4a9f b3d1dd861f1d4c5c",
    "jina-v2-es": "171aeeedd6fb548d",
    "jina-v5-nano": "a023e9fdc5a11f03",
    "joyai-llm": "b4b8ca1f9769494f",
    "kanana2": "e4d54df1ebc1f2b9",
    "kormo": "4a2e2abae11ca2b8",
    "laguna": "972da7b59cec44d1",
    "lfm2": "169bf0296a13c4d9 9e454714343b69b9",
    "llama-bpe": "0ef9807a4087ebef",
    "llama4": "d353350c764d8c3b",
    "megrez": "d4c8f286ea6b520b",
    "mellum": "a1e163ecab2e718a",
    "mellum2": "9dcf830ee9990cdb",
    "midm-2.0": "f6791d196f87ce6b",
    "minerva-7b": "1431a23e583c9743",
    "minicpm5": "36f3066e97b7f399",
    "minimax-m2": "f4f37b6c8eb9ea29",
    "modern-bert": "a0b64b4385f12366",
    "olmo": "b6dc8df998e1cfbd",
    "phi-2": "fcace8b9cac38ce8",
    "pixtral": "0e9433cbbb161f89",
    "poro-chat": "c7ea5862a53e4272",
    "qwen2": "d4540891389ea895 e636dc30a262dcc0",
    "qwen35": "1444df51289cfa80 d30d75d9059f1aa2",
    "refact": "6221ad2852e85ce9",
    "roberta-bpe": "8b5a93ed70405748",
    "seed-coder": "d5f1dd6f980fec56",
    "smaug-bpe": "c136ed14d01c2745",
    "smollm": "855059429035d75a",
    "solar-open": "16389f0a1f51ee53",
    "spark2_5": "0a766d034107bc73",
    "stablelm2": "32d85c31273f8019",
    "starcoder": "35d91631860c815f",
    "superbpe": "7dec86086fcc38b6",
    "talkie": "f728162c1315c26e",
    "tekken": "63b97e4253352e6f",
    "tiny_aya": "d772b220ace2baec",
    "trillion": "1994ffd01900cfb3",
    "ufakzeka": "653660222fb704f6",
    "viking": "7fc505bd3104ca10",
    "youtu": "9d70134b369a70e5",
}


def find(tokenizer: Mapping[str, Any], path: Path, *, pre: str | None = None) -> str:
    """llama.cpp's name for how `tokenizer`, the parsed tokenizer.json at `path`, splits a text; `pre` if given, once checked.

    Raises:
        UsageError: `pre` is no name that llama.cpp knows, or no name is found.
        DataError: tokenizer.json cannot be loaded.
    """
    if pre is not None:
        if pre not in NAMES:
            raise UsageError(
                f"llama.cpp knows no pre-tokenizer {pre!r}", code="LK0606", next=f"known: {', '.join(sorted(NAMES))}"
            )
        return pre
    steps = [_plain(part) for part in parts(tokenizer["pre_tokenizer"])]
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    for name, known, known_ignore in STRUCTURES:
        if steps == list(known) and ignore_merges == known_ignore:
            return name
    found = _by_hash(path)
    if found is None:
        raise UsageError(
            "this tokenizer splits text in a way that llmkit does not know in llama.cpp",
            code="LK0606",
            where=str(path),
            next=f"name llama.cpp's pre-tokenizer with `pre` ({', '.join(name for name, _, _ in STRUCTURES)}, …) "
            f"if you know it; found {orjson.dumps(steps).decode()[:200]}",
        )
    return found


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    """One step without what does not change ids. These expressions match every character: to remove all else is to isolate."""
    plain = {key: value for key, value in part.items() if key != "trim_offsets"}
    if plain.get("type") == "Split" and (plain.get("behavior"), plain.get("invert")) == ("Removed", True):
        plain |= {"behavior": "Isolated", "invert": False}
    return plain


def _by_hash(path: Path) -> str | None:
    import tokenizers

    try:
        ids = tokenizers.Tokenizer.from_file(str(path)).encode(_TEXT).ids
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise DataError(f"tokenizer.json is damaged: {error}", code="LK0607", where=str(path)) from None
    digest = sha256(str(ids).encode()).hexdigest()[:16]
    return next((name for name, hashes in _HASHES.items() if digest in hashes.split()), None)


def parts(component: Any) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer of tokenizer.json as the list it is a sequence of."""
    if component is None:
        return []
    if component.get("type") == "Sequence":
        inner = component.get("pretokenizers", component.get("normalizers", []))
        return [part for child in inner for part in parts(child)]
    return [component]
