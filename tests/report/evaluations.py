"""One evaluation with something of everything, its numbers those of a real run where there are any. Also a hundred samples."""

import math
from typing import Any

_ROWS = {
    # bleu, rouge1, rouge2, rougeL, chrf, retention, kl, MB, tokens a second, MB of memory, perplexity, runtime
    "base": (0.6, 5.1, 1.2, 5.0, 11.4, None, 4.262, 551, 81.0, 3211, 71.32, "transformers on cpu"),
    "merged": (2.5, 19.2, 8.9, 17.8, 11.6, 1.0, 0.0, 569, 64.2, 3029, 2.831, "transformers on cpu"),
    "int8": (2.5, 20.8, 10.1, 19.6, 12.3, 0.996, 0.019, 470, 12.8, 3446, 2.869, "bitsandbytes on cpu"),
    "nf4": (2.5, 17.0, 8.4, 15.9, 11.5, 0.916, 0.356, 425, 16.1, 1905, 3.903, "bitsandbytes on cpu"),
    "q8_0": (2.9, 20.5, 9.6, 19.1, 12.5, 1.0, 0.001, 292, 36.5, 415, 2.834, "llama.cpp on cpu"),
    "q4_k_m+lora": (2.3, 19.0, 8.8, 17.7, 12.3, 1.0, 0.0, 261, 32.9, 399, 2.832, "llama.cpp on cpu"),
    "q5_k_m": (2.6, 18.3, 7.7, 16.9, 12.4, 0.988, 0.053, 260, 34.1, 387, 2.966, "llama.cpp on cpu"),
    "q4_k_m": (0.8, 8.1, 1.9, 7.8, 12.1, 0.705, 1.258, 253, 38.3, 393, 9.212, "llama.cpp on cpu"),
}
_METRICS = ("bleu", "rouge1", "rouge2", "rougeL", "chrf")


def _model(name: str) -> dict[str, Any]:
    *scores, retention, kl, size, speed, memory, perplexity, runtime = _ROWS[name]
    metrics = dict(zip(_METRICS, scores, strict=True))
    intervals = {key: [max(0.0, value - 0.4 - value / 9), value + 0.4 + value / 8] for key, value in metrics.items()}
    divergence = {
        **{"tokens": 2311, "mean": kl, "mean_error": kl / 20, "median": kl / 4, "p99": kl * 9, "same_top": math.exp(-kl / 2)},
        **{"rms_dp": kl / 10, "log_perplexity_ratio": math.log(perplexity / 2.831), "log_perplexity_ratio_error": kl / 15},
    }
    more = {"exact_match": 1.0, "f1": scores[1], "distinct1": 31.2, "distinct2": 62.9, "repetition": 8.4, "length_ratio": 0.83}
    return {
        "metrics": {**metrics, **more, "refusals": 2.0},
        "intervals": {**intervals, "f1": intervals["rouge1"], "exact_match": [0.0, 3.0], "length_ratio": [0.74, 0.93]},
        **{"perplexity": perplexity, "divergence": None if name == "merged" else divergence, "kl": kl, "retention": retention},
        **{"log_probability": -0.41, "size_bytes": size * 10**6, "tokens_per_second": speed, "n_samples": 100},
        **{"peak_memory_bytes": memory * 10**6, "stopped": 0.94, "failed": 0, "runtime": runtime, "batch_size": 32},
        "fingerprint": f"{sum(map(ord, name)):064x}",
    }


def _check(model: str, metric: str, verdict: str, why: str, **more: Any) -> dict[str, Any]:
    known = {"kind": "max_drop", "limit": 1.0, "value": 17.0, "baseline": 17.8, "drop": 0.8, "lower_bound": -0.9}
    return {"model": model, "metric": metric, "verdict": verdict, "why": why, **known, **more}


def _gate() -> dict[str, Any]:
    checks = [
        _check("q8_0", "rougeL", "pass", "", value=19.1, drop=-1.3, lower_bound=-2.4),
        _check(
            "nf4", "rougeL", "unknown", "a drop of 1 could not be told from none: 640 samples would do", value=15.9, drop=1.9
        ),
        _check("q4_k_m", "rougeL", "fail", "fell by 10.0, at least 8.1", value=7.8, drop=10.0, lower_bound=8.1),
        _check(
            "q8_0",
            "size_bytes",
            "pass",
            "",
            kind="max_size",
            limit=3e8,
            value=2.92e8,
            baseline=None,
            drop=None,
            lower_bound=None,
        ),
    ]
    return {"verdict": "fail", "checks": checks}


