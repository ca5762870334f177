"""A headless Chromium that tests drive over WebDriver's HTTP interface."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

INSTALL = "apt-get update; apt-get install -y chromium chromium-driver"
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECONDS = 60  # for one command: a test machine may be busy


def missing() -> str:
    """The reason why there is no browser here; empty if there is one."""
    present = shutil.which("chromium") and shutil.which("chromedriver")
    return "" if present else f"no Chromium here: {INSTALL}"


class Browser:
    """One session; `width` and `height` are of the page, in CSS pixels."""

    def __init__(self, address: str, profile: Path) -> None:
        arguments = [*ARGUMENTS, f"--user-data-dir={profile}"]
        wanted = {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self.address = address
        answer = self._post(f"{address}/session", capabilities={"alwaysMatch": wanted})
        self.session = f"{address}/session/{answer['sessionId']}"

    def _post(self, to: str, /, **body: Any) -> Any:
        answer = requests.post(to, json=body, timeout=SECONDS).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{answer['error']}: {answer.get('message')}")
        return answer

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._post(f"{self.session}/goog/cdp/execute", cmd=command, params=parameters)

    def size(self, width: int, height: int) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, kind: str = "", scheme: str = "light") -> None:
        """The medium, such as `print`, and the colour scheme."""
        self.devtools(
            "Emulation.setEmulatedMedia", media=kind, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def open(self, page: Path, fragment: str = "") -> None:
        """The page as it is when it is opened anew: a change of the fragment alone would load nothing."""
        self._post(f"{self.session}/url", url="about:blank")
        self._post(f"{self.session}/url", url=page.as_uri() + fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        return self._post(f"{self.session}/execute/sync", script=script, args=list(arguments))

    def keys(self, *pressed: str) -> None:
        """Keys pressed one after another in what has the focus; WebDriver's code points name the special ones."""
        actions = [{"type": kind, "value": key} for key in pressed for kind in ("keyDown", "keyUp")]
        self._post(f"{self.session}/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def pointer(self, x: int, y: int) -> None:
        move = {"type": "pointerMove", "duration": 0, "x": x, "y": y}
        self._post(f"{self.session}/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])

    def log(self, kind: str) -> list[dict[str, Any]]:
        """The entries since the last call: of the console (`browser`), or of the network (`performance`)."""
        entries: list[dict[str, Any]] = self._post(f"{self.session}/se/log", type=kind)
        return entries


@contextmanager
def opened_browser(folder: Path) -> Iterator[Browser]:
    """A browser with a new profile in a folder; nothing of it runs afterwards."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        browser = Browser(f"http://127.0.0.1:{port}", folder / "profile")
        try:
            yield browser
        finally:
            requests.delete(browser.session, timeout=SECONDS)
    finally:
        driver.terminate()
        driver.wait(10)
        assert driver.stdout is not None
        driver.stdout.close()
