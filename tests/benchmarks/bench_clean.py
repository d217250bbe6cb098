"""How fast `clean` is beside a bare orjson loop and `datasets`, on synthetic Chinese dialogues, in one run.

    python tests/benchmarks/bench_clean.py [RECORDS]          # 200,000 by default, about 225 MB

Every figure is the best of three processes of its own, one after another in turn, so that a busy machine slows all alike.
The bare loop does the same job in the fewest lines: parse, two rules, drop what repeats, pass the raw line on. It tells no one
what it dropped. Its key is Python's hash of the texts; a loop that hashes the raw line instead does less (two spellings of a
dialogue pass) and is printed beside it.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

RECORDS = 200_000
ROUNDS = 3
COMMON = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方"
    "多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情"
    "明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给"
    "世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太"
    "量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象"
    "完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运"
)
WORDS = ["天气", "股票", "客服", "手机", "银行", "电影", "学习", "医院", "旅行", "音乐"]


def generate(path: Path, count: int) -> None:
    """Dialogues of 2 to 10 messages of about 65 characters; 5 % are short, 2 % too long, 2 % repeat, 3 % hold digits."""
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as stream:
        line = ""
        for number in range(count):
            if number % 50 or not line:
                size = 2 if rng.random() < 0.05 else rng.choice((4, 4, 6, 6, 6, 6))
                messages = [{"role": ("user", "assistant")[turn % 2], "content": _text(rng)} for turn in range(size)]
                line = json.dumps({"messages": messages}, ensure_ascii=False, separators=(",", ":"))
            stream.write(line + "\n")


def _text(rng: random.Random) -> str:
    size = 300 if rng.random() < 0.003 else min(256, max(4, int(rng.lognormvariate(4.05, 0.4))))
    text = "".join(rng.choices(COMMON, k=size))
    if rng.random() < 0.03:
        text = f"{text[: size // 2]}13{rng.randrange(10**9):09d}，{rng.choice(WORDS)}{text[size // 2 :]}"
    return text[:300]


def words(path: Path) -> None:
    """10,000 made-up sensitive words of three or four characters."""
    rng = random.Random(2)
    path.write_text("\n".join("".join(rng.choices(COMMON, k=rng.choice((4, 5)))) for _ in range(10_000)), "utf-8")


def bare(source: Path, out: Path, *, key: str) -> float:
    """The seconds it takes, without imports; so do the two below."""
    import orjson

    start = perf_counter()
    seen = set()
    with source.open("rb") as lines, out.open("wb") as kept:
        for line in lines:
            turns = orjson.loads(line)["messages"]
            if len(turns) < 3:
                continue
            texts = [turn["content"] for turn in turns]
            if max(map(len, texts)) > 256:
                continue
            name = hash(line) if key == "line" else hash(tuple(texts))
            if name in seen:
                continue
            seen.add(name)
            kept.write(line)
    return perf_counter() - start


def datasets(source: Path, out: Path) -> float:
    os.environ["HF_DATASETS_CACHE"] = str(out.parent / "cache")
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    start = perf_counter()
    seen = set()

    def keep(record: dict) -> bool:
        texts = tuple(turn["content"] for turn in record["messages"])
        if len(texts) < 3 or max(map(len, texts)) > 256 or texts in seen:
            return False
        seen.add(hash(texts))
        return True

    loaded = load_dataset("json", data_files=str(source), split="train")
    loaded.filter(keep).to_json(str(out), force_ascii=False)
    return perf_counter() - start


def llmkit(source: Path, out: Path, **options: object) -> float:
    from llmkit.artifact import Kind, foreign
    from llmkit.data import account, arrange, unpack, workers  # noqa: F401 (before the clock starts)
    from llmkit.report import cleaning  # noqa: F401
    from llmkit.steps import clean

    inputs = {"source.0": foreign(source, Kind.SOURCE)}
    out.mkdir()
    config = clean.Config(split={"train": 1, "valid": 0, "test": 0}, **options)
    start = perf_counter()
    clean.run(config, inputs, out)
    return perf_counter() - start


def _everything(folder: Path) -> dict[str, object]:
    return {
        "languages": ["zh", "en"],
        "simplify": True,
        "max_repetition": 0.3,
        "sensitive": {"words": [str(folder / "words.txt")], "action": "mask"},
        "personal": {"action": "mask"},
        "dedup": {"exact": True, "near": 0.8},
    }


def jobs(folder: Path) -> dict[str, tuple[str, dict[str, object]]]:
    """Name → the function that does it, and its options."""
    return {
        "bare loop": ("bare", {"key": "texts"}),
        "bare loop, raw line as key": ("bare", {"key": "line"}),
        "llmkit, 1 process": ("llmkit", {"workers": 1}),
        "llmkit, 2 processes": ("llmkit", {"workers": 2}),
        "llmkit, everything on": ("llmkit", {"workers": 1, **_everything(folder)}),
        "datasets": ("datasets", {}),
    }


def measure(folder: Path, name: str, source: Path) -> tuple[float, float]:
    """(seconds, peak MB) of one job in a process of its own; start-up is not counted."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    code = [sys.executable, __file__, "--job", name, str(folder), str(source)]
    printed = json.loads(subprocess.run(code, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return printed["seconds"], printed["peak"] / 1e6


def _job(name: str, folder: Path, source: Path) -> None:
    from llmkit.memory import peak_bytes

    function, options = jobs(folder)[name]
    seconds = globals()[function](source, folder / ("out" if function == "llmkit" else "out.jsonl"), **options)
    print(json.dumps({"seconds": seconds, "peak": peak_bytes()}))


def main(records: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "dialogues.jsonl"
        generate(source, records)
        words(folder / "words.txt")
        print(f"{records} dialogues, {source.stat().st_size / 1e6:.0f} MB; best of {ROUNDS}")
        found: dict[str, list[tuple[float, float]]] = {job: [] for job in jobs(folder)}
        for _ in range(ROUNDS):
            for job, results in found.items():
                results.append(measure(folder, job, source))
        rates = {job: records / min(seconds for seconds, _ in results) for job, results in found.items()}
        peaks = {job: max(peak for _, peak in results) for job, results in found.items()}
        for job, rate in rates.items():
            print(f"{job:<28} {rate:>9,.0f} records/s  {peaks[job]:>6.0f} MB")
        one = rates["llmkit, 1 process"]
        print(f"llmkit / bare loop                  {one / rates['bare loop']:.2f}")
        print(f"llmkit / bare loop, raw line as key {one / rates['bare loop, raw line as key']:.2f}")
        print(f"llmkit / datasets                   {one / rates['datasets']:.2f}")
        print(f"2 processes / 1                     {rates['llmkit, 2 processes'] / one:.2f}")
        generate(source, 3 * records)
        _, larger = measure(folder, "llmkit, 1 process", source)
        growth = (larger - peaks["llmkit, 1 process"]) * 1e6 / (2 * records)
        print(f"peak memory, {3 * records} dialogues       {larger:.0f} MB: {growth:+.1f} bytes for each more")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        _job(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else RECORDS)
