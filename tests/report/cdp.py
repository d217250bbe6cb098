"""A browser driven over two pipes by the Chrome DevTools Protocol: https://chromedevtools.github.io/devtools-protocol/.

Knows how messages go to and fro, and a handful of them; nothing of what is tested.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.report.test_browser import QUIET

_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Backspace": 8, "Escape": 27, "Enter": 13, "Tab": 9, " ": 32}
_PATIENCE = 60.0  # seconds for one answer, on a busy machine


class Tab:
    """One page. `events` holds what the browser told unasked."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]
            data = os.read(self._read, 1 << 16) if ready else b""
            assert data, "the browser fell silent"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def visit(self, page: Path, *, downloads: Path) -> None:
        """Open `page`; what it downloads goes to `downloads`."""
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), eventsEnabled=True)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.go(page)

    def go(self, page: Path) -> None:
        before = len(self.events)
        self.send("Page.navigate", url=page.as_uri())
        self.wait_for("Page.loadEventFired", after=before)

    def wait_for(self, method: str, *, after: int = 0, **having: Any) -> None:
        """Until the browser tells of `method`, with these among its parameters."""

        def told(event: dict[str, Any]) -> bool:
            return event.get("method") == method and having.items() <= event["params"].items()

        while not any(map(told, self.events[after:])):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            known = {"key": key, "windowsVirtualKeyCode": _CODES.get(key, ord(key[0].upper()))}
            text = {"text": key} if len(key) == 1 else {}
            self.send("Input.dispatchKeyEvent", type="keyDown", **known, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **known)

    def said(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, its own file left out."""
        urls = [one["request"]["url"] for one in self.said("Network.requestWillBeSent")]
        return [url for url in urls if not url.startswith(("file:", "data:"))]


@contextmanager
def opened(browser: str, page: Path, *options: str) -> Iterator[Tab]:
    """`page` in a browser with a fresh profile; its downloads land beside it."""
    profile = tempfile.mkdtemp(dir=page.parent)
    (theirs, write), (read, ours) = _pipe(), _pipe()
    command = [browser, *QUIET.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}", *options, "about:blank"]
    plugs = [(os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, ours, 4)]
    silence = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    process = os.posix_spawn(browser, command, {**os.environ, "HOME": profile}, file_actions=[*plugs, silence], setpgroup=0)
    os.close(theirs)
    os.close(ours)
    try:
        tab = Tab(read, write)
        tab.visit(page, downloads=page.parent)
        yield tab
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(read)
        os.close(write)
        shutil.rmtree(profile, ignore_errors=True)


def _pipe() -> list[int]:
    """Its ends, above the places 3 and 4 to which they will be copied."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high
