"""Headless Chromium over its debugging pipe: no package is needed besides the browser."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """``with Browser() as page:`` a page that is opened, clicked and asked for values; `errors` is its console."""

    def __init__(self, width: int = 1280, height: int = 900, touch: bool = False) -> None:
        self.size, self.touch, self.errors, self.number = (width, height), touch, [], 0

    def __enter__(self) -> Self:
        out, self.write = os.pipe()
        self.read, back = os.pipe()
        self.profile = Path(os.environ.get("TMPDIR", "/tmp"), f"chromium-{os.getpid()}-{id(self)}")
        assert CHROMIUM is not None
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        command = ["bash", "-c", f'exec "$@" 3<&{out} 4>&{back}', "bash", CHROMIUM, *flags, "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [*command, "--no-first-run", f"--user-data-dir={self.profile}", "about:blank"],
            pass_fds=(out, back), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(out)
        os.close(back)
        self.buffer, self.session = b"", None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Page", "Log"):
            self(f"{domain}.enable")
        width, height = self.size
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=self.touch)
        if self.touch:
            self("Emulation.setTouchEmulationEnabled", enabled=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write)
        os.close(self.read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            data = os.read(self.read, 1 << 20)
            assert data, "the browser has ended"
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        kind, params = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["exception"].get("description", "exception"))
        elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))
        elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        return message

    def open(self, path: Path) -> None:
        """Open a page from disk and wait until it is ready."""
        self("Page.navigate", url=path.resolve().as_uri())
        limit = time.monotonic() + 60
        while self.value("document.documentElement?.dataset.ready") != "yes":
            assert time.monotonic() < limit, self.errors
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript; return its value, of a promise when it is fulfilled."""
        result = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def place(self, image: int, row: int, column: int) -> dict[str, float]:
        """Return where a patch of an image is on the screen, after scrolling to it."""
        return self.value(
            f"""(() => {{
                const {{ frame, grid }} = images[{image}];
                frame.scrollIntoView({{ block: "center" }});
                const box = frame.getBoundingClientRect();
                const x = box.left + ({column} + 0.5) * box.width / grid[1];
                return {{ x, y: box.top + ({row} + 0.5) * box.height / grid[0] }};
            }})()"""
        )

    def click(self, image: int, row: int, column: int, modifiers: int = 0) -> None:
        """Click a patch with the mouse, or tap it. modifiers: 1 is Alt, 8 Shift."""
        place = self.place(image, row, column)
        if self.touch:
            self("Input.dispatchTouchEvent", type="touchStart", touchPoints=[place])
            self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            return
        for kind in ("mousePressed", "mouseReleased"):
            self(
                "Input.dispatchMouseEvent",
                type=kind,
                button="left",
                buttons=1,
                clickCount=1,
                modifiers=modifiers,
                **place,
            )

    def key(self, name: str) -> None:
        """Press a key."""
        text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        self("Input.dispatchKeyEvent", type="keyDown", key=name, text=text)
        self("Input.dispatchKeyEvent", type="keyUp", key=name)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))
