"""When sockets are read: at once where somebody waits for it, in rounds where nobody does and tokens come fast."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import uvloop

from sweep.client import poller
from sweep.client.poller import ALERT, MOST_URGENT, SLOW, WORTH_IT, Poller

FAST = WORTH_IT * 2  # reads in a second


class Socket:
    """A watched socket and the other end of it, and when bytes were read from it."""

    def __init__(self, poller: Poller, patient: bool = True) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.reads: list[float] = []
        self.poller, self.ended = poller, False
        poller.add(self.near.fileno(), self._readable)
        if patient:
            poller.set_patient(self.near.fileno(), True)

    async def reads_after(self, seconds: float) -> int:
        """Send a byte, and return how many reads there were after this time."""
        self.far.send(b"x")
        await asyncio.sleep(seconds)
        return len(self.reads)

    def _readable(self) -> None:
        if self.near.recv(100):
            self.reads.append(time.monotonic())
        else:
            self.ended = True
            self.poller.remove(self.near.fileno(), patient=True)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def slow_rounds(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(poller, "PERIOD", 0.3)
    return 0.3


def run(story: Callable[[Poller], Awaitable[None]]) -> None:
    async def body() -> None:
        await story(Poller(asyncio.get_running_loop()))

    uvloop.run(body())


def in_rounds(poller: Poller) -> None:
    poller.adjust(0.0, 0)
    poller.adjust(1.0, FAST)


def test_the_patient_wait_for_the_round_and_the_urgent_do_not(slow_rounds: float) -> None:
    async def story(poller: Poller) -> None:
        urgent, patient = Socket(poller, patient=False), Socket(poller)
        in_rounds(poller)
        for one in (urgent, patient):
            one.far.send(b"x")
        await asyncio.sleep(slow_rounds / 3)
        assert len(urgent.reads) == 1
        assert not patient.reads
        await asyncio.sleep(slow_rounds)
        assert len(patient.reads) == 1
        poller.set_patient(patient.near.fileno(), False)
        assert await patient.reads_after(slow_rounds / 3) == 2

    run(story)


def test_many_urgent_reads_let_others_take_turns() -> None:
    async def story(poller: Poller) -> None:
        order: list[str] = []
        first = Socket(poller)  # the first token of a request, which arrives while many answers end
        ends = [Socket(poller, patient=False) for _ in range(4 * MOST_URGENT)]

        def ended(end: Socket) -> None:
            if not order:
                first.far.send(b"x")
            order.append("end")
            end.near.recv(9)

        poller._callbacks[first.near.fileno()] = lambda: order.append("first")
        for end in ends:
            poller._callbacks[end.near.fileno()] = partial(ended, end)
            end.far.send(b"x")
        while len(order) <= len(ends):
            await asyncio.sleep(0)
        assert order.index("first") <= 2 * MOST_URGENT

    run(story)


@pytest.mark.parametrize(
    ("reads", "bursts", "at_once"),
    [(WORTH_IT // 2, False, True), (FAST, True, True), (FAST, False, False)],
    ids=["slow", "bursts", "fast"],
)
def test_rounds_only_where_tokens_come_fast_and_one_by_one(
    reads: int, bursts: bool, at_once: bool, slow_rounds: float
) -> None:
    async def story(poller: Poller) -> None:
        one = Socket(poller)
        poller.adjust(0.0, 0)
        if bursts:
            poller.alert(0.5)
        poller.adjust(1.0, reads)
        assert await one.reads_after(slow_rounds / 3) == at_once

    run(story)


@pytest.mark.slow
def test_a_read_of_several_events_ends_the_rounds_for_a_while(slow_rounds: float) -> None:
    async def story(poller: Poller) -> None:
        one = Socket(poller)
        in_rounds(poller)
        poller.alert(1.0)
        await asyncio.sleep(slow_rounds * 1.3)  # the round that was due is the last
        assert await one.reads_after(slow_rounds / 3) == 1
        poller.adjust(0.9 + ALERT, 2 * FAST)  # too early
        assert await one.reads_after(slow_rounds / 3) == 2
        poller.adjust(1.0 + ALERT, 3 * FAST)
        assert await one.reads_after(slow_rounds / 3) == 2
        poller.alert(1.0 + ALERT)
        poller.adjust(0.9 + 3 * ALERT, 5 * FAST)  # the second time it takes twice as long
        await asyncio.sleep(slow_rounds)
        assert await one.reads_after(slow_rounds / 3) == 4

    run(story)


@pytest.mark.slow
def test_the_rounds_of_slow_streams_are_longer_until_one_was_quicker_than_it_looked(
    slow_rounds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "LONG_PERIOD", 3 * slow_rounds)

    async def story(poller: Poller) -> None:
        one = Socket(poller)
        poller.pace(SLOW * 1.1)
        in_rounds(poller)
        assert await one.reads_after(2 * slow_rounds) == 0
        poller.pace(SLOW * 0.9)
        await asyncio.sleep(1.3 * slow_rounds)
        assert len(one.reads) == 1
        poller.pace(SLOW * 1.1)
        poller.alert(1.0)
        poller.adjust(1.0 + ALERT, 2 * FAST)
        poller.pace(SLOW * 1.1)
        await asyncio.sleep(1.3 * slow_rounds)
        assert await one.reads_after(1.3 * slow_rounds) == 2

    run(story)


def test_an_end_that_comes_with_the_last_bytes_is_read_with_them(slow_rounds: float) -> None:
    async def story(poller: Poller) -> None:
        one = Socket(poller)
        in_rounds(poller)
        one.far.send(b"x")
        one.far.close()
        await asyncio.sleep(slow_rounds * 1.3)
        assert len(one.reads) == 1
        assert one.ended

    run(story)


def test_one_that_was_closed_in_the_same_round_is_left_alone() -> None:
    async def story(poller: Poller) -> None:
        first, second = (Socket(poller, patient=False) for _ in range(2))
        read = []

        def closes(me: Socket, other: Socket) -> Callable[[], None]:
            def readable() -> None:
                read.append(me)
                poller.remove(other.near.fileno(), patient=False)
                me.near.recv(100)

            return readable

        for me, other in ((first, second), (second, first)):
            poller.remove(me.near.fileno(), patient=False)
            poller.add(me.near.fileno(), closes(me, other))
        first.far.send(b"x")
        second.far.send(b"x")
        await asyncio.sleep(0.05)
        assert len(read) == 1

    run(story)
