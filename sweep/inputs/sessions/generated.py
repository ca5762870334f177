"""Conversations drawn at random: their turns, lengths and gaps, and the system prompts that they share."""

from collections.abc import Sequence
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
        return [f"{self.name}, drawn with seed 0: {replay_note(self.session_turns(self.num_requests))}"]

    def session_turns(self, count: int, seed: int = 0, tokenizer: Tokenizer | None = None) -> list[Turn]:
        """Return `count` turns, session after session; they depend only on the seed."""
        draw = Draw(seed, "measured", count)
        number_of_turns, inputs, outputs = (
            self._around(mean, draw.fractions(purpose))
            for mean, purpose in ((self.turns, "turns"), (self.new_tokens, "input"), (self.output_tokens, "output"))
        )
        gaps = -np.log(np.asarray(draw.fractions("gaps"))) * self.gap
        weights = np.cumsum(np.arange(1, self.prefixes + 1, dtype=np.float64) ** -self.zipf)
        prompts = np.searchsorted(weights, np.asarray(draw.fractions("prefixes")) * weights[-1])
        turns: list[Turn] = []
        session = 0
        while len(turns) < count:
            history = (Piece(("prefix", int(prompts[session])), self.prefix_tokens),) if self.prefix_tokens else ()
            for turn in range(min(number_of_turns[session], count - len(turns))):
                number = len(turns)
                history = (*history, Piece((session, turn, "question"), inputs[number]))
                pieces = history if self.shared else tuple(Piece((number, *piece), piece.tokens) for piece in history)
                before, gap = (number - 1, float(gaps[number])) if turn else (UNKNOWN, 0.0)
                turns.append(Turn(outputs[number], before, gap, pieces))
                history = (*history, Piece((session, turn, "answer"), outputs[number]))
            session += 1
        return turns

    def _around(self, mean: int, fractions: Sequence[float]) -> list[int]:
        reach = int(mean * self.spread + 1e-9)
        low, high = max(mean - reach, 1), mean + reach
        return [low + int(fraction * (high - low + 1)) for fraction in fractions]
