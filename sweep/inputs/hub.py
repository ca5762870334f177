"""The Hugging Face hub: the commit that a revision points to, and the cache of its files.

The variables HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN are respected.
"""

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import httpx, tqdm  # the HTTP library whose errors this version of the hub raises

from backends.base import Progress
from sweep.base.config import first_line
from sweep.base.exits import Outage
from sweep.base.whole_file import write_whole
from sweep.drive import policy

RepoType = Literal["model", "dataset"]
KEYS: dict[RepoType, tuple[str, str]] = {"model": ("model", "repo"), "dataset": ("workload", "dataset")}  # group, key
CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja")  # files that engines load from a repository besides weights
SAFE_WEIGHTS, PICKLED_WEIGHTS = "*.safetensors", "pytorch_model*.bin"
NOT_NEEDED = ["*/*", "consolidated*"]  # other formats of the same weights
ROWS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # file endings of data sets
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
RESOLVE_TIMEOUT = 3.0  # s for which planning waits for the hub
RESOLVE_PAUSES = (1.0, 2.0, 4.0)  # s between retries of an unresponsive hub, shared by all repositories
PROGRESS_INTERVAL = 5.0  # s


def fetch(
    repo: str,
    revision: str,
    cache_dir: Path,
    progress: Progress,
    names: tuple[str, ...] | None = None,
    peek: bool = False,
) -> Path:
    """Return a snapshot with the named files, or with all that an engine needs; from the cache if the hub is offline.

    With `peek` only a small file is fetched, to find out whether the repository is accessible.
    """
    api = _hub()
    options: Any = {"revision": revision, "cache_dir": _hub_cache(cache_dir), "ignore_patterns": NOT_NEEDED}
    try:
        files = [file.rfilename for file in api.model_info(repo, revision=revision).siblings or []]
        safe = any(file.endswith(".safetensors") and "/" not in file for file in files)
        patterns = ("config.json",) if peek else names or (*CONFIGURATION, SAFE_WEIGHTS if safe else PICKLED_WEIGHTS)
        online = {"endpoint": api.endpoint, "token": api.token, "tqdm_class": _bar(repo, progress)}
        return Path(snapshot_download(repo, allow_patterns=list(patterns), **online, **options))
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if _is_answer(error):
            raise _refused(repo, revision, error, "model") from None
        for weights_pattern in (SAFE_WEIGHTS, PICKLED_WEIGHTS):
            patterns = names or (*CONFIGURATION, weights_pattern)
            with contextlib.suppress(LocalEntryNotFoundError):  # there is no complete snapshot from an earlier run
                folder = Path(snapshot_download(repo, allow_patterns=list(patterns), local_files_only=True, **options))
                if names or any(folder.glob(weights_pattern)):
                    return folder
        raise _absent(repo, revision, error, "model") from None


def fetch_configuration(repo: str, revision: str, cache_dir: Path) -> Path | None:
    """Return a model's config.json; from the cache if the hub does not answer in time. None if it is in neither."""
    at: Any = {"revision": revision, "cache_dir": _hub_cache(cache_dir), "etag_timeout": RESOLVE_TIMEOUT}
    try:
        return Path(_hub().hf_hub_download(repo, "config.json", **at))
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError):
        return None


def fetch_dataset(
    repo: str, revision: str, cache_dir: Path, choose: Callable[[Iterable[str]], list[str]], pattern: str
) -> Path:
    """Return a snapshot with the chosen files of a data set; from the cache if the hub cannot be reached.

    `pattern` matches all files that may be chosen: an earlier download is used only if it has all of them. Raises
    ValueError, in one line, if the hub denies access, or neither hub nor cache has the files; Outage if a retry may
    succeed.
    """
    api = _hub()
    options: Any = {"repo_type": "dataset", "revision": revision, "cache_dir": _hub_cache(cache_dir)}
    try:
        names = choose(file.rfilename for file in api.dataset_info(repo, revision=revision).siblings or [])
        online = {"endpoint": api.endpoint, "token": api.token, "tqdm_class": _bar(repo, ignore)}
        return Path(snapshot_download(repo, allow_patterns=names, **online, **options))
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if _is_answer(error):
            raise _refused(repo, revision, error, "dataset") from None
        for suffix in ROWS:
            with contextlib.suppress(LocalEntryNotFoundError, ValueError):  # incomplete, or no files in that format
                patterns = [pattern + suffix]
                folder = Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=True, **options))
                choose(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}"))
                return folder
        raise _absent(repo, revision, error, "dataset") from None


def _hub_cache(cache_dir: Path) -> Path:
    """Return Hugging Face's default cache if HF_HOME or HF_HUB_CACHE is set, else a cache under `cache_dir`."""
    is_set = os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE")
    return Path(constants.HF_HUB_CACHE) if is_set else cache_dir / "hub"


def is_fetched(repo: str, cache_dir: Path, kind: RepoType = "model", commit: str = "*") -> bool:
    """Return whether this machine's hub cache has files of a repository, at the given commit or at any commit."""
    folder = _hub_cache(cache_dir) / repo_folder_name(repo_id=repo, repo_type=kind)
    return any(folder.glob(f"snapshots/{commit}/*"))


def _is_answer(error: Exception) -> bool:
    """Return whether an error is a definite answer of the hub, not a failed connection or a server error."""
    return isinstance(error, HfHubHTTPError) and not policy.no_answer(error.response.status_code)


