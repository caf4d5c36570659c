"""A headless Chromium, driven through its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WAIT_S = 60


class Page:
    """A page of the browser.

    Attributes:
        requests: Addresses that the page has asked for.
        dialogs: Texts of the dialogs that scripts have opened; they are closed at once.
        complaints: What the browser has logged, such as scripts that it refused to run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: WebSocketClientConnection) -> None:
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.complaints: list[str] = []
        self._loop, self._connection, self._sent, self._loads = loop, connection, 0, 0
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._sent += 1
        number = self._sent
        self._write({"id": number, "method": method, "params": parameters})
        while (message := self._receive()).get("id") != number:
            pass
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, address: str) -> None:
        """Open a page and wait until it is loaded."""
        before = self._loads
        self.send("Page.navigate", url=address)
        self._wait_for_load(before)

    def click(self, selector: str, *, loads: bool = True) -> None:
        """Click on the first element that a CSS selector matches, as a mouse would; wait until the page is loaded."""
        find = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{find}.scrollIntoView({{block: 'center', inline: 'center'}})")
        box = self.evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({find}.getClientRects()[0])")
        before = self._loads
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
        if loads:
            self._wait_for_load(before)

    def type(self, selector: str, text: str) -> None:
        """Type a text into a field."""
        self.evaluate(f"(field => {{ field.focus(); field.select() }})(document.querySelector({json.dumps(selector)}))")
        self.send("Input.insertText", text=text)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def column(self, number: int) -> list[str]:
        """Texts of the cells of a column of the first table, from 1."""
        cells = f"document.querySelector('table').querySelectorAll('tbody td:nth-child({number})')"
        found: list[str] = self.evaluate(f"[...{cells}].map(one => one.textContent)")
        return found

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page a size, in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        """Write a PNG of what is seen."""
        path.write_bytes(b64decode(self.send("Page.captureScreenshot")["data"]))

    def _wait_for_load(self, before: int) -> None:
        while self._loads == before:
            self._receive()

    def _receive(self) -> dict[str, Any]:
        async def read() -> str | bytes | None:
            return await asyncio.wait_for(self._connection.read_message(), WAIT_S)

        text = self._loop.run_until_complete(read())
        assert text is not None, "the browser has ended"
        message: dict[str, Any] = json.loads(text)
        facts = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loads += 1
            case "Network.requestWillBeSent":
                self.requests.append(facts["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(facts["message"])
                self._write({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
            case "Log.entryAdded":
                self.complaints.append(facts["entry"]["text"])
        return message

    def _write(self, message: dict[str, Any]) -> None:
        async def write() -> None:
            await self._connection.write_message(json.dumps(message))

        self._loop.run_until_complete(write())


@contextmanager
def browser_page(folder: Path) -> Iterator[Page]:
    """A page of a browser of its own, which ends with the block; skips the test if there is no Chromium.

    Args:
        folder: Folder for the browser's files; downloads are in its subfolder `downloads`.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("there is no Chromium")
    words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    loop = asyncio.new_event_loop()
    with subprocess.Popen(
        [*words, f"--user-data-dir={folder / 'profile'}", "about:blank"], stderr=subprocess.PIPE, text=True
    ) as browser:
        assert browser.stderr is not None
        found = next(filter(None, (re.search(r"ws://([^/]+)/", line) for line in browser.stderr)))
        with urllib.request.urlopen(f"http://{found[1]}/json/list") as answer:
            targets = json.load(answer)
        address = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")

        async def connect() -> WebSocketClientConnection:
            return await websocket_connect(address, max_message_size=1 << 28)

        page = Page(loop, loop.run_until_complete(connect()))
        (folder / "downloads").mkdir()
        page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder / "downloads"))
        try:
            yield page
        finally:
            browser.terminate()
            browser.communicate()
            loop.close()