def _breakdown() -> dict[str, Any]:
    def group(share: float, samples: int) -> dict[str, Any]:
        models = {name: {"rougeL": row[3] * share, "bleu": row[0] * share} for name, row in _ROWS.items()}
        return {"n_samples": samples, "models": models}

    return {
        "language": {"zh": group(1.1, 55), "en": group(0.9, 45)},
        "source": {"ChatterBot · greetings.yml": group(1.3, 20), "客服对话.jsonl": group(0.95, 80)},
    }


def _lineage() -> list[dict[str, Any]]:
    def step(name: str, verb: str, facts: dict[str, Any], **inputs: str) -> dict[str, Any]:
        return {"name": name, "step": verb, "fingerprint": (name[0] * 4 + "5e0f") * 8, "inputs": inputs, "facts": facts}

    made = {name: (name[0] * 4 + "5e0f") * 8 for name in ("chats.jsonl", "dataset", "adapter", "gemma-3-270m", "merged")}
    return [
        step("report", "eval", {"n_samples": 100}, merged=made["merged"], dataset=made["dataset"]),
        step("merged", "merge", {"tensors": 236}, base=made["gemma-3-270m"], adapter=made["adapter"]),
        step("adapter", "finetune", {"objective": "orpo", "steps": 151}, dataset=made["dataset"], base=made["gemma-3-270m"]),
        step("dataset", "clean", {"read": 2676, "kept": 1508}, source=made["chats.jsonl"]),
        step("gemma-3-270m", "source", {"bytes": 551_000_000}),
        step("chats.jsonl", "source", {"bytes": 1_204_332, "sha256": "c" * 64}),
    ]


def report() -> dict[str, Any]:
    return {
        **{"format": 1, "name": "chinese-chat", "reference": "merged", "n_samples": 100},
        "settings": {
            **{"decoding": "greedy", "max_new_tokens": 48, "temperature": 0.0, "top_p": 1.0, "beams": 1, "seed": 0},
            **{"prompts": "9f" * 32, "kl_dialogues": 40},
        },
        "signatures": {
            "bleu": "nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.5.1",
            "chrf": "nrefs:1|nc:6|nw:0|space:no",
        },
        "models": {name: _model(name) for name in _ROWS},
        "breakdown": _breakdown(),
        "tasks": {"cmmlu": {name: {"acc": 0.25 + row[3] / 100, "acc_stderr": 0.031} for name, row in _ROWS.items()}},
        "code": {
            name: {"pass@1": 12.5, "pass@5": 30.1, "syntax_valid": 0.8, "complexity": 2.4, "intervals": {"pass@1": [4.0, 24.0]}}
            for name in ("base", "merged")
        },
        "review": {
            **{
                "models": ["merged", "base"],
                "wins": 51,
                "losses": 12,
                "ties": 9,
                "bad": 8,
                "items": 40,
                "identical": 4,
            },
            **{"win_rate": 0.74, "interval": [0.64, 0.83], "raters": 2, "agreement": 0.61},
        },
        "gate": _gate(),
        "lineage": _lineage(),
        "command": "llmkit eval --recipe chinese-chat.yaml --set eval.max_samples=100",
        "warnings": ["q4_k_m lost the fine-tune: it kept 71 % of it (retention 0.705)"],
    }


def samples(count: int = 100) -> list[dict[str, Any]]:
    """Questions in Chinese and English; the answers of q4_k_m are those of a model that lost what it was taught."""
    asked = [("你叫什么名字？", "我叫小明，很高兴认识你。"), ("What is a computer made of?", "Silicon, copper and patience.")]
    found = []
    for number in range(count):
        question, expected = asked[number % 2]
        prompt = [{"role": "system", "content": "用一句话回答。"}, {"role": "user", "content": f"{question} ({number})"}]
        lost = f"As a large language model, I … {number}\n" * (1 + number % 4)
        answers = dict.fromkeys(_ROWS, expected) | {"base": "我是一个语言模型，" * 3, "q4_k_m": lost}
        scores = {name: 100.0 - (number * 7 + len(name)) % 20 for name in _ROWS} | {"base": 3.0, "q4_k_m": float(number % 9)}
        known = {"id": f"{number:016x}", "language": ("zh", "en")[number % 2], "source": "chats.jsonl"}
        found.append({**known, "prompt": prompt, "reference": expected, "answers": answers, "scores": scores})
    found[7] |= {"failures": {"nf4": "the prompt is longer than the context"}}
    found[7]["scores"]["nf4"] = 0.0
    return found
