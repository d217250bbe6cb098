"""Feeds damaged GGUF, safetensors and model files to everything that reads them; run as a process of its own.

`python -m tests.gguf.fuzzing FOLDER COUNT SEED` prints one JSON object: how many inputs were refused and how many accepted,
and what went wrong. Memory is limited, every input has its time, and every file that is opened is watched.
"""

import contextlib
import copy
import faulthandler
import json
import random
import resource
import shutil
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from llmkit.engine import shards
from llmkit.errors import LlmkitError
from llmkit.gguf import container, convert, imatrix, read, restore, weights
from tests.gguf import raw_gguf
from tests.gguf.raw_gguf import Tensor, Value

_MEMORY = 1 << 30  # bytes beyond what the process has when it begins
_SECONDS = 10.0  # for one input, on a machine that has other work
_HUGE = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]
_ODD: list[Any] = [None, True, -1, 0, 2**31, 2**63, 10**400, 1.5, -1e308, "", "x", "../x", "\0", [], [1], [[]], {}, {"a": 1}]
_INDEX = "model.safetensors.index.json"
_DEPTH = 100_000
_LONGEST = 1000  # characters of an error
Chosen = random.Random


class _Run:
    """One folder in which everything happens; `base` holds the undamaged files."""

    def __init__(self, folder: Path) -> None:
        self.base, self.case, self.out = folder / "base", folder / "case", folder / "out"
        self.base.mkdir()
        raw_gguf.tiny(self.base / "m.gguf")
        (self.base / "model").mkdir()
        restore.restore(self.base / "m.gguf", self.base / "model")
        sums = {"blk.0.attn_q.weight": np.ones(16, "<f4"), "blk.0.ffn_up.weight": np.ones(16, "<f4")}
        imatrix.write(imatrix.Imatrix(sums, dict.fromkeys(sums, 7), ("x",), 1), self.base / "m.imatrix")
        legacy = struct.pack("<i", 1) + struct.pack("<i", 3) + b"abc" + struct.pack("<ii16f", 2, 16, *range(16))
        (self.base / "m.dat").write_bytes(legacy + struct.pack("<ii", 1, 1) + b"x")

    def fresh(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def read_gguf(self, path: Path) -> None:
        container.open_split(path)
        with contextlib.suppress(LlmkitError):  # restoring, too, must see what this refuses
            read.state_dict(path)
        restore.restore(path, self.fresh(self.out))

    def read_model(self, folder: Path) -> None:
        with contextlib.suppress(LlmkitError):
            found = weights.Weights(folder)
            for name in found.names:
                with contextlib.suppress(LlmkitError):
                    found[name]
        with contextlib.suppress(LlmkitError):
            shards.entries(folder)
        self.fresh(self.out)
        convert.export(folder, self.out / "m.gguf", type="q8_0", template="", name="m", workers=1)


def _flip(data: bytes, chosen: Chosen, within: int) -> bytes:
    flipped = bytearray(data)
    for _ in range(chosen.randint(1, 8)):
        flipped[chosen.randrange(min(within, len(data)))] ^= 1 << chosen.randrange(8)
    return bytes(flipped)


def _numbers(data: bytes, chosen: Chosen, within: int) -> bytes:
    changed = bytearray(data)
    for _ in range(chosen.randint(1, 3)):
        at, width = chosen.randrange(min(within, len(data) - 8)), chosen.choice([4, 8])
        changed[at : at + width] = (chosen.choice(_HUGE) % 2 ** (8 * width)).to_bytes(width, "little")
    return bytes(changed)


def _cut(data: bytes, chosen: Chosen, within: int) -> bytes:
    return data[: chosen.randrange(chosen.choice([64, within, len(data)]))]


_BYTES: list[Callable[[bytes, Chosen, int], bytes]] = [_flip, _numbers, _cut]


def _damaged_bytes(source: Path, run: _Run, chosen: Chosen) -> Path:
    data = source.read_bytes()
    path = run.fresh(run.case) / source.name
    path.write_bytes(chosen.choice(_BYTES)(data, chosen, chosen.choice([80, 400, 12_000])))
    return path


def _value(chosen: Chosen, depth: int = 0) -> Value:
    kind = chosen.choice(["u8", "i8", "u16", "i32", "u32", "u64", "i64", "f32", "f64", "bool", "str", "["])
    if kind == "[" and depth < 6:
        items = [_value(chosen, depth + 1)] * chosen.choice([0, 1, 3])
        return Value(f"[{items[0].type}]", [item.value for item in items]) if items else Value("[u8]", [])
    if kind in ("str", "["):
        return Value(
            "str", chosen.choice(["", "llama", "gpt2", "\0", "../../x", "x" * 5000, "qwen2", "none", "yarn", "linear"])
        )
    if kind in ("f32", "f64"):
        return Value(kind, chosen.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), 1e-40]))
    signed, bits = kind[0] == "i", int(kind[1:]) if kind != "bool" else 1
    return Value(
        kind, chosen.choice([value for value in [0, 1, 2, 16, 270, *_HUGE, -1, -(2**31)] if _fits(value, bits, signed=signed)])
    )


