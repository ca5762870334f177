"""No pin of ours, and nothing in our own environment, is older than a release with a known fix."""

import re
from importlib import metadata

import pytest

from sweep.base.config import ROOT

FIXED = {
    "aiohttp": "3.13.3",  # CVE-2025-69223
    "cryptography": "46.0.5",  # CVE-2026-26007
    "filelock": "3.20.3",  # CVE-2026-22701
    "fonttools": "4.60.2",  # CVE-2025-66034
    "h11": "0.16.0",  # CVE-2025-43859
    "idna": "3.7",  # CVE-2024-3651
    "jinja2": "3.1.6",  # CVE-2025-27516
    "pillow": "12.1.1",  # CVE-2026-25990
    "pip": "26.0",  # CVE-2025-8869, CVE-2026-1703
    "protobuf": "6.33.5",  # CVE-2026-0994
    "pyasn1": "0.6.2",  # CVE-2026-23490
    "python-multipart": "0.0.22",  # CVE-2026-24486
    "ray": "2.52.0",  # CVE-2025-62593
    "requests": "2.32.4",  # CVE-2024-47081
    "sentencepiece": "0.2.1",  # CVE-2026-1260
    "setuptools": "78.1.1",  # CVE-2024-6345, CVE-2025-47273
    "starlette": "0.49.1",  # CVE-2025-62727
    "torch": "2.10.0",  # CVE-2025-32434, CVE-2026-24747
    "transformers": "4.53.0",  # CVE-2025-3933 and others of that year
    "urllib3": "2.6.3",  # CVE-2026-21441
    "virtualenv": "20.36.1",  # CVE-2026-22702
    "werkzeug": "3.1.5",  # CVE-2026-21860
    "wheel": "0.46.2",  # CVE-2026-24049
}
LOCKS = sorted((ROOT / "conf" / "environment" / "locks").glob("*.txt"))


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_no_committed_pin_is_below_a_known_fix(lock):
    pins = dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)
    assert pins or "image" in lock.name
    below = {name: pins[name] for name in FIXED.keys() & pins.keys() if number(pins[name]) < number(FIXED[name])}
    assert not below


def test_our_own_environment_is_not_below_a_known_fix():
    stamp = ROOT / ".venv" / ".installed"
    if not stamp.is_file() or "scripts/setup" not in stamp.read_text():
        pytest.skip("made by hand, or by an older scripts/setup; the next one renews it")
    installed = {name: version for name in FIXED if (version := _installed(name))}
    assert {name: version for name, version in installed.items() if number(version) < number(FIXED[name])} == {}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
