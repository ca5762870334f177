"""Engine images. Images are named by tag, but locked and run by digest, which identifies their content."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx

from backends.base import EnvironmentSpec, Progress, Runtime
from backends.launch import task
from backends.prepare import programs
from backends.prepare.build_once import build_once
from backends.prepare.fit import RUNTIMES
from backends.prepare.uv import EnvironmentFailed
from sweep.base.exits import Cause, Exit

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
DIGEST = re.compile(r"^(?P<name>\S+)@(?P<digest>sha256:[0-9a-f]{64})$")


def runtime(spec: EnvironmentSpec) -> Runtime:
    """Return the container runtime for an image on this machine. Raises EnvironmentFailed."""
    names = (spec.runtime,) if spec.runtime else RUNTIMES
    present = next((name for name in names if shutil.which(name)), None)
    if present is None:
        raise EnvironmentFailed(f"environment {spec.name}: no {' or '.join(names)} on PATH; install one")
    return present


def by_digest(image: str) -> str:
    """Return an image's name with its current digest in the registry ("name@sha256:…"). Raises EnvironmentFailed."""
    if DIGEST.match(image):
        return image
    name, tag = _tagged(image)
    host, _, path = name.partition("/")
    if "." not in host and ":" not in host and host != "localhost":  # as docker does by default
        host, path = "registry-1.docker.io", name if "/" in name else f"library/{name}"
    url = f"https://{host}/v2/{path}/manifests/{tag}"
    try:
        with httpx.Client(timeout=30, follow_redirects=True) as client:
            headers = {"Accept": ", ".join(MANIFESTS)}
            answer = client.head(url, headers=headers)
            if answer.status_code == 401:
                headers |= _authorization(client, answer.headers.get("www-authenticate", ""))
                answer = client.head(url, headers=headers)
    except (httpx.HTTPError, ValueError) as error:
        problem = f"image {image}: its registry cannot be reached: {error}"
        raise EnvironmentFailed(problem, Exit(Cause.UNREACHABLE)) from None
    digest = answer.headers.get("docker-content-digest", "")
    if answer.status_code != 200 or not DIGEST.match(f"{name}@{digest}"):
        problem = f"image {image}: not found in its registry (status {answer.status_code})"
        raise EnvironmentFailed(problem, Exit(http=answer.status_code))
    return f"{name}@{digest}"


def _tagged(image: str) -> tuple[str, str]:
    name, separator, tag = image.rpartition(":")
    return (name, tag) if separator and "/" not in tag else (image, "latest")


def _authorization(client: httpx.Client, challenge: str) -> dict[str, str]:
    """Return the header for anonymous reading, from the registry's challenge (Bearer realm="…",service="…",…)."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    answer = client.get(fields.pop("realm", ""), params=fields).json()
    return {"Authorization": f"Bearer {answer.get('token') or answer.get('access_token')}"}


def sif(image: str, cache_dir: Path) -> Path:
    """Return the path of the file that apptainer makes from an image."""
    return cache_dir.expanduser().absolute() / "images" / f"{image.rpartition(':')[2][:32]}.sif"


def has_image(image: str, program: str, cache_dir: Path) -> bool:
    if program == "apptainer":
        return sif(image, cache_dir).exists()
    answer = subprocess.run([program, "image", "inspect", image], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and bool(json.loads(answer.stdout or "[]"))


def pull_image(spec: EnvironmentSpec, image: str, cache_dir: Path, progress: Progress) -> None:
    """Pull an image by its digest. Raises EnvironmentFailed."""
    program = runtime(spec)
    folder = cache_dir.expanduser().absolute() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{spec.name}.log"
    progress(f"environment {spec.name}: pulling {image} with {program}; this takes minutes, once")

    def pull(*arguments: str) -> None:
        try:
            programs.run([program, "pull", *arguments], task.clean_environment(), log)
        except programs.ToolFailed as failure:
            problem = f"environment {spec.name}: {image} cannot be pulled: {failure.last}; log: {log}"
            raise EnvironmentFailed(problem, programs.printed(failure.last)) from None

    if program == "apptainer":
        build_once(sif(image, cache_dir), lambda path: pull(str(path), f"docker://{image}"), image, progress)
    else:
        pull(image)
