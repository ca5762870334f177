"""The Hugging Face hub: which commit a revision is, and its files in a cache. HF_ENDPOINT, HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE and HF_TOKEN count.
"""

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import httpx, tqdm  # the HTTP library that this version of the hub raises errors of

from backends.base import Progress
from sweep.config import first_line
from sweep.whole_file import write_whole

CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja")  # of a repository: what engines load besides weights
SAFE_WEIGHTS, PICKLED_WEIGHTS = "*.safetensors", "pytorch_model*.bin"
NOT_NEEDED = ["*/*", "consolidated*"]  # other formats of the same weights
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
RESOLVE_TIMEOUT = 3.0  # s that planning waits for the hub
RESOLVE_PAUSES = (1.0, 2.0, 4.0)  # s between questions to a hub that does not answer, once for all repositories
SERVER_ERROR = 500  # and more: an answer that says nothing of what was asked
TRY_LATER = (408, 429)  # what a hub says that has no time
PROGRESS_INTERVAL = 5.0  # s


def fetch(
    repo: str,
    revision: str,
    cache_dir: Path,
    progress: Progress,
    names: tuple[str, ...] | None = None,
    peek: bool = False,
) -> Path:
    """A snapshot with the named files, or with all that an engine needs; from the cache where the hub is not reached.

    With `peek` a hub that is reached is only asked for a small file: who may have that may have all.
    """
    api = _hub()
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": _hub_cache(cache_dir),
        "ignore_patterns": NOT_NEEDED,
    }
    try:
        files = [file.rfilename for file in api.model_info(repo, revision=revision).siblings or []]
        safe = any(file.endswith(".safetensors") and "/" not in file for file in files)
        wanted = ("config.json",) if peek else names or (*CONFIGURATION, SAFE_WEIGHTS if safe else PICKLED_WEIGHTS)
        bar = _bar(repo, progress)
        online = {"endpoint": api.endpoint, "token": api.token, "tqdm_class": bar}
        return Path(snapshot_download(repo, allow_patterns=list(wanted), **online, **options))
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if _is_answer(error):
            raise _refused(repo, revision, error) from None
        for weights_pattern in (SAFE_WEIGHTS, PICKLED_WEIGHTS):
            wanted = names or (*CONFIGURATION, weights_pattern)
            folder = _cached_snapshot(repo, allow_patterns=list(wanted), **options)
            if folder is not None and (names or any(folder.glob(weights_pattern))):
                return folder
        reason = first_line(error)
        raise ValueError(f"model.repo={repo}@{revision}: not on this machine, and no hub ({reason})") from None


def _hub_cache(cache_dir: Path) -> Path:
    """Hugging Face's own cache where HF_HOME or HF_HUB_CACHE name one, else one under `cache_dir`."""
    own = os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE")
    return Path(constants.HF_HUB_CACHE) if own else cache_dir / "hub"


def _is_answer(error: Exception) -> bool:
    """Whether the hub has said something of what was asked, instead of nothing or that it is out of order."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else SERVER_ERROR
    return status < SERVER_ERROR and status not in TRY_LATER


def _refused(repo: str, revision: str, error: Exception) -> ValueError:
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f"model.revision={revision}: {repo} has none; allowed is a branch, tag or commit of it")
    return ValueError(f"model.repo={repo}@{revision}: {first_line(error)} (a gated model needs HF_TOKEN)")


def _cached_snapshot(repo: str, **options: Any) -> Path | None:
    """What an earlier run has fetched, if it is whole."""
    try:
        return Path(snapshot_download(repo, local_files_only=True, **options))
    except LocalEntryNotFoundError:
        return None


def _bar(repo: str, progress: Progress) -> type[Any]:
    """A progress bar that says how it stands every few seconds instead of drawing itself."""

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "mininterval": PROGRESS_INTERVAL, "file": io.StringIO()})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if self.n and self.n != self.total:
                size = f"{self.n / 1e9:.1f} of {self.total / 1e9:.1f} GB" if self.unit == "B" else f"{self.n} files"
                progress(f"model {repo}: fetched {size}")

    return Bar


def ignore(text: str) -> None:
    """Progress of what takes no time."""


def _hub() -> HfApi:
    """The hub as the environment names it. A token from nowhere else: a file in somebody's HOME is not this run's."""
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN") or False)


@lru_cache
def commit(repo: str, revision: str, cache_dir: Path) -> str:
    """The commit that a revision means: as the hub says; else as it last said; else the revision itself.

    Raises ValueError if the hub knows no such repository or revision and never did: one that was renamed or closed
    since keeps its digest, so that results that are there stay what they are.
    """
    if COMMIT.fullmatch(revision):
        return revision
    remembered = cache_dir / "digests" / "hub.json"
    known: dict[str, str] = json.loads(remembered.read_text()) if remembered.is_file() else {}
    key = f"{os.environ.get('HF_ENDPOINT', '')} {repo}@{revision}"
    last = known.get(key) or _fetched_commit(repo, revision, cache_dir)
    try:
        commit = _ask_commit(repo, revision, patient=last is None)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        if key not in known:
            raise _refused(repo, revision, error) from None
        return known[key]
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled):
        return last or revision
    if known.get(key) != commit:
        with contextlib.suppress(OSError):  # a node's cache may be none of the driver's: then it is asked again
            write_whole(remembered, json.dumps(known | {key: commit}, indent=1))
    return commit


def _ask_commit(repo: str, revision: str, patient: bool) -> str:
    """What the hub says, asked again if it does not answer: where nothing else tells the commit, ids depend on it."""
    while True:
        try:
            return str(_hub().model_info(repo, revision=revision, timeout=RESOLVE_TIMEOUT).sha)
        except (HfHubHTTPError, httpx.TransportError) as error:
            patient = patient and not _is_answer(error)
            pause = next(_pauses(os.environ.get("HF_ENDPOINT", "")), None) if patient else None
            if pause is None:
                raise
            time.sleep(pause)


@lru_cache
def _pauses(hub: str) -> Iterator[float]:
    """What is left of this process's patience with a hub."""
    return iter(RESOLVE_PAUSES)


def _fetched_commit(repo: str, revision: str, cache_dir: Path) -> str | None:
    """The commit that the hub's own cache on this machine has of a revision."""
    name = repo_folder_name(repo_id=repo, repo_type="model")
    reference = _hub_cache(cache_dir) / name / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None
