"""Which GGML type each tensor of a file gets. Knows llama.cpp's mixtures; nothing of weights or files.

Follows `llama_tensor_get_type` and `tensor_type_fallback` of llama.cpp's src/llama-quant.cpp (as in llama-cpp-python 0.3.36),
so that a file made here holds what `llama-quantize` would have chosen. Its counters of `attn_v` and `ffn_down` run over the
tensors sorted by layer, which in the architectures here is the number of the layer: a choice depends on no other tensor.
"""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from llmkit.errors import UsageError

Q = GGMLQuantizationType


@dataclass(frozen=True)
class ModelShape:
    """What of a model the mixtures ask for. `tied`: the embedding also makes the logits."""

    architecture: str
    layers: int
    heads: int
    key_value_heads: int
    tied: bool


@dataclass(frozen=True)
class Choice:
    """A tensor's type; `fell_back`: its rows do not divide into the blocks of the one that the mixture wants."""

    type: GGMLQuantizationType
    fell_back: bool


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands; `guided`: the quantizer has an importance matrix, of whatever tensors."""

    layer: int
    model: ModelShape
    guided: bool


Condition = Callable[[_Place], bool]
Rule = tuple[GGMLQuantizationType, *tuple[Condition, ...]]


def _guided(place: _Place) -> bool:
    return place.guided


def _alone(place: _Place) -> bool:
    return not place.guided


def _shared(place: _Place) -> bool:
    """Four query heads or more to one key-value head: `attn_v` is small and used often."""
    return place.model.heads // place.model.key_value_heads >= 4


def _early(place: _Place) -> bool:
    return place.layer < place.model.layers // 8


def _very_early(place: _Place) -> bool:
    return place.layer < place.model.layers // 16


def _more_bits(place: _Place) -> bool:
    """The first and last eighth, and every third between."""
    eighth = place.model.layers // 8
    return _early(place) or place.layer >= 7 * place.model.layers // 8 or (place.layer - eighth) % 3 == 2


def _first(count: int) -> Condition:
    return lambda place: place.layer < count


@dataclass(frozen=True)
class FileType:
    """One value of `export.type`: `base`, but for a role (such as attn_v) with rules the first whose conditions all hold."""

    name: str
    base: GGMLQuantizationType
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)

    @property
    def code(self) -> LlamaFileType:
        """`general.file_type` of such a file."""
        return LlamaFileType["ALL_F32" if self.base is Q.F32 else f"MOSTLY_{self.name.upper()}"]


def _below_two_bits(base: GGMLQuantizationType) -> dict[str, tuple[Rule, ...]]:
    """Rules of the file types of about two bits and fewer, `base` for what is sensitive."""
    return {"attn_v": ((Q.Q4_K, _shared), (base,)), "ffn_down": ((base, _early),)}


_IQ2 = _below_two_bits(Q.Q2_K) | {"token_embd": ((Q.Q2_K,),)}
_IQ2_LARGE = _below_two_bits(Q.IQ3_S) | {"attn_output": ((Q.IQ3_S,),), "token_embd": ((Q.IQ3_S,),)}
_IQ1 = _IQ2 | {"attn_output": ((Q.IQ2_XXS,),)}
_IQ4: dict[str, tuple[Rule, ...]] = {"attn_v": ((Q.Q5_K, _shared),), "ffn_down": ((Q.Q5_K, _alone, _early),)}
_MEDIUM: dict[str, tuple[Rule, ...]] = {"attn_v": ((Q.Q6_K, _more_bits),), "ffn_down": ((Q.Q6_K, _more_bits),)}

TYPES = {
    entry.name: entry
    for entry in (
        FileType("f32", Q.F32),
        FileType("f16", Q.F16),
        FileType("bf16", Q.BF16),
        FileType("q8_0", Q.Q8_0),
        FileType("q4_0", Q.Q4_0, {"ffn_down": ((Q.Q4_1, _guided, _early),)}),
        FileType("q4_1", Q.Q4_1),
        FileType("q5_0", Q.Q5_0, {"ffn_down": ((Q.Q5_1, _guided, _early),)}),
        FileType("q5_1", Q.Q5_1),
        FileType(
            "q2_k",
            Q.Q2_K,
            {"attn_v": ((Q.Q4_K, _shared), (Q.Q3_K,)), "ffn_down": ((Q.Q3_K,),), "attn_output": ((Q.Q3_K,),)},
        ),
        FileType("q3_k_s", Q.Q3_K),
        FileType(
            "q3_k_m",
            Q.Q3_K,
            {
                "attn_v": ((Q.Q5_K, _first(2)), (Q.Q4_K,)),
                "ffn_down": ((Q.Q5_K, _very_early), (Q.Q4_K,)),
                "attn_output": ((Q.Q4_K,),),
            },
        ),
        FileType("q3_k_l", Q.Q3_K, dict.fromkeys(("attn_v", "ffn_down", "attn_output"), ((Q.Q5_K,),))),
        FileType("q4_k_s", Q.Q4_K, {"attn_v": ((Q.Q5_K, _first(4)),), "ffn_down": ((Q.Q5_K, _early),)}),
        FileType("q4_k_m", Q.Q4_K, _MEDIUM),
        FileType("q5_k_s", Q.Q5_K),
        FileType("q5_k_m", Q.Q5_K, _MEDIUM),
        FileType("q6_k", Q.Q6_K),
        FileType("iq4_nl", Q.IQ4_NL, _IQ4),
        FileType("iq4_xs", Q.IQ4_XS, _IQ4),
        FileType("iq3_s", Q.IQ3_S, {"attn_v": ((Q.Q4_K, _shared),)}),
        FileType(
            "iq3_m",
            Q.IQ3_S,
            {"attn_v": ((Q.Q4_K,),), "ffn_down": ((Q.Q4_K, _early),), "attn_output": ((Q.Q4_K,),)},
        ),
        FileType(
            "iq3_xxs",
            Q.IQ3_XXS,
            {
                "token_embd": ((Q.IQ3_S,),),
                "attn_q": ((Q.IQ2_S,),),
                "attn_k": ((Q.IQ2_S,),),
                "attn_v": ((Q.Q4_K, _shared), (Q.IQ3_S, _alone)),
                "ffn_down": ((Q.Q4_K, _alone, _early), (Q.Q3_K, _alone)),
                "attn_output": ((Q.IQ3_S,),),
            },
        ),
        FileType("iq2_m", Q.IQ2_S, _IQ2_LARGE),
        FileType("iq2_s", Q.IQ2_XS, _IQ2_LARGE),
        FileType("iq2_xs", Q.IQ2_XS, _IQ2),
        FileType("iq2_xxs", Q.IQ2_XXS, _IQ2),
        FileType("iq1_m", Q.IQ1_M, _IQ1),
        FileType("iq1_s", Q.IQ1_S, _IQ1),
    )
}

_NOT_QUANTIZED = {Q.F32, Q.F16, Q.BF16}
NEEDS_IMPORTANCE = frozenset({Q.IQ3_XXS, Q.IQ2_S, Q.IQ2_XS, Q.IQ2_XXS, Q.IQ1_M, Q.IQ1_S})
# What stands in where a row does not divide into blocks of 256; f16 where it does not divide into 32 either.
_FALLBACK = {Q.Q2_K: Q.Q4_0, Q.Q3_K: Q.Q4_0, Q.Q4_K: Q.Q5_0, Q.Q5_K: Q.Q5_1, Q.Q6_K: Q.Q8_0}
_FALLBACK |= dict.fromkeys((*NEEDS_IMPORTANCE, Q.IQ3_S, Q.IQ4_XS), Q.IQ4_NL)


def file_type(name: str) -> FileType:
    """Raises UsageError, naming the known types, for any other name."""
    if name not in TYPES:
        raise UsageError(f"no GGUF type {name!r}", code="LK0609", next=f"known: {', '.join(TYPES)}")
    return TYPES[name]


def assign(
    file_type: FileType, tensors: Sequence[tuple[str, tuple[int, ...]]], model: ModelShape, *, imatrix: Container[str] = ()
) -> list[Choice]:
    """The type of each of `tensors`, which are (GGUF name, shape with the rows last), in their order.

    `imatrix` holds the names of the tensors whose importance is known. It changes choices even of others, as in llama.cpp.

    Raises:
        UsageError: a tensor's type would make noise of it without its importance.
    """
    guided = bool(imatrix)
    chosen = [_choose(file_type, name, shape, model, guided=guided) for name, shape in tensors]
    for (name, _), choice in zip(tensors, chosen, strict=True):
        whole_vocabulary = name in ("token_embd.weight", "output.weight")
        if choice.type in NEEDS_IMPORTANCE and not whole_vocabulary and name not in imatrix:
            lack = f"the importance matrix lacks {name}" if guided else "there is none"
            raise UsageError(
                f"{file_type.name} needs an importance matrix, and {lack}",
                code="LK0610",
                next="make one from this model and its training data, or take a type that needs none, such as iq3_s or q2_k",
            )
    return chosen


def _choose(file_type: FileType, name: str, shape: tuple[int, ...], model: ModelShape, *, guided: bool) -> Choice:
    if len(shape) < 2 or not name.endswith("weight") or "_norm.weight" in name:
        return Choice(Q.F32, fell_back=False)
    if file_type.base in _NOT_QUANTIZED:
        return Choice(file_type.base, fell_back=False)
    wanted = _wanted(file_type, name, shape[-1], model, guided=guided)
    if _divides(shape[-1], wanted):
        return Choice(wanted, fell_back=False)
    instead = _FALLBACK.get(wanted, wanted)
    return Choice(instead if _divides(shape[-1], instead) else Q.F16, fell_back=True)


def _wanted(file_type: FileType, name: str, width: int, model: ModelShape, *, guided: bool) -> GGMLQuantizationType:
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        return _for_logits(file_type.base, width)
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if found is None:
        return file_type.base
    layer, role = int(found[1] or 0), found[2].replace("attn_qkv", "attn_v")
    place = _Place(layer, model, guided)
    wanted = file_type.base
    for type, *conditions in file_type.rules.get(role, ()):
        if all(holds(place) for holds in conditions):
            wanted = type
            break
    if role == "attn_v" and _seventy_b(model) and wanted in (Q.Q3_K, Q.Q4_K) and not _two_bits(file_type.base):
        return Q.Q5_K
    return wanted


def _for_logits(base: GGMLQuantizationType, width: int) -> GGMLQuantizationType:
    if base is Q.Q8_0 or not _divides(width, base):
        return Q.Q8_0
    return Q.Q5_K if base in NEEDS_IMPORTANCE else Q.Q6_K


def _divides(width: int, type: GGMLQuantizationType) -> bool:
    return int(width % GGML_QUANT_SIZES[type][0]) == 0


def _seventy_b(model: ModelShape) -> bool:
    """Llama 2/3 70B, whose attn_v is an eighth of attn_q; llama.cpp takes each Qwen 2 of 80 layers for one."""
    grouped = model.architecture == "llama" and model.heads != model.key_value_heads
    return model.layers == 80 and (grouped or model.architecture == "qwen2")


def _two_bits(base: GGMLQuantizationType) -> bool:
    return base in NEEDS_IMPORTANCE and base is not Q.IQ3_XXS
