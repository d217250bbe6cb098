"""The other libraries of native code: whether each loads here. Imports them: run in a process of its own."""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from llmkit.doctor.finding import Finding

# Module → the package it comes from, and what it is needed for.
_MODULES = {
    "xllamacpp": ("xllamacpp", "llama.cpp: chat, serve and eval of GGUF files, and the proof of an export"),
    "libgguf": ("libgguf", "quantizing to GGUF types"),
    "pyarrow": ("pyarrow", "Parquet and Arrow files"),
    "orjson": ("orjson", "reading data"),
    "zstandard": ("zstandard", "packed data"),
    "xxhash": ("xxhash", "duplicates"),
    "opencc": ("opencc", "traditional and simplified Chinese"),
    "ahocorasick_rs": ("ahocorasick-rs", "sensitive words"),
    "rouge_score_rs": ("rouge-score-rs", "ROUGE"),
    "safetensors": ("safetensors", "weights"),
}


def libraries(folder: Path) -> Iterator[Finding]:
    good = []
    for module, (package, purpose) in _MODULES.items():
        if importlib.util.find_spec(module) is None:  # said already, among the packages
            continue
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            what = f"{package} does not load: {(str(error).splitlines() or [''])[0][:200]}"
            yield Finding("error", "libraries", what, f"it is for {purpose}", f"pip install --force-reinstall {package}")
        else:
            good.append("llama.cpp (xllamacpp)" if module == "xllamacpp" else package)
    if good:
        yield Finding("ok", "libraries", f"these load: {', '.join(good)}")


PROBES = (libraries,)
