"""llama.cpp's server in a process of its own. Knows xllamacpp and three lines of talk; `runtime.py` holds the other end.

Reads its settings as one JSON line on stdin and answers {"address": …}; each further line asks for the peak memory;
the end of stdin ends the process, so it never outlives its parent.
"""

import json
import os
import signal
import sys
from typing import Any

from llmkit import memory
from llmkit.gguf import event_stream

_CHECKPOINTS = 4
_WARNINGS = 2


def main() -> None:
    # A Ctrl-C in the terminal and a service manager's SIGTERM reach the whole group; the parent decides when this ends.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    # llama.cpp may print to fd 1: keep that for ourselves and give it stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = _serve(json.loads(sys.stdin.readline()))
    print(json.dumps({"address": server.listening_address}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"peak_memory_bytes": memory.peak_bytes()}), file=answers, flush=True)
    os._exit(0)  # the server's threads need no farewell


def _serve(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.n_ctx = settings["context"] * settings["slots"]
    params.n_parallel = settings["slots"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.offline = True
    params.ui = False
    params.warmup = False
    # A stream takes a thread of its own for as long as it lasts; its slots' streams must not keep out a short question.
    params.n_threads_http = settings["slots"] + 4
    params.sse_ping_interval = event_stream.PING_SECONDS
    params.fit_params = False  # take the context asked for, or fail
    params.ctx_shift = False
    # A prompt found in a cache is computed in other batches, which may change the last bits of its logits.
    params.cache_prompt = settings["reuse"]
    if settings["reuse"]:
        params.verbosity = _WARNINGS  # it may run for months, and tells of each request else
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    # Where a model's attention has a window, what left it is gone, and a prompt can go on from a checkpoint only.
    params.n_ctx_checkpoints = _CHECKPOINTS if settings["reuse"] else 0
    if settings["adapter"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(settings["adapter"], 1.0)]
    if settings["exact_attention"]:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    try:
        return xllamacpp.Server(params)
    except RuntimeError:
        os._exit(1)  # llama.cpp's own log, on stderr, says why


if __name__ == "__main__":
    main()
