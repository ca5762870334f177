"""The answers on disk: a SQLite file, written behind the requests' backs. It has no prompt and no API key in it."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sweep.base.config import ConfigError
from sweep.gateway.caching.answer import KeptAnswer
from sweep.gateway.caching.cache import Entry
from sweep.gateway.caching.keys import AnswerKey, Keys
from sweep.gateway.metrics import Metrics

TABLES = """
create table if not exists about (name text primary key, value blob);
create table if not exists answers
    (context blob, question blob, vector blob, answer text, stored_at real, primary key (context, question));
create index if not exists by_age on answers (stored_at);
"""
REMOVE_STALE = "delete from answers where stored_at < ?"
REMOVE_OLDEST = "delete from answers where rowid not in (select rowid from answers order by stored_at desc limit ?)"


class AnswerStore:
    """The file of a cache. All of its writing is done in one thread of its own; what fails is counted."""

    def __init__(self, path: str, embedder: str, metrics: Metrics) -> None:
        self._metrics = metrics
        self._connection = _connect(path)
        self._writer = ThreadPoolExecutor(1, "answer-store")
        about = dict(self._connection.execute("select name, value from about"))
        self.keys = Keys(about.get("secret"))
        if about.get("embedder") != embedder.encode():
            self._connection.execute("delete from answers")  # other vectors
        values = [("secret", self.keys.secret), ("embedder", embedder.encode())]
        self._connection.executemany("insert or replace into about values (?, ?)", values)
        self._connection.commit()

    def load(self, capacity: int, oldest: float) -> Iterator[Entry]:
        """The latest answers, the oldest first; those that are stored earlier than `oldest`, or too many, are removed
        from the file."""
        with self._connection:
            self._connection.execute(REMOVE_STALE, (oldest,))
            self._connection.execute(REMOVE_OLDEST, (capacity,))
        rows = self._connection.execute("select * from answers order by stored_at").fetchall()
        for context, question, vector, answer, stored_at in rows:
            numbers = None if vector is None else np.frombuffer(vector, np.float32)
            yield Entry(AnswerKey(context, question), numbers, KeptAnswer.parse(answer), stored_at)

    def add(self, entry: Entry, removed: Iterable[Entry], oldest: float) -> None:
        """Write an answer, and remove those that went for it or are stored earlier than `oldest`; later."""
        vector = None if entry.vector is None else entry.vector.tobytes()
        row = (*entry.key, vector, entry.answer.dump(), entry.stored_at)
        self._writer.submit(self._write, row, [each.key for each in removed], oldest)

    def _write(self, row: tuple[object, ...], removed: list[AnswerKey], oldest: float) -> None:
        try:
            with self._connection:
                self._connection.execute(REMOVE_STALE, (oldest,))
                self._connection.executemany("delete from answers where context = ? and question = ?", removed)
                self._connection.execute("insert or replace into answers values (?, ?, ?, ?, ?)", row)
        except sqlite3.Error:
            self._metrics.failed_writes.inc()

    def clear(self) -> None:
        """Remove all answers, later."""
        self._writer.submit(self._clear)

    def _clear(self) -> None:
        try:
            with self._connection:
                self._connection.execute("delete from answers")
        except sqlite3.Error:
            self._metrics.failed_writes.inc()

    def close(self) -> None:
        """Write what is waiting, and close the file."""
        self._writer.shutdown()
        self._connection.close()


def _connect(path: str) -> sqlite3.Connection:
    """The file, readable by its owner alone, with its tables. Raises ConfigError."""
    file = Path(path).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(file, check_same_thread=False)
        connection.executescript("pragma journal_mode=wal; pragma synchronous=normal;" + TABLES)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"gateway.cache.path={path}: {error}") from None
    return connection
