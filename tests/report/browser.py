"""A real browser for tests: headless Chromium over its debugging protocol, nothing else needed."""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dsts_pipeline.report.screenshots import FLAGS, find_browser

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / ".browser" / "node_modules" / "axe-core" / "axe.min.js"  # `make browser` puts it there
KEYS = {
    "Enter": 13,
    "ArrowDown": 40,
    "ArrowRight": 39,
    "Home": 36,
    "End": 35,
    "ArrowLeft": 37,
    "Tab": 9,
    " ": 32,
}


def need_browser() -> None:
    """Skip a test where there is no browser; fail where there has to be one."""
    if find_browser() is None:
        _lack("no Chromium installed; `make browser` installs it")


def axe_script() -> str:
    """axe-core, which checks a page's accessibility; without it the test is skipped as above."""
    if not AXE.exists():
        _lack(f"no {AXE.relative_to(ROOT)}; `make browser` fetches axe-core")
    return AXE.read_text()


def _lack(reason: str) -> None:
    # On CI a skip would hide that nothing was tested.
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


class Tab:
    """One page: commands, and what it asked for and complained about since it was opened."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._last, self._waiting = socket, 0, {}
        self._loaded = asyncio.Event()
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                self._waiting.pop(event["id"]).set_result(event)
                continue
            method, details = event["method"], event["params"]
            if method == "Network.requestWillBeSent":
                self.requests.append(details["request"]["url"])
            elif method == "Page.loadEventFired":
                self._loaded.set()
            elif method == "Log.entryAdded":
                self.complaints.append(details["entry"]["text"])
            elif method == "Runtime.exceptionThrown":
                self.complaints.append(str(details["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled":
                self.complaints.append(str(details["args"]))

    async def send(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._last += 1
        future = asyncio.get_running_loop().create_future()
        self._waiting[self._last] = future
        await self._socket.send_json({"id": self._last, "method": method, "params": arguments})
        answer = await asyncio.wait_for(future, timeout=180)
        assert "error" not in answer, answer
        return answer["result"]

    async def open(
        self,
        url: str,
        width: int = 1240,
        dark: bool = False,
        still: bool = False,
        scripts: bool = True,
    ) -> None:
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else ""}
        await self.send("Emulation.setEmulatedMedia", features=[scheme, motion])
        await self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._loaded.clear()
        await self.send("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), timeout=180)

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = await self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def press(self, key: str) -> None:
        code = {"windowsVirtualKeyCode": KEYS[key], "code": key, "key": key}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **code)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    async def click(self, selector: str) -> None:
        """A real mouse click in the middle of the first element that fits."""
        x, y = await self.run(
            f"(() => {{ const e = document.querySelector({selector!r});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2];"
            "})()"
        )
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            button = {"button": "left", "clickCount": 1}
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    async def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        answer = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    async def print(self, path: Path) -> None:
        """The page as PDF."""
        answer = await self.send("Page.printToPDF", printBackground=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@asynccontextmanager
async def browser_tab() -> AsyncIterator[Tab]:
    """A tab of a fresh browser without any earlier state; both end with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            str(find_browser()),
            *FLAGS,
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "HOME": folder},
        )
        try:
            port_file = Path(folder) / "DevToolsActivePort"
            for _ in range(900):
                if port_file.exists() and port_file.read_text().count("\n") >= 1:
                    break
                await asyncio.sleep(0.1)
            port = port_file.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [one for one in await answer.json() if one["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    tab = Tab(socket)
                    listener = asyncio.create_task(tab.listen())
                    yield tab
                    listener.cancel()
        finally:
            process.kill()
            await process.wait()
