"""Sessions drawn at random, with the system prompts that they share: conversations, and agents that use tools."""

import math
from itertools import count as numbers
from pathlib import Path
from statistics import NormalDist
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from tokenizers import Tokenizer

from sweep.base.records import UNKNOWN
from sweep.inputs.sessions.turns import Piece, SessionWorkload, Turn, replay_note
from sweep.inputs.workload import Draw

LARGEST_FACTOR = 8  # between the mean of a client and that of all


class Conversations(SessionWorkload):
    """Sessions whose turns repeat the conversation so far, after one of `prefixes` system prompts.

    Numbers of turns and lengths are whole numbers within +-`spread` of their means; gaps are exponential. A request is
    a turn, so the last session may be cut to reach `num_requests`.
    """

    turns: PositiveInt = 5  # mean per session
    new_tokens: PositiveInt = 64  # mean of the question in each turn
    output_tokens: PositiveInt = 64  # mean of each answer
    spread: Annotated[float, Field(ge=0, le=1)] = 0.4
    gap: NonNegativeFloat = 0.0  # mean, s between an answer and the next turn
    prefixes: PositiveInt = 4  # system prompts, of which each session has one
    prefix_tokens: NonNegativeInt = 256
    zipf: NonNegativeFloat = 1.0  # the k-th system prompt has a weight of 1 / k^zipf
    clients: NonNegativeInt = 0  # above 0: sessions come from that many clients, of which the k-th has a weight of
    # 1 / k^zipf, its own means of turns, lengths and gaps, and its own system prompt
    client_spread: Annotated[float, Field(ge=0, le=2)] = 0.5  # standard deviation of the logarithm of clients' means
    shared: bool = True  # false: the same lengths and gaps, but no prompt begins like another: the control

    def notes(self, cache_dir: Path, tokenizer: Tokenizer | None = None) -> list[str]:
        return [f"{self.name}, drawn with seed 0: {replay_note(self)}"]

    def session_turns(self, count: int, seed: int = 0, tokenizer: Tokenizer | None = None) -> list[Turn]:
        """Return `count` turns, session after session; they depend only on the seed."""
        draws = _Draws(self, Draw(seed, "measured", count + self.most_turns()))
        for session in numbers():
            if len(draws.turns) >= count:
                break
            length = draws.whole_number("turns", session, session)
            self.add_branch(draws, (session,), length, UNKNOWN, draws.kinds[session])
        if self.shared:
            return draws.turns[:count]
        return [
            turn._replace(pieces=tuple(Piece((number, *piece), piece.tokens) for piece in turn.pieces))
            for number, turn in enumerate(draws.turns[:count])
        ]

    def most_turns(self) -> int:
        return self.most(self.turns)

    def most(self, mean: int) -> int:
        """Return the largest number with this mean that a session may have."""
        return around(mean * (LARGEST_FACTOR if self.clients else 1), self.spread, 1 - 1e-9)

    def most_begun(self) -> int:
        return self.started * self.most_turns()

    def add_branch(
        self, draws: "_Draws", name: tuple[int, ...], length: int, parent: int, prompt: int, kind: str = "prefix"
    ) -> int:
        """Add turns that follow each other behind the system prompt with this number; return the last one's index."""
        history = (Piece((kind, prompt), draws.mean("prefix_tokens", name[0])),) if self.prefix_tokens else ()
        pinned = len(history)
        for turn in range(length):
            number = len(draws.turns)
            history = (*history, Piece((*name, turn, "question"), draws.whole_number("new_tokens", name[0], number)))
            answer, gap = draws.whole_number("output_tokens", name[0], number), draws.gap(name[0], number)
            draws.turns.append(Turn(answer, parent, gap if turn else 0.0, history, pinned=pinned))
            history = (*history, Piece((*name, turn, "answer"), answer))
            parent = self.followed(draws, (*name, turn), number) if turn < length - 1 else number
        return parent

    def followed(self, draws: "_Draws", name: tuple[int, ...], number: int) -> int:
        """Return the index of the turn that the next one of a branch follows, after this one."""
        return number


class Agents(Conversations):
    """Jobs of agents: a turn is a model call, a gap is a tool's run time, and new tokens are the tool's result.

    After a share of its turns an agent starts sub-agents at once, which have system prompts of their own. It continues
    after the longest of them. So a session is a tree.
    """

    delegating: Annotated[float, Field(ge=0, le=1)] = 0.15  # share of the main agent's turns, except the last
    sub_agents: PositiveInt = 2  # started by such a turn
    sub_turns: PositiveInt = 3  # mean of each sub-agent

    def most_turns(self) -> int:
        return super().most_turns() * (1 + self.sub_agents * self.most(self.sub_turns))

    def followed(self, draws: "_Draws", name: tuple[int, ...], number: int) -> int:
        if len(name) > 2 or draws.draw_of("delegating")[number] >= self.delegating:
            return number
        ends, prompt = [], draws.kinds[name[0] if self.clients else number]
        for agent in range(self.sub_agents):
            length = around(self.sub_turns, self.spread, draws.draw_of(f"sub_turns/{agent}")[number])
            ends.append((length, self.add_branch(draws, (*name, agent), length, number, prompt, "sub")))
        return max(ends)[1]


class _Draws:
    """Turns, and the random numbers that they are made of: one of each purpose for a turn or a session."""

    def __init__(self, workload: Conversations, draw: Draw) -> None:
        self.turns: list[Turn] = []
        self._workload, self._draw, self._of = workload, draw, dict[str, list[float]]()
        kinds = workload.clients or workload.prefixes
        weights = np.cumsum(np.arange(1, kinds + 1, dtype=np.float64) ** -workload.zipf)
        self.kinds: list[int] = np.searchsorted(weights, np.asarray(draw.fractions("prefixes")) * weights[-1]).tolist()
        self._factors = dict[str, list[float]]()  # of each client's means

    def mean(self, key: str, session: int) -> int:
        """Return the mean of a session's client; without clients, the workload's."""
        mean: int = getattr(self._workload, key)
        return max(1, round(mean * self._factor(key, session)))

    def whole_number(self, key: str, session: int, number: int) -> int:
        """Return the number around that mean which is drawn for a turn, or for the session itself."""
        purpose = key.removesuffix("_tokens").replace("new", "input")
        return around(self.mean(key, session), self._workload.spread, self.draw_of(purpose)[number])

    def gap(self, session: int, number: int) -> float:
        mean: float = self._workload.gap
        return -math.log(self.draw_of("gaps")[number]) * mean * self._factor("gap", session)

    def _factor(self, key: str, session: int) -> float:
        clients, spread = self._workload.clients, self._workload.client_spread
        if not clients:
            return 1.0
        if key not in self._factors:
            fractions = Draw(0, "measured", clients).fractions(f"clients/{key}")  # the same clients in all trials
            normal = map(NormalDist(0, spread or 1e-9).inv_cdf, fractions)
            self._factors[key] = [min(max(math.exp(each), 1 / LARGEST_FACTOR), LARGEST_FACTOR) for each in normal]
        return self._factors[key][self.kinds[session]]

    def draw_of(self, purpose: str) -> list[float]:
        """Return random numbers in (0, 1), drawn once for each purpose."""
        if purpose not in self._of:
            self._of[purpose] = self._draw.fractions(purpose)
        return self._of[purpose]


def around(mean: int, spread: float, fraction: float) -> int:
    """Return a whole number from 1 within +-`spread` of the mean, for a fraction in (0, 1)."""
    reach = int(mean * spread + 1e-9)
    low, high = max(mean - reach, 1), mean + reach
    return low + int(fraction * (high - low + 1))
