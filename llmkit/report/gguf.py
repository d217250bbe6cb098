"""How the inspection of a GGUF file looks in a terminal. Knows the shape of its data; reads no file.

Names and texts are a stranger's, so control characters are spelled out, and nothing is printed at length.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# What could hide or move what a terminal or a page shows.
HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udfff]")
_WIDEST, _MOST_KEYS = 100, 200


def render(inspected: Mapping[str, Any], findings: Sequence[Mapping[str, str]]) -> str:
    """Sizes, types, metadata and findings as lines of text.

    `inspected`: {"files": [{"path", "bytes"}], "version", "architecture", "file_type", "tensors", "parameters",
    "tensor_bytes", "bits_per_weight", "types": {type: {"tensors", "bytes"}}, "metadata"}; a finding: {"check", "severity",
    "what", "why", "fix"}.
    """
    return "\n".join([*_head(inspected), *_types(inspected["types"]), *_metadata(inspected["metadata"]), *_findings(findings)])


def _head(inspected: Mapping[str, Any]) -> list[str]:
    lines = [f"{visible(one['path'])}: {_megabytes(one['bytes'])}" for one in inspected["files"]]
    kind = visible(inspected["architecture"] or "unknown architecture")
    size = inspected["bits_per_weight"]
    lines.append(
        f"GGUF version {inspected['version']}; {kind}; {inspected['parameters']:,} parameters in {inspected['tensors']} tensors"
        + (f"; {size:.2f} bits a weight" if size is not None else "")
        + (f"; file type {inspected['file_type']}" if inspected["file_type"] else "")
    )
    return lines


def _types(types: Mapping[str, Mapping[str, int]]) -> list[str]:
    width = max(map(len, types), default=0)
    return [f"  {name:<{width}}  {one['tensors']:>5} tensors  {_megabytes(one['bytes']):>12}" for name, one in types.items()]


def _metadata(metadata: Mapping[str, Any]) -> list[str]:
    shown = list(metadata.items())[:_MOST_KEYS]
    lines = [f"{_short(key)}: {_short(_told(value))}" for key, value in shown]
    return [*lines, f"… and {len(metadata) - len(shown)} keys more"] if len(metadata) > len(shown) else lines


def _findings(findings: Sequence[Mapping[str, str]]) -> list[str]:
    if not findings:
        return ["nothing found amiss"]
    lines = []
    for one in findings:
        lines += [f"{one['severity']}: {visible(one['what'])} [{one['check']}]"]
        lines += [f"  why: {visible(one['why'])}", f"  do:  {visible(one['fix'])}"]
    return lines


def visible(value: object) -> str:
    """`value` as text that cannot move a terminal's cursor."""
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['length']} values, first {json.dumps(value['first'], ensure_ascii=False)}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    shown = text[: _WIDEST + 1].replace("\n", "⏎")
    return visible(shown if len(text) <= _WIDEST else f"{shown[:_WIDEST]}… ({len(text)} characters)")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
