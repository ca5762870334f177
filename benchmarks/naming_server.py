"""The simulated engine for clients that send no request id: it numbers such requests, and their chat answers say so.

    python -m benchmarks.naming_server --config JSON

Each token of a chat answer is the request's id. So a client that reports the text of each answer, but no id, is matched
with the log of true times without a guess from order or length. Other answers are those of the simulated engine.
"""

import itertools

from backends.simulated_server.__main__ import SimulatedServer, main
from backends.simulated_server.answers import WORD, Dialect, SequenceCounts
from backends.simulated_server.connection import ClientConnection
from backends.simulated_server.typed_answers import TYPED_ANSWERS


class NamedAnswer(Dialect):
    """A chat answer whose words are its request's id."""

    def token(self, sequence: SequenceCounts, count: int) -> bytes:
        return super().token(sequence, count).replace(WORD.encode(), f" {self.request_id}".encode())


class NamingServer(SimulatedServer):
    """The listening socket; the requests without an id are numbered in order of arrival."""

    numbers = itertools.count()

    def answer(self, connection: ClientConnection, url: bytes, body: bytes, request_id: bytes, arrival: int) -> None:
        super().answer(connection, url, body, request_id or b"%d" % next(self.numbers), arrival)


if __name__ == "__main__":
    TYPED_ANSWERS["chat"] = NamedAnswer
    main(server=NamingServer)
