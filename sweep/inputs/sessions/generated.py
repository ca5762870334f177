"""Sessions drawn at random, with the system prompts that they share: conversations, and agents that use tools."""

from collections.abc import Sequence
from itertools import count as numbers
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from tokenizers import Tokenizer

from sweep.base.records import UNKNOWN
from sweep.inputs.sessions.turns import Piece, SessionWorkload, Turn, replay_note
from sweep.inputs.workload import Draw


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
    shared: bool = True  # false: the same lengths and gaps, but no prompt begins like another: the control

    def notes(self, cache_dir: Any) -> list[str]:
        return [f"{self.name}, drawn with seed 0: {replay_note(self.turns_to_send(self.num_requests))}"]

    def session_turns(self, count: int, seed: int = 0, tokenizer: Tokenizer | None = None) -> list[Turn]:
        """Return `count` turns, session after session; they depend only on the seed."""
        draws = _Draws(self, Draw(seed, "measured", count + self.most_turns()))
        for session in numbers():
            if len(draws.turns) >= count:
                break
            self.add_branch(draws, (session,), draws.number_of_turns[session], UNKNOWN, draws.prompts[session])
        if self.shared:
            return draws.turns[:count]
        return [
            turn._replace(pieces=tuple(Piece((number, *piece), piece.tokens) for piece in turn.pieces))
            for number, turn in enumerate(draws.turns[:count])
        ]

    def most_turns(self) -> int:
        return max(around(self.turns, self.spread, [1 - 1e-9]))

    def most_begun(self) -> int:
        return self.started * self.most_turns()

    def add_branch(
        self, draws: "_Draws", name: tuple[int, ...], length: int, parent: int, prompt: int, kind: str = "prefix"
    ) -> int:
        """Add turns that follow each other behind the system prompt with this number; return the last one's index."""
        history = (Piece((kind, prompt), self.prefix_tokens),) if self.prefix_tokens else ()
        pinned = len(history)
        for turn in range(length):
            number = len(draws.turns)
            history = (*history, Piece((*name, turn, "question"), draws.inputs[number]))
            draws.turns.append(
                Turn(draws.outputs[number], parent, draws.gaps[number] if turn else 0.0, history, pinned=pinned)
            )
            history = (*history, Piece((*name, turn, "answer"), draws.outputs[number]))
            parent = self.followed(draws, (*name, turn), number) if turn < length - 1 else number
        return parent

    def followed(self, draws: "_Draws", name: tuple[int, ...], number: int) -> int:
        """Return the index of the turn that the next one of a branch follows, after this one."""
        return number


class Agents(Conversations):
    """Jobs of agents: a turn is a call of the model, a gap the time of a tool, and new tokens are its result.

    After a share of its turns an agent starts sub-agents at once, which have system prompts of their own. It continues
    after the longest of them. So a session is a tree.
    """

    delegating: Annotated[float, Field(ge=0, le=1)] = 0.15  # share of the main agent's turns, except the last
    sub_agents: PositiveInt = 2  # started by such a turn
    sub_turns: PositiveInt = 3  # mean of each sub-agent

    def most_turns(self) -> int:
        return super().most_turns() * (1 + self.sub_agents * max(around(self.sub_turns, self.spread, [1 - 1e-9])))

    def followed(self, draws: "_Draws", name: tuple[int, ...], number: int) -> int:
        if len(name) > 2 or draws.draw_of("delegating")[number] >= self.delegating:
            return number
        ends = []
        for agent in range(self.sub_agents):
            (length,) = around(self.sub_turns, self.spread, [draws.draw_of(f"sub_turns/{agent}")[number]])
            ends.append((length, self.add_branch(draws, (*name, agent), length, number, draws.prompts[number], "sub")))
        return max(ends)[1]


class _Draws:
    """Turns, and the random numbers that they are made of: one of each purpose for a turn or a session."""

    def __init__(self, workload: Conversations, draw: Draw) -> None:
        self.turns: list[Turn] = []
        self._draw, self._of = draw, dict[str, list[float]]()
        self.number_of_turns, self.inputs, self.outputs = (
            around(mean, workload.spread, draw.fractions(purpose))
            for mean, purpose in zip(
                (workload.turns, workload.new_tokens, workload.output_tokens), ("turns", "input", "output"), strict=True
            )
        )
        self.gaps = (-np.log(np.asarray(draw.fractions("gaps"))) * workload.gap).tolist()
        weights = np.cumsum(np.arange(1, workload.prefixes + 1, dtype=np.float64) ** -workload.zipf)
        self.prompts = np.searchsorted(weights, np.asarray(draw.fractions("prefixes")) * weights[-1]).tolist()

    def draw_of(self, purpose: str) -> list[float]:
        """Return random numbers in (0, 1), drawn once for each purpose."""
        if purpose not in self._of:
            self._of[purpose] = self._draw.fractions(purpose)
        return self._of[purpose]


def around(mean: int, spread: float, fractions: Sequence[float]) -> list[int]:
    """Return whole numbers from 1 within +-`spread` of the mean, for fractions in (0, 1)."""
    reach = int(mean * spread + 1e-9)
    low, high = max(mean - reach, 1), mean + reach
    return [low + int(fraction * (high - low + 1)) for fraction in fractions]
