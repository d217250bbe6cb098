"""Python itself, its locale, and where it runs. Knows nothing of packages."""

import locale
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from llmkit.doctor.finding import Finding

AREA = "Python"


def python(folder: Path) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    here = (
        f"Python {platform.python_version()} ({platform.python_implementation()}) on {platform.system()} {platform.machine()}"
    )
    wanted = _wanted()
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        yield Finding(
            "error",
            AREA,
            f"{here}; llmkit needs {wanted}",
            mend="make a virtual environment of another Python: uv venv -p 3.12",
        )
        return
    yield Finding("ok", AREA, here)
    if sys.prefix == sys.base_prefix and not os.environ.get("CONDA_PREFIX"):
        yield Finding(
            "note", AREA, "no virtual environment", "packages of other programs can change llmkit's", "python -m venv .venv"
        )


def _wanted() -> str:
    try:
        return metadata.metadata("llmkit")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:  # told among the packages
        return ""


def text_encoding(folder: Path) -> Iterator[Finding]:
    used, files = locale.getpreferredencoding(False), sys.getfilesystemencoding()
    if {used.lower().replace("-", ""), files.lower().replace("-", "")} == {"utf8"}:
        yield Finding("ok", "text", "UTF-8 for files and their names")
        return
    yield Finding(
        "warning",
        "text",
        f"files are read as {used}, names as {files}",
        "llmkit itself reads and writes UTF-8; other programs and the names of files may not",
        "export LC_ALL=C.UTF-8, or PYTHONUTF8=1",
    )


PROBES = (python, text_encoding)