def _fits(value: int, bits: int, *, signed: bool) -> bool:
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    return low <= value < high


def _damaged_gguf(run: _Run, chosen: Chosen) -> Path:
    """Right in form, wrong in what it says."""
    keys, tensors = list(raw_gguf.tiny_keys().items()), raw_gguf.tiny_tensors()
    for _ in range(chosen.randint(1, 2)):
        at = chosen.randrange(len(keys))
        match chosen.randrange(9):
            case 0 | 1 | 2:
                keys[at] = (keys[at][0], _value(chosen))
            case 3:
                del keys[at]
            case 4:
                keys.append(
                    (
                        chosen.choice([keys[at][0], "llama.rope.scaling.type", "general.alignment", "split.count"]),
                        _value(chosen),
                    )
                )
            case 5:
                keys.append(("deep", Value("[" * 90 + "u8" + "]" * 90, _nested(90))))
            case _:
                tensors = _damaged_tensors(tensors, chosen)
    name = chosen.choice(["m.gguf", "m.gguf", "m-00001-of-00002.gguf", "m-00001-of-99999.gguf"])
    return raw_gguf.write(run.fresh(run.case) / name, keys, tensors, alignment=chosen.choice([32, 32, 1]))


def _nested(depth: int) -> Any:
    return [] if depth == 1 else [_nested(depth - 1)]