def _refused(repo: str, revision: str, error: Exception, kind: RepoType) -> ValueError:
    group, key = KEYS[kind]
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f"{group}.revision={revision}: not in {repo}; expected one of its branches, tags or commits")
    return ValueError(f"{group}.{key}={repo}@{revision}: {first_line(error)} (a gated {kind} needs HF_TOKEN)")


def _absent(repo: str, revision: str, error: Exception, kind: RepoType) -> ValueError:
    where = f"{'.'.join(KEYS[kind])}={repo}@{revision}: not on this machine, and"
    if isinstance(error, OfflineModeIsEnabled):
        return ValueError(f"{where} HF_HUB_OFFLINE is set")
    return Outage(f"{where} the hub cannot be reached ({first_line(error)})")


def _bar(repo: str, progress: Progress) -> type[Any]:
    """Return a progress bar class that reports every few seconds instead of drawing itself."""

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "mininterval": PROGRESS_INTERVAL, "file": io.StringIO()})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if self.n and self.n != self.total:
                size = f"{self.n / 1e9:.1f} of {self.total / 1e9:.1f} GB" if self.unit == "B" else f"{self.n} files"
                progress(f"model {repo}: fetched {size}")

    return Bar


def ignore(text: str) -> None:
    """Discard the progress of quick steps."""


def _hub() -> HfApi:
    """Return a client of the hub set in the environment. The token comes only from the environment: a token saved in a
    HOME may belong to someone else.
    """
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN") or False)


@lru_cache
def resolve_commit(repo: str, revision: str, cache_dir: Path, kind: RepoType = "model") -> str:
    """Return the commit of a revision: from the hub, else the last known commit, else the revision itself.

    Raises ValueError if the hub has never had the repository or revision. A repository that is renamed or closed later
    keeps its digest, so that existing results stay valid.
    """
    if COMMIT.fullmatch(revision):
        return revision
    remembered = cache_dir / "digests" / "hub.json"
    commits: dict[str, str] = json.loads(remembered.read_text()) if remembered.is_file() else {}
    key = f"{os.environ.get('HF_ENDPOINT', '')} {'' if kind == 'model' else f'{kind}s/'}{repo}@{revision}"
    last = commits.get(key) or _fetched_commit(repo, revision, cache_dir, kind)
    try:
        info = _ask_commit(repo, revision, kind, patient=last is None)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        if key not in commits:
            raise _refused(repo, revision, error, kind) from None
        return commits[key]
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled) as error:
        if not _is_answer(error) and not isinstance(error, OfflineModeIsEnabled):
            _unanswered[repo, revision, kind] = first_line(error)
        return last or revision
    _unanswered.pop((repo, revision, kind), None)
    commit = str(info.sha)
    if info.gated and not is_fetched(repo, cache_dir, kind, commit):
        _check_access(info, kind)
    if commits.get(key) != commit:
        with contextlib.suppress(OSError):  # if the cache is not writable, the hub is queried again next time
            write_whole(remembered, json.dumps(commits | {key: commit}, indent=1))
    return commit


_unanswered: dict[tuple[str, str, RepoType], str] = {}  # (repository, revision, kind) -> why the hub returned no commit


def resolve_outage(repo: str, revision: str, kind: RepoType = "model") -> str | None:
    """Return why the hub did not answer the query for a revision's commit; None if it did, or was not asked."""
    return _unanswered.get((repo, revision, kind))


def forget_outages() -> None:
    """Forget failed queries, so that the hub is queried again for every commit that a plan needs."""
    resolve_commit.cache_clear()
    _unanswered.clear()


def _check_access(info: Any, kind: RepoType) -> None:
    """Raise ValueError if the hub denies access to the files of a gated repository, although it lists them publicly."""
    api, (group, key) = _hub(), KEYS[kind]
    name = next((file.rfilename for file in info.siblings or []), "config.json")
    url = hf_hub_url(info.id, name, repo_type=kind, revision=info.sha, endpoint=api.endpoint)
    try:
        api.get_hf_file_metadata(url=url, timeout=RESOLVE_TIMEOUT)
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled) as error:
        if _is_answer(error):
            licence = f"{api.endpoint}/{'' if kind == 'model' else 'datasets/'}{info.id}"
            token = "the account of HF_TOKEN has no access" if api.token else "HF_TOKEN is not set"
            raise ValueError(
                f"{group}.{key}={info.id}: the {kind} is gated, and {token}; accept its licence at {licence} and "
                "export HF_TOKEN"
            ) from None


def _ask_commit(repo: str, revision: str, kind: RepoType, patient: bool) -> Any:
    """Return the hub's response, with retries if `patient`: ids depend on the commit, which only the hub knows."""
    pauses = _pauses(os.environ.get("HF_ENDPOINT", "")) if patient else iter(())
    while True:
        try:
            return _hub().repo_info(repo, revision=revision, repo_type=kind, timeout=RESOLVE_TIMEOUT)
        except (HfHubHTTPError, httpx.TransportError) as error:
            if _is_answer(error) or (pause := next(pauses, None)) is None:
                raise
            time.sleep(pause)


@lru_cache
def _pauses(hub: str) -> Iterator[float]:
    """Return the pauses before the remaining retries of a hub, which all queries in this process share."""
    return iter(RESOLVE_PAUSES)


def _fetched_commit(repo: str, revision: str, cache_dir: Path, kind: RepoType) -> str | None:
    reference = _hub_cache(cache_dir) / repo_folder_name(repo_id=repo, repo_type=kind) / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None
