"""The cleaning report in a real browser: it draws its waterfall and asks nothing of a network."""

import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmkit.report import cleaning

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-proxy-server --disable-dev-shm-usage --hide-scrollbars"
)
DARK = "--blink-settings=preferredColorScheme=0"
TEAL, ORANGE = (0x3F, 0x7F, 0x8C), (0xDD, 0x7A, 0x52)  # what is left and what was removed, in light


@pytest.fixture(scope="session")
def browser() -> str:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


@pytest.fixture
def page(cleaning_report: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(cleaning.render(cleaning_report), encoding="utf-8")
    return path


def visit(browser: str, page: Path, *options: str) -> str:
    """What the browser writes when it opens `page` with a fresh profile and no way out."""
    profile = tempfile.mkdtemp(dir=page.parent)
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [browser, *QUIET.split(), nowhere, f"--user-data-dir={profile}", *options, page.as_uri()]
    home = {**os.environ, "HOME": profile}  # where its crash handler and settings live
    done = subprocess.run(command, capture_output=True, timeout=90, check=True, env=home, cwd=page.parent)
    return done.stdout.decode("utf-8")


def pixels(path: Path) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of an 8-bit RGB or RGBA picture, as RGB; follows https://www.w3.org/TR/png/."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    assert (depth, interlaced) == (8, 0)
    assert colour in (2, 6)
    size, position, packed = {2: 3, 6: 4}[colour], 8, b""
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        packed += data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += length + 12
    raw, rows, above = zlib.decompress(packed), [], bytes(width * size)
    for start in range(0, len(raw), width * size + 1):
        above = unfiltered(raw[start], raw[start + 1 : start + 1 + width * size], above, size)
        rows.append(above if size == 3 else b"".join(above[at : at + 3] for at in range(0, len(above), 4)))
    return width, height, rows


def unfiltered(kind: int, line: bytes, above: bytes, size: int) -> bytes:
    done = bytearray(line)
    for at in range(len(done) if kind else 0):
        left = done[at - size] if at >= size else 0
        corner = above[at - size] if at >= size else 0
        done[at] = (done[at] + (0, left, above[at], (left + above[at]) // 2, paeth(left, above[at], corner))[kind]) & 255
    return bytes(done)


def paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    return min((left, above, corner), key=lambda one: abs(guess - one))


@pytest.mark.parametrize(("width", "height", "dark"), [(1280, 1100, False), (800, 700, True), (500, 2000, False)])
def test_the_screenshot_shows_the_waterfall(browser: str, page: Path, width: int, height: int, dark: bool) -> None:
    picture = page.with_name("page.png")
    visit(browser, page, f"--window-size={width},{height}", f"--screenshot={picture}", *([DARK] if dark else []))
    wide, high, rows = pixels(picture)
    assert (wide, high) == (width, height)
    colours: Counter[bytes] = Counter()
    for row in rows[::2]:
        colours.update(row[at : at + 3] for at in range(0, len(row), 3))
    assert len(colours) > 50, "text and bars, not one flat colour"
    paper = colours.most_common(1)[0][0]
    assert (max(paper) < 60) if dark else (min(paper) > 200)
    if not dark:
        # Bars of 22 px: hundreds of pixels of what is left, and of what was removed.
        assert colours[bytes(TEAL)] > 2000
        assert colours[bytes(ORANGE)] > 500


def test_the_document_holds_the_waterfall_and_its_numbers(browser: str, page: Path, cleaning_report: dict[str, Any]) -> None:
    document = visit(browser, page, "--dump-dom")
    start = document.index('id="waterfall"')
    waterfall = document[start : document.index("</section>", start)]
    assert waterfall.count("<tr") == len(cleaning_report["rules"]) + 3
    assert "1,040" in waterfall
    assert "2,676 read = 1,508 kept + 1,168 rejected + 0 quarantined" in document


def test_opening_the_page_makes_no_network_request(browser: str, page: Path) -> None:
    assert requests(browser, page) == []


def test_the_look_out_for_requests_sees_one_where_there_is_one(browser: str, page: Path) -> None:
    """Else the test above would pass on a log that says nothing."""
    bare = page.with_name("bare.html")
    bare.write_text('<!doctype html><img src="http://pictures.example/x.png">', encoding="utf-8")
    assert requests(browser, bare) == ["http://pictures.example/x.png"]
    guarded = page.with_name("guarded.html")
    text = page.read_text(encoding="utf-8")
    guarded.write_text(text.replace("<main>", '<main><img src="http://pictures.example/x.png">'), encoding="utf-8")
    assert requests(browser, guarded) == [], "the policy of the page stops what it does not name"


def requests(browser: str, page: Path) -> list[str]:
    """The http(s) and ws(s) addresses that `page` asked for; the browser's own errands have no origin."""
    log = page.with_suffix(".netlog.json")
    visit(browser, page, f"--log-net-log={log}", "--dump-dom")
    starts = [event["params"] for event in json.loads(log.read_text(encoding="utf-8"))["events"] if "params" in event]
    asked = {start["url"] for start in starts if start.get("initiator", "not an origin") != "not an origin"}
    return sorted(url for url in asked if re.match(r"(https?|wss?):", url))
