"""A race: after each block of replicates, points that are surely not the best leave the rest of the plan."""

from collections.abc import Callable, Iterable, Mapping, Sequence

FEWEST_BLOCKS = 3  # two show how much launches differ; the others can be saved
Judge = Callable[[list[str]], Mapping[int, str]]
"""Given the trials that count, returns the points to drop, each with the reason."""


class Race:
    """The points still in the race. It depends only on the trials that ended, so their rows replay it.

    Block k holds the k-th replicate of each point. A look follows each complete block except the first and the last.
    """

    def __init__(self, points: Sequence[Sequence[str]], judge: Judge) -> None:
        """`points` has the ids of each point's trials, by replicate."""
        self.points, self.judge = points, judge
        self.replicates = max(map(len, points), default=0)
        self.pending = [{trials[block] for trials in points if block < len(trials)} for block in range(self.replicates)]
        self.ends: dict[int, int] = {}  # dropped point -> its replicates that the looks use
        self.complete = 1  # blocks; the first shows no spread
        self.dropped: dict[str, str] = {}  # trials not to run -> reason

    @property
    def looks(self) -> int:
        """The number of looks, over which the risk of a false drop is divided."""
        return max(1, self.replicates - FEWEST_BLOCKS + 1)

    def settle(self, trial_ids: Iterable[str]) -> bool:
        """Record that these trials ended; look again if that completes a block. Return whether points were dropped."""
        ended, before = set(trial_ids), len(self.dropped)
        for block in self.pending:
            block.difference_update(ended)
        while self.complete < self.replicates - 1 and not any(self.pending[: self.complete + 1]):
            self.complete += 1
            counting = [trials[: self.ends.get(point, self.complete)] for point, trials in enumerate(self.points)]
            for point, reason in self.judge([trial for trials in counting for trial in trials]).items():
                if point not in self.ends:
                    self.ends[point] = self.complete
                    self.dropped |= dict.fromkeys(self.points[point][self.complete :], reason)
            for block in self.pending:
                block.difference_update(self.dropped)
        return len(self.dropped) > before
