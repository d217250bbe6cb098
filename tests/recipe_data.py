"""Small data for each bundled recipe, laid where the recipe looks for it, and a tiny model of its family."""

import json
from pathlib import Path
from typing import Any

from tests.gguf.families import FAMILIES

CITIES = ["Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Lisbon", "Athens", "Dublin", "Prague", "Warsaw"]
FOODS = ["米饭", "面条", "饺子", "包子", "豆腐", "烤鸭", "火锅", "春卷", "汤圆", "月饼", "粽子", "馒头"]
TOOLS = ["sort", "reverse", "count", "merge", "split", "filter", "map", "join", "zip", "sum", "scan", "fold"]
# What each recipe starts from: a family of tests.gguf.families.
FAMILY = {
    "chinese-chat": "gemma2",
    "ci-gate": "gemma3",
    "code-assistant": "qwen2",
    "customer-service": "qwen2",
    "gemma2-27b-gguf": "gemma2",
    "llama2-13b-domain": "llama2",
    "llama2-7b-domain": "llama2",
    "llama3-8b-chinese-v1": "llama3",
    "llama3-8b-chinese-v2": "llama3",
    "mistral-7b-chinese": "mistral",
    "phi3-mini-edge": "phi3",
    "quickstart": "gemma3",
    "qwen3-0.6b-laptop": "qwen3",
}


def pairs() -> list[dict[str, Any]]:
    """Preference pairs, in English and Chinese; a fourth of them without the rejected answer."""
    english = [(f"Tell me about {city}, will you?", f"{city} is a fine old city to walk in.", "No.") for city in CITIES]
    chinese = [(f"请问{food}怎么做才好吃？", f"做{food}要用新鲜的材料，慢慢来。", "不知道。") for food in FOODS]
    records = [{"prompt": asked, "chosen": good, "rejected": bad} for asked, good, bad in [*english, *chinese]]
    chats = [chat(f"What do people eat in {city}?", f"In {city} they eat bread and soup.") for city in CITIES]
    return [*records, *chats]


def chats() -> list[dict[str, Any]]:
    """Exchanges and longer talks, in Chinese and English."""
    found = [chat(f"Which way to {city}, please?", f"To {city} you go north.", "Thank you!", "Gladly.") for city in CITIES]
    found += [chat(f"你们有{food}吗？", f"有的，{food}今天很新鲜。") for food in FOODS]
    return found + [chat(f"How far is {city}?", f"{city} is a day from here.") for city in CITIES]


def programs() -> list[dict[str, Any]]:
    """Instructions with programs."""
    code = "```python\ndef {0}(values):\n    return {0}d(values)\n```"
    tasks = [(f"Write a function that can {tool} a list.", code.format(tool)) for tool in TOOLS]
    tasks += [(f"写一个函数，{tool} 一个列表。", f"用 {tool}：\n" + code.format(tool)) for tool in TOOLS]
    return [{"instruction": asked, "input": "", "output": answer} for asked, answer in tasks]


def chat(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]}


def lay(name: str, folder: Path) -> None:
    """Everything that the recipe `name` looks for in the folder where it runs."""
    data = folder / "data"
    (data / "chats").mkdir(parents=True)
    records = pairs() if "chinese" in name else programs() if name == "code-assistant" else chats()
    place = data / "chats" if name == "customer-service" else data
    write(place / "records.jsonl", records)
    if name == "customer-service":
        private = chat("我的电话是13812345678，请回电。", "好的，稍后给您回电。")
        write(place / "more.jsonl", [private, chat("<b>在吗</b>？", "在的，请说。"), chat("卖毒药吗？", "不卖。")])
        (data / "words.txt").write_text("毒药\n", "utf-8")
        (data / "terms.csv").write_text("variant,standard\n小笼包,包子\n", "utf-8")
        write(data / "exam.jsonl", [chat("你们几点开门？", "九点。")])


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def tiny(name: str, folder: Path) -> Path:
    """A tiny model of the recipe's family; where the recipe takes the model's own chat template, it has one."""
    family = FAMILIES[FAMILY[name]]
    family.build(folder)
    (folder / "chat_template.jinja").write_text(family.template, "utf-8")
    return folder
