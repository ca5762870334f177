"""Results in an object store (`out=s3://bucket/run`, `gs://…`): the run works in a local folder that is mirrored.

The ledger determines the uploads. For every entry that the driver appends, the mirror uploads first the files that the
entry refers to, then this piece of the ledger, then trials.parquet. So every entry in the store's ledger has its files
in the store, and a driver on another machine can resume. Objects cannot be appended to, so the ledger is stored in
pieces.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
from pyarrow import fs

from sweep.base.config import ConfigError, Halted, content_hash, first_line
from sweep.base.exits import Outage
from sweep.base.time_factor import scaled
from sweep.disk import run_files
from sweep.disk.compaction import compacted_names
from sweep.disk.heartbeat_lock import Lock
from sweep.disk.ledger import Misplaced
from sweep.disk.ledger_lines.checksums import entries
from sweep.disk.run_files import RunPaths
from sweep.drive import policy

SCHEMES = ("s3", "gs", "gcs")
LEDGER_POLL = 1.0  # s between reads of the ledger
PIECE = 1 << 20  # bytes of ledger after which a new object is started
PATIENCE = scaled(300.0)  # s during which the last upload of a run is retried
RETRY = scaled(5.0)  # s before each retry
THREADS = 16
SECRETS = ("access_key", "secret_key", "session_token")


def is_url(out: str) -> bool:
    """Return whether `out` is the URL of an object store; anything else is a folder."""
    return "://" in out


def url_name(url: str) -> str:
    """Return the name of a run in a store: the last part of its path, or the bucket."""
    parts = urlsplit(url)
    return PurePosixPath(parts.hostname or "", parts.path.strip("/")).name


def store_error(place: str, error: OSError) -> ValueError:
    """Return the error to raise for a failed store or results folder: an Outage if a retry may succeed.

    `place` is the argument as typed, e.g. "out=s3://bucket/run".
    """
    return (Outage if policy.is_waited_for(error) else ConfigError)(f"{place}: {first_line(error)}")


def staging_folder(url: str, cache_dir: Path) -> Path:
    """Return the local working folder for a run in an object store."""
    run = urlsplit(url).path.strip("/").replace("/", "-") or "run"
    return cache_dir / "runs" / f"{run}-{content_hash(url)}"


class ObjectStore:
    def __init__(self, url: str) -> None:
        """Open the store with the environment's credentials.

        Raises ConfigError for an invalid URL, or a URL with a secret; Outage if the store does not answer.
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.netloc:
            raise ConfigError(f"out={url}: expected a folder, s3://bucket/path or gs://bucket/path")
        if parts.password or set(parse_qs(parts.query)) & set(SECRETS):
            shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
            raise ConfigError(f"out={shown}: the URL contains a secret; set it in the environment")
        self.url = url
        try:
            store, root = fs.FileSystem.from_uri(url)
        except ValueError as error:
            raise ConfigError(f"out={url}: {first_line(error)}") from None
        except OSError as error:
            raise store_error(f"out={url}", error) from None
        self.fs = fs.SubTreeFileSystem(root, store)

    def read(self, name: str) -> bytes | None:
        """Return an object's content; None if there is no object of this name."""
        try:
            with self.fs.open_input_stream(name) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object atomically."""
        with self.fs.open_output_stream(name) as stream:
            stream.write(content)

    def delete(self, name: str) -> None:
        """Delete an object."""
        self.fs.delete_file(name)

    def list(self, folder: str = "") -> dict[str, int]:
        """Return the sizes of all objects under a folder, by name."""
        selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
        return {info.path: info.size for info in self.fs.get_file_info(selector) if info.is_file}

    def read_ledger(self) -> tuple[Sequence[str], bytes]:
        """Return the names of the ledger's pieces, and the ledger's content."""
        pieces = sorted(self.list("ledger"))
        return pieces, b"".join(self.read(piece) or b"" for piece in pieces)

    def upload(self, folder: Path, files: Iterable[Path]) -> None:
        """Upload files of a local folder to objects of the same names, skipping files that no longer exist."""

        def one(path: Path) -> None:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return
            self.write(path.relative_to(folder).as_posix(), content)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, files))

    def download(self, folder: Path, names: Iterable[str]) -> None:
        """Download objects into the local folder of a run; each file is written atomically."""
        paths = RunPaths(folder)

        def one(name: str) -> None:
            if (content := self.read(name)) is not None:
                run_files.write_whole(paths, folder / name, content)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, names))


class Mirror:
    """Keeps a store up to date with the local folder of a run, in its own thread."""

    def __init__(self, store: ObjectStore, folder: Path, notify: Callable[[str], None]) -> None:
        self.store, self.paths, self.notify = store, RunPaths(folder), notify
        self.lock = Lock(store)
        self.uploaded: dict[Path, tuple[int, int]] = {}  # modification time (ns) and size
        self.begin = self.end = 0  # offsets of the last uploaded piece of the ledger, bytes
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="mirror", daemon=True)
        self.error: str | None = None

    def __enter__(self) -> Self:
        """Take the lock and update the local folder.

        Raises ConfigError if another driver has the lock, or the store cannot be used; Outage if the store does not
        answer.
        """
        pa.set_io_thread_count(max(pa.io_thread_count(), 4 * THREADS))  # uploads must not delay the lock's heartbeat
        try:
            self.lock.acquire(self.notify)
            self.lock.keep()
            self._fetch_ledger()
        except OSError as error:
            self.lock.end()
            raise store_error(f"out={self.store.url}", error) from None
        self.thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Complete the upload. Raises Halted if it is not complete after PATIENCE seconds."""
        self.closed.set()
        self.thread.join()
        problem = self._complete()
        self.lock.end()
        if problem:
            incomplete = f"{self.store.url} is incomplete ({problem}); run the same command again to complete it"
            if error is None:
                raise Halted(incomplete)
            self.notify(incomplete)

    def _complete(self) -> str | None:
        """Upload the rest, with retries, and release the lock; return the problem if the store is still incomplete."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                if not self.lock.taken and self.lock.ours():
                    self._upload_all()
                    self.lock.release()
                return None
            except OSError as failure:
                self._failed(failure)
                if time.monotonic() + RETRY > until:
                    return self.error
            time.sleep(RETRY)

    def _failed(self, error: OSError) -> None:
        if self.error is None:
            self.notify(f"{self.store.url}: {first_line(error)}; retrying; the results are safe on this machine")
        self.error = first_line(error)

    def _upload_all(self) -> None:
        """Upload the ledger's new entries with their files, and the report; trials.parquet comes last."""
        self.sync()
        run = self.paths.out.rglob("*")
        self._upload_changed(path for path in run if not path.is_relative_to(self.paths.deployments))
        self._upload_changed(self.paths.compact.glob("*.parquet"))
        for path in compacted_names(self.paths, self.store.list("deployments") if self.paths.compact.exists() else ()):
            self.store.delete(path)
        self._upload_changed([self.paths.trials])

    def settle(self) -> bool:
        """Stop following the ledger and upload the rest. Return False on failure, to try again at the run's end."""
        self.closed.set()
        self.thread.join()
        try:
            self.sync()
        except OSError as error:
            self._failed(error)
            return False
        return True

    def fetch_trials(self) -> None:
        """Download other machines' results for the report; on errors, continue without them."""
        try:
            sizes = self.store.list("deployments")
            here = {path: self.paths.out / path for path in sizes}
            missing = [path for path, file in here.items() if not file.exists() or file.stat().st_size != sizes[path]]
            self.store.download(self.paths.out, missing)
        except OSError as error:
            self.notify(f"{self.store.url}: {first_line(error)}; the report covers only the results on this machine")

    def _fetch_ledger(self) -> None:
        """Update the local ledger from the store's authoritative ledger; if they conflict, move the folder aside."""
        pieces, content = self.store.read_ledger()
        local = self._ledger(0)
        if not local.startswith(content) and not content.startswith(local):
            aside = self.paths.out.with_name(f"{self.paths.out.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            shutil.move(self.paths.out, aside)
            self.notify(f"{self.paths.out} did not match {self.store.url}: moved to {aside}")
            local = b""
        if len(local) < len(content):
            self.paths.out.mkdir(parents=True, exist_ok=True)
            self.paths.ledger.write_bytes(content)
            self.store.download(self.paths.out, [self.paths.plan.name, self.paths.trials.name])
        if pieces:
            self.begin, self.end = int(Path(pieces[-1]).stem), len(content)

    def _follow(self) -> None:
        while not self.closed.wait(LEDGER_POLL):
            try:
                self.sync()
                self.error = None
            except Misplaced:  # the driver gets and reports the same error
                return
            except OSError as error:
                self._failed(error)

    def sync(self) -> None:
        """Upload the files of new ledger entries, then the entries, then trials.parquet. Repeat it after an OSError.

        Raises Misplaced if another driver has taken over.
        """
        self.lock.check()
        ledger = self._ledger(self.end)
        ledger = ledger[: ledger.rfind(b"\n") + 1]
        self._upload_changed(self._files(ledger))
        self._upload_changed([self.paths.plan, self.paths.status, *self.paths.locks.glob("*.txt")])
        while ledger:
            cut = ledger.rfind(b"\n", 0, max(PIECE, ledger.find(b"\n") + 1)) + 1
            self._upload_piece(ledger[:cut])
            ledger = ledger[cut:]
        self._upload_changed([self.paths.trials])

    def _ledger(self, begin: int, size: int = -1) -> bytes:
        with suppress(FileNotFoundError), self.paths.ledger.open("rb") as file:
            file.seek(begin)
            return file.read(size)
        return b""

    def _files(self, ledger: bytes) -> Iterator[Path]:
        for entry in entries(ledger.splitlines()):
            if entry["event"] == "trial":
                row = entry["row"]
                yield from self.paths.trial(row["deployment_id"], row["attempt"], row["trial_id"]).folder.glob("*")
            elif entry["event"] == "attempt_end":
                yield from self.paths.attempt(entry["deployment_id"], entry["attempt"]).glob("*")

    def _upload_piece(self, new: bytes) -> None:
        """Add new entries to the last piece, or to a new piece if the last is full: objects cannot be appended to."""
        if self.end - self.begin > PIECE:
            self.begin = self.end
        before = self._ledger(self.begin, self.end - self.begin)
        self.store.write(f"ledger/{self.begin:015d}.jsonl", before + new)
        self.end += len(new)

    def _upload_changed(self, files: Iterable[Path]) -> None:
        stamps: dict[Path, tuple[int, int]] = {}
        for path in files:
            hidden = any(part.startswith(".") for part in path.relative_to(self.paths.out).parts)
            if path.is_file() and not hidden and path != self.paths.ledger:
                status = path.stat()
                stamps[path] = (status.st_mtime_ns, status.st_size)
        changed = {path: stamp for path, stamp in stamps.items() if self.uploaded.get(path) != stamp}
        self.store.upload(self.paths.out, changed)
        self.uploaded |= changed


def copy(url: str, folder: Path, only: Callable[[str], bool] = lambda name: True) -> None:
    """Copy a run from a store to a new or empty folder, with its ledger in one piece.

    Raises ConfigError if the folder has files, or the store cannot be read; Outage if the store does not answer.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder}: the folder is not empty; expected a new folder")
        _copy_into(folder, ObjectStore(url), only)
    except OSError as error:
        raise store_error(url, error) from None


def _copy_into(folder: Path, store: ObjectStore, only: Callable[[str], bool]) -> None:
    try:
        pieces, ledger = store.read_ledger()
        store.download(folder, [path for path in store.list() if path not in {*pieces, Lock.NAME} and only(path)])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ledger.jsonl").write_bytes(ledger)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # otherwise a retry would be rejected because of these files
        raise
