"""llama.cpp's own converter and quantizer, run in processes. Knows where `make oracle` put them; nothing of llmkit."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from libgguf.inspect import inspect_gguf

Array = np.ndarray[Any, Any]
FOLDER = Path(os.environ.get("LLMKIT_ORACLE") or Path(__file__).parents[2] / ".oracle").resolve()
LLAMA_CPP = FOLDER / "llama_cpp_python-0.3.36/vendor/llama.cpp"
_QUANTIZE = FOLDER / "build/bin/llama-quantize"


@dataclass(frozen=True)
class Stored:
    """A tensor as it stands in a file: `shape` with the rows last, `data` uint8 [n, bytes per row], mapped."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    data: Array


class NeedsImatrixError(Exception):
    """`llama-quantize` will not make this type without an importance matrix."""


def absent() -> str:
    """Why the oracle cannot be asked, or ""."""
    missing = [path for path in (_QUANTIZE, LLAMA_CPP / "convert_hf_to_gguf.py", FOLDER / "site") if not path.exists()]
    return f"no {missing[0]}: `make oracle` builds it" if missing else ""


def convert(model_dir: Path, out: Path, outtype: str) -> Path:
    """Run `convert_hf_to_gguf.py`; CalledProcessError with its last words where it fails."""
    _run(conversion(model_dir, out, outtype))
    return out


def conversion(model_dir: Path, out: Path, outtype: str) -> list[str]:
    """The command that `convert` runs, in `environment`."""
    return [
        sys.executable,
        str(LLAMA_CPP / "convert_hf_to_gguf.py"),
        str(model_dir),
        "--outfile",
        str(out),
        "--outtype",
        outtype,
    ]


def run_script(script: str, *arguments: str, out: Path) -> Path:
    """Run one of llama.cpp's Python scripts."""
    _run([sys.executable, str(LLAMA_CPP / script), *arguments])
    return out


def environment() -> dict[str, str]:
    """With llama.cpp's own copy of the gguf package, and what its converter needs."""
    path = os.pathsep.join((str(LLAMA_CPP / "gguf-py"), str(FOLDER / "site")))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def quantize(source: Path, out: Path, type: str, imatrix: Path | None = None) -> Path:
    """Run `llama-quantize`; raises NeedsImatrixError, or CalledProcessError with its last words where it fails otherwise."""
    try:
        _run(quantization(source, out, type, imatrix))
    except subprocess.CalledProcessError as error:
        if "requires an imatrix" in error.stderr or "Missing importance matrix" in error.stderr:
            raise NeedsImatrixError(type) from None
        raise
    return out


def quantization(source: Path, out: Path, type: str, imatrix: Path | None = None) -> list[str]:
    """The command that `quantize` runs."""
    options = [] if imatrix is None else ["--imatrix", str(imatrix)]
    return [str(_QUANTIZE), *options, str(source), str(out), type, "2"]


def tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of a GGUF file by name, in the order of the file."""
    found = {}
    for tensor in inspect_gguf(path).tensors:
        shape = tuple(reversed(tensor.shape))
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        layout = (rows, tensor.nbytes // rows)
        data = np.memmap(path, np.uint8, "r", tensor.data_offset, layout)
        found[tensor.name] = Stored(GGMLQuantizationType(tensor.qtype_value), shape, data)
    return found


def write_imatrix(importance: Mapping[str, Array], path: Path) -> Path:
    """An importance matrix in llama.cpp's GGUF format, of one chunk and one row: the sums are the means."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    for name, values in importance.items():
        writer.add_tensor(f"{name}.in_sum2", values.reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout[-2000:], done.stderr[-2000:])
