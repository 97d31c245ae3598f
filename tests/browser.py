"""A real Chromium, driven through chromedriver: W3C WebDriver is JSON over HTTP, so no client library is needed.

It is started so that it asks nobody but the server under test; what it asks is on record (`requests`).
"""

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver, "Elements"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "about:blank",
    "--hide-scrollbars",
    "--disable-features=OptimizationHints,MediaRouter,Translate,AutofillServerCommunication",
]
TAB, SPACE, ENTER = "\ue004", " ", "\ue007"
LEFT, UP, RIGHT, DOWN, DELETE = "\ue012", "\ue013", "\ue014", "\ue015", "\ue017"


@dataclass
class Browser:
    """A window."""

    port: int
    session: str = ""

    def command(self, method: str, path: str, body: Any = None) -> Any:
        """What WebDriver answers to a command of this session."""
        place = f"/session/{self.session}{path}" if self.session else path
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, place, None if body is None else json.dumps(body))
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        assert not (isinstance(value, dict) and "error" in value), value
        return value

    def devtools(self, method: str, **params: Any) -> Any:
        """What the DevTools protocol answers."""
        return self.command("POST", "/goog/cdp/execute", {"cmd": method, "params": params})

    def open(self, url: str) -> None:
        """Go to a page."""
        self.command("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns; a promise is waited for."""
        text = (
            f"const done = arguments[arguments.length - 1]; (async (...a) => {{ {script} }})(...arguments).then(done)"
        )
        return self.command("POST", "/execute/async", {"script": text, "args": list(arguments)})

    def find(self, css: str) -> dict[str, str]:
        """The first element; it must be there."""
        found: dict[str, str] = self.command("POST", "/element", {"using": "css selector", "value": css})
        return found

    def click(self, css: str) -> None:
        """Click as a person would."""
        self.command("POST", f"/element/{self.find(css)[ELEMENT]}/click", {})

    def type(self, css: str, text: str) -> None:
        """Type into an element; of a file input, choose the file of that path."""
        self.command("POST", f"/element/{self.find(css)[ELEMENT]}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, wherever the focus is."""
        acts = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.command("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": acts}]})

    def draw(self, css: str, *places: tuple[int, int]) -> None:
        """Drag a pen over an element, through places told from its middle, in pixels."""
        element = self.find(css)
        acts: list[dict[str, Any]] = [
            {"type": "pointerMove", "duration": 20, "origin": element, "x": x, "y": y} for x, y in places
        ]
        acts = [acts[0], {"type": "pointerDown", "button": 0}, *acts[1:], {"type": "pointerUp", "button": 0}]
        pen = {"type": "pointer", "id": "pen", "parameters": {"pointerType": "mouse"}, "actions": acts}
        self.command("POST", "/actions", {"actions": [pen]})

    def text(self, css: str) -> str:
        """What an element says."""
        found: str = self.run("return document.querySelector(a[0]).innerText", css)
        return found

    def wait(self, holds: Callable[[], Any], limit_s: float = 20.0) -> Any:
        """What `holds` gives, once it is something."""
        ends = time.monotonic() + limit_s
        while not (found := holds()):
            assert time.monotonic() < ends, f"it never came true\n{self.complaints()}\n{self.run(PAGE)}"
            time.sleep(0.05)
        return found

    def size(self, width: int, height: int, dark: bool = False, still: bool = True) -> None:
        """Be as large as that, and in the light or dark."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features += [{"name": "prefers-reduced-motion", "value": "reduce"}] if still else []
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def shoot(self, path: Path, whole: bool = True) -> None:
        """Save what is seen."""
        found = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """What the console has told of errors and warnings since it was asked last."""
        found = self.command("POST", "/se/log", {"type": "browser"})
        return [one["message"] for one in found if one["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[tuple[str, str]]:
        """The addresses that were asked since it was asked last, each with who had it asked: parser, script, other."""
        logged = self.command("POST", "/se/log", {"type": "performance"})
        found = [json.loads(one["message"])["message"] for one in logged]
        sent = [one["params"] for one in found if one["method"] == "Network.requestWillBeSent"]
        asked = [(one["request"]["url"], one["initiator"]["type"]) for one in sent]
        inside = ("chrome:", "data:", "blob:", "about:")  # of the browser itself
        return [one for one in asked if not one[0].startswith(inside)]


PAGE = "return document.body.innerText"


def missing() -> str | None:
    """What is to be installed for a browser; None where it is."""
    return None if shutil.which("chromedriver") else "apt-get install chromium chromium-driver"


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium with a profile of its own, ended with all that it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    driver = subprocess.Popen(["chromedriver", f"--port={port}", "--silent"], env=env, stdout=subprocess.DEVNULL)
    one = Browser(port)
    try:
        one.wait(lambda: _up(port))
        options = {"args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"]}
        logs = {"browser": "ALL", "performance": "ALL"}
        asked = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        one.session = one.command("POST", "/session", {"capabilities": {"alwaysMatch": asked}})["sessionId"]
        one.command("POST", "/timeouts", {"implicit": 20_000, "script": 30_000, "pageLoad": 30_000})
        yield one
    finally:
        if one.session:  # else Chromium outlives its driver
            one.command("DELETE", "")
        driver.terminate()
        driver.wait(10)


def _up(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False
