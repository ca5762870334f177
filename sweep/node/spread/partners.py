"""The leader's view of the replicas on other nodes: it has them launched, follows their nodes' reports, ends them."""

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from backends.launch import relay, server, task
from backends.launch.replicas import replica_launches
from backends.launch.task import Stopped
from sweep.base.exits import Cause, Exit
from sweep.drive.policy import Failure
from sweep.node.events import Emit, Files, Held, HeldEngine, Leased, PartnerEvent, State
from sweep.node.telemetry import Reading
from sweep.node.work import PreparedNode, Work

NEWS_WITHIN = 3.0  # s to wait for the next report of a partner
PARTNER_POLL = 0.05  # s


class NodeLost(Exception):
    """A partner is gone, with the node's address and the reason."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return f"node {self.address} is lost: {self.reason}"


class NodeBusy(Exception):
    """Another sweep holds the lease on a partner's GPUs, so that this launch must release its own nodes, and wait."""


@dataclass(frozen=True)
class NodeShare:
    """The replicas of a launch that one node runs, and how the leader reaches them."""

    replicas: range
    address: str  # of the node, in the cluster's network
    token: str = field(repr=False)


class PartnerTask(Protocol):
    """The interface of a partner's task."""

    def events(self) -> Iterator[PartnerEvent]: ...  # raises NodeLost
    def stop(self) -> None: ...  # returns once its engines have ended, or cannot be reached


class SpreadNodes(NamedTuple):
    """The nodes that the replicas of a launch are divided over."""

    addresses: tuple[str, ...]  # the leader's first
    start: Callable[[int, NodeShare], PartnerTask]  # starts the task of the node with this index

    def replicas(self, node: int, total: int) -> range:
        """Return the numbers, from 0, of the replicas on a node."""
        size = total // len(self.addresses)
        return range(node * size, (node + 1) * size)


class Partner:
    """A node that holds its share of the replicas, as last reported."""

    def __init__(self, share: NodeShare, started: PartnerTask, emit: Emit) -> None:
        self.share, self._task, self._emit = share, started, emit
        self.leased = False
        self.held: Held | None = None
        self.end: BaseException | Failure | None = None
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, name=f"partner {share.address}", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        end: BaseException | Failure = NodeLost(self.share.address, "its task ended")
        try:
            for event in self._task.events():
                if isinstance(event, Failure):
                    end = event
                self._receive(event)
        except BaseException as error:  # noqa: BLE001 - handed to the leader's thread
            end = error
        with self._news:
            self.end = end
            self._news.notify_all()

    def _receive(self, event: PartnerEvent) -> None:
        if isinstance(event, Leased | Held):
            with self._news:
                self.leased, self.held = True, event if isinstance(event, Held) else self.held
                self._news.notify_all()
        elif isinstance(event, State | Files):
            text = isinstance(event, State) and f"on {self.share.address}: {event.text}"
            with contextlib.suppress(Stopped):
                self._emit(State(text) if text else event)

    def check(self) -> None:
        """Raise LaunchError, NodeBusy or NodeLost if it has ended."""
        if isinstance(self.end, Failure):
            if self.end.exit.cause == Cause.LEASED:
                raise NodeBusy(self.end.reason)
            raise server.LaunchError(self.end.outcome, self.end.reason, self.end.exit, self.end.log_tail or "")
        if self.end is not None:
            raise self.end

    def await_news(self) -> None:
        """Wait for the next report: what the engines have logged until now may not be in the last one."""
        with self._news:
            before = self.held
            self._news.wait_for(lambda: self.held is not before or self.end is not None, NEWS_WITHIN)

    def stop(self) -> None:
        self._task.stop()
        self._thread.join()

    def read(self) -> Iterable[Reading]:
        """Return the latest readings of its GPUs."""
        return self.held.readings if self.held is not None and self.end is None else ()


class RemoteEngine(server.Engine):
    """A replica on a partner, with what the partner last reported about it."""

    def __init__(self, partner: Partner, index: int, work: Work, node: PreparedNode) -> None:
        self.partner, self._index = partner, index
        here = replace(node.launch, gpus=(), cpus=())
        launch = replica_launches(here, work.deployment.backend.replicas, partner.share.replicas)[index]
        super().__init__(work.deployment.backend, launch, marker="", versions={})
        self.log = launch.workdir.with_suffix(".log")  # messages of the leader; the engine's log is on its node
        self.url, self.command = self._reported.url, self._reported.command
        self.startup_seconds, self.cold_ttft = self._reported.startup_seconds, self._reported.cold_ttft
        self.headers = {relay.TOKEN_HEADER: partner.share.token}

    def _start(self) -> None:
        pass

    @property
    def _reported(self) -> HeldEngine:
        assert self.partner.held is not None, "made only once its partner is ready"
        return self.partner.held.engines[self._index]

    def alive(self) -> bool:
        return self.partner.end is None and self._reported.ended is None

    def log_position(self) -> int:
        return self._reported.log_position

    def log_left_out(self) -> int:
        return self._reported.log_left_out

    def log_tail(self, lines: int = 40, since: int = 0) -> str:
        ended = self._reported.ended
        return (ended and ended.log_tail) or ""

    def ran_out_of_memory(self, since: int = 0) -> bool:
        self.partner.await_news()
        return self._reported.out_of_memory_at > since

    def exit_reason(self) -> str:
        if self.partner.end is None and (ended := self._reported.ended) is not None:
            return ended.reason
        return self.named(str(self.partner.end))

    def exit(self) -> Exit:
        ended = self._reported.ended
        return ended.exit if self.partner.end is None and ended is not None else Exit(Cause.LOST)

    def processes_known(self) -> bool:
        return True

    def shows_on_gpus(self) -> bool:
        return self._reported.on_gpus


@contextlib.contextmanager
def launched_elsewhere(
    work: Work, node: PreparedNode, spread: SpreadNodes | None, emit: Emit
) -> Iterator[Callable[[], tuple[RemoteEngine, ...]]]:
    """Have the other nodes launch their replicas, and end them after the block; yield a function that awaits them.

    Before the block, all nodes must lease their GPUs: raises NodeBusy. All raises LaunchError or NodeLost, the block at
    its end if a node was lost meanwhile.
    """
    partners: list[Partner] = []

    def wait_until_all(reached: Callable[[Partner], bool]) -> None:
        while not all(map(reached, partners)):
            task.pause(PARTNER_POLL)
            for partner in partners:
                partner.check()

    def await_engines() -> tuple[RemoteEngine, ...]:
        wait_until_all(lambda partner: partner.held is not None)
        return tuple(
            RemoteEngine(partner, index, work, node)
            for partner in partners
            for index in range(len(partner.share.replicas))
        )

    if spread is None:
        yield await_engines
        return
    token, total = secrets.token_urlsafe(), work.deployment.backend.replicas
    try:
        for number, address in enumerate(spread.addresses[1:], start=1):
            share = NodeShare(spread.replicas(number, total), address, token)
            partners.append(Partner(share, spread.start(number, share), emit))
        wait_until_all(lambda partner: partner.leased)
        yield await_engines
        if lost := next((each.end for each in partners if isinstance(each.end, NodeLost)), None):
            raise lost
    finally:
        stops = [threading.Thread(target=partner.stop) for partner in partners]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