def _damaged_tensors(tensors: list[Tensor], chosen: Chosen) -> list[Tensor]:
    at = chosen.randrange(len(tensors))
    old = tensors[at]
    name, shape, kind, data, offset = old.name, old.shape, old.type, old.data, old.offset
    match chosen.randrange(7):
        case 0:
            name = chosen.choice(
                [tensors[0].name, "", "x", "blk.99999.attn_q.weight", "blk.0.attn_q.bias", "rope_freqs.weight", "a\nb"]
            )
        case 1:
            shape = tuple(chosen.choice([*_HUGE, 16, 32, 270]) for _ in range(chosen.randint(0, 6)))
        case 2:
            kind = chosen.choice([*(int(known) for known in GGMLQuantizationType), 4, 5, 999, 2**31])
        case 3:
            offset = chosen.choice([0, 32, 33, *_HUGE])
        case 4:
            data = chosen.choice([b"", b"\xff" * len(data), b"\x7f\x80" * (len(data) // 2)])
        case 5:
            return tensors[:at] + tensors[at + 1 :]
        case _:
            shape = tuple(reversed(shape))
    return [*tensors[:at], Tensor(name, shape, kind, data, offset), *tensors[at + 1 :]]


def _damaged_model(run: _Run, chosen: Chosen) -> Path:
    folder = run.case
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run.base / "model", folder)
    match chosen.randrange(5):
        case 0:
            file = folder / "model.safetensors"
            file.write_bytes(chosen.choice(_BYTES)(file.read_bytes(), chosen, chosen.choice([8, 64, 1500])))
        case 1:
            _relist(folder / "model.safetensors", chosen)
        case 2:
            _reindex(folder, chosen)
        case 3:
            name = chosen.choice(["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
            _change_json(folder / name, chosen)
        case _:
            file = chosen.choice(sorted(folder.iterdir()))
            match chosen.randrange(3):
                case 0:
                    file.unlink()
                case 1:
                    file.write_bytes(chosen.choice([b"", b"[]", b"null", b'{"a":' * _DEPTH, b"[" * _DEPTH, b"\xff\xfe", b"{}"]))
                case _:
                    file.write_bytes(_cut(file.read_bytes(), chosen, 400))
    return folder


def _relist(file: Path, chosen: Chosen) -> None:
    """A safetensors header that says other things of the same bytes."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    listed = json.loads(data[8 : 8 + length])
    entry = listed[chosen.choice([name for name in listed if name != "__metadata__"])]
    key = chosen.choice(list(entry))
    match chosen.randrange(5):
        case 0:
            entry[key] = copy.deepcopy(chosen.choice(_ODD))
        case 1 if key != "dtype":
            entry[key][chosen.randrange(len(entry[key]))] = chosen.choice([*_HUGE, *_ODD])
        case 2:
            entry["shape"] = [chosen.choice([2**62, 1, 0])] * chosen.choice([1, 9, 20_000])
        case 3:
            listed[chosen.choice(["../x", "x" * 5000, "lm_head.weight", "model.layers.0.self_attn.q_proj.bias"])] = dict(entry)
        case _:
            entry["dtype"] = chosen.choice(["F64", "I8", "F8_E4M3", "BOOL", "U64", "C64", "x"])
    text = json.dumps(listed).encode()
    if chosen.randrange(6) == 0:  # a name that stands there twice
        text = text[:-1] + b"," + text[1:]
    file.write_bytes((len(text) + chosen.choice([0, 0, 0, 1, -1, 2**40])).to_bytes(8, "little") + text + data[8 + length :])


def _reindex(folder: Path, chosen: Chosen) -> None:
    """An index that names another file, a file elsewhere, or no file."""
    whole = folder / "model.safetensors"
    names = list(weights.Weights(folder).names)
    whole.rename(folder / "model-00001-of-00001.safetensors")
    listed: dict[str, Any] = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    outside = str(folder.parent / "base" / "model" / "model.safetensors")
    elsewhere = [
        outside,
        "../base/model/model.safetensors",
        "../../outside.safetensors",
        "/etc/passwd",
        ".",
        "..",
        "",
        "\0",
        "x",
    ]
    listed[chosen.choice([*names, "more"])] = chosen.choice([*elsewhere, *_ODD])
    index: Any = chosen.choice([{"weight_map": listed}] * 8 + [{"weight_map": []}, {}, [], None])
    (folder / _INDEX).write_text(json.dumps(index))


def _change_json(file: Path, chosen: Chosen) -> None:
    value = json.loads(file.read_text("utf-8"))
    for _ in range(chosen.randint(1, 2)):
        holder, key = _place(value, chosen)
        if isinstance(holder, dict) and chosen.randrange(3) == 0:
            holder.pop(key, None)
        else:
            holder[key] = copy.deepcopy(chosen.choice(_ODD))  # not one list in itself
    file.write_text(json.dumps(value))


def _place(value: Any, chosen: Chosen) -> tuple[Any, Any]:
    """Somewhere in nested JSON, its upper parts likelier."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = chosen.choice(keys)
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or chosen.randrange(3) == 0:
            return value, key
        value = inner


def cases(run: _Run, count: int, seed: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """`count` inputs, the same ones for the same seed: number and kind, and what reads the input."""
    for number in range(count):
        chosen = random.Random(seed * 1_000_003 + number)
        kind = chosen.choice(["gguf bytes", "gguf", "gguf", "model", "model", "imatrix"])
        reads: Callable[[Path], object] = run.read_gguf
        if kind == "gguf bytes":
            path = _damaged_bytes(run.base / "m.gguf", run, chosen)
        elif kind == "gguf":
            path = _damaged_gguf(run, chosen)
        elif kind == "model":
            path, reads = _damaged_model(run, chosen), run.read_model
        else:
            path, reads = _damaged_bytes(run.base / chosen.choice(["m.imatrix", "m.dat"]), run, chosen), imatrix.read
        yield f"{number} {kind}", partial(reads, path)


class _Watch:
    """Every file opened while `on`: writing is for the run's folder, reading for it and for Python's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder.resolve())
        roots = (sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
        self._code = (*roots, sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[2]), "/proc/", "/sys/", "/dev/")
        self.on = False
        self.strays: list[str] = []
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link"):
            return
        if event in ("os.rmdir", "os.remove") and not Path(str(arguments[0])).is_absolute():
            return  # shutil.rmtree works by folder descriptors
        path, mode = arguments[0], arguments[1] if event == "open" else "w"
        if isinstance(path, int):
            return
        place = str(Path(path if isinstance(path, str) else bytes(path).decode("utf-8", "replace")).absolute())
        writes = bool(set(mode) & set("wax+")) if isinstance(mode, str) else bool(arguments[2] & 3)
        if not place.startswith(self._folder) and (writes or not place.startswith(self._code)):
            self.strays.append(f"{event} {place} {mode}")


def main(folder: Path, count: int, seed: int) -> dict[str, Any]:
    run = _Run(folder)
    run.read_gguf(run.base / "m.gguf")  # undamaged, nothing is refused; and whatever is imported late is imported now
    run.read_model(run.base / "model")
    for file in ("m.imatrix", "m.dat"):
        assert imatrix.read(run.base / file).names
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    watch = _Watch(folder)
    told = {"refused": 0, "accepted": 0}
    wrong: list[str] = []
    for name, reads in cases(run, count, seed):
        print(name, file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(_SECONDS, exit=True)
        watch.on = True
        try:
            reads()
            told["accepted"] += 1
        except LlmkitError as error:
            told["refused"] += 1
            if "\n" in error.what or len(error.what) > _LONGEST:
                wrong.append(f"{name}: not one line: {error.what[:200]}")
        except BaseException as error:  # noqa: BLE001 - Rust's panics are no Exception
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:300]} {_where(error)}")
        finally:
            watch.on = False
            faulthandler.cancel_dump_traceback_later()
    return {**told, "wrong": wrong, "strays": watch.strays}


def _where(error: BaseException) -> str:
    trace, places = error.__traceback__, []
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places[-4:])


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
