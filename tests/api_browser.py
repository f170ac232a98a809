"""Headless Chromium for tests of the page, driven through the DevTools protocol it speaks itself.

Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from api_eventually import eventually

PATIENCE_S = 30.0
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """One tab. `faults` grows with what its console says is wrong, `asked` with each address it fetches."""

    def __init__(self, runner: asyncio.Runner, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._runner, self._socket = runner, socket
        self._numbers = itertools.count(1)
        self._tab: str | None = None
        self.faults: list[str] = []
        self.asked: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._tab = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str, until: str = "document.readyState === 'complete'") -> None:
        """Load an address anew, and wait until `until` holds in it."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)
        self.wait(until)

    def do(self, script: str) -> Any:  # whatever the script gives
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is truthy; one that throws is not yet."""
        script = f"(() => {{ try {{ return Boolean({condition}) }} catch {{ return false }} }})()"
        try:
            eventually(lambda: self.do(script))
        except AssertionError as error:
            raise AssertionError(f"never true: {condition}\nthe page says:\n{self.text('body')}") from error

    def text(self, selector: str = "main") -> str:
        """The text that people see in the first element of this selector."""
        return str(self.do(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        for kind in ("rawKeyDown", *(["char"] if key == "Enter" else []), "keyUp"):
            text = {"text": "\r"} if kind == "char" else {}
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key], **text)

    def hover(self, selector: str) -> None:
        """Move the mouse over the first element of this selector."""
        script = "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector(%s).getBoundingClientRect())"
        x, y = self.do(script % json.dumps(selector))
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def wear(self, colours: str, width: int, height: int = 900) -> None:
        """Prefer `light` or `dark`, in a window of this size."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": colours}])
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def picture(self, path: Path) -> None:
        """Save the whole page as a PNG."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        return self._runner.run(asyncio.wait_for(self._exchange(method, parameters), PATIENCE_S))

    async def _exchange(self, method: str, parameters: dict[str, object]) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(message if self._tab is None else {**message, "sessionId": self._tab})
        while True:
            heard = await self._socket.receive_json()
            if heard.get("id") == number:
                assert "error" not in heard, (method, heard["error"])
                answer: dict[str, Any] = heard["result"]
                return answer
            self._note(heard.get("method", ""), heard.get("params", {}))

    def _note(self, event: str, said: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(said["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.faults.append(str(said["exceptionDetails"]))
        elif event == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.faults.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.faults.append(str(said["args"]))


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with an empty profile, closed with the context. Skips where none is installed."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser for the tests of the page (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="arwkv-browser-", ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
        command = [program, *flags, *quiet, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            place = Path(profile) / "DevToolsActivePort"
            port, path = eventually(lambda: place.exists() and place.read_text().split())
            with asyncio.Runner() as runner:
                session = runner.run(_session())
                try:
                    address = f"http://127.0.0.1:{port}{path}"
                    yield Browser(runner, runner.run(_connect(session, address)))
                finally:
                    runner.run(session.close())
        finally:
            process.terminate()
            process.wait(timeout=30)


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _connect(session: aiohttp.ClientSession, address: str) -> aiohttp.ClientWebSocketResponse:
    return await session.ws_connect(address, max_msg_size=0)
