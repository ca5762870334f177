"""A question about a capacity: each launch that the question chooses searches its configuration's capacity."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from sweep.cli.searches.ask import PER_GPU, REPEATS, PlannedAsk
from sweep.cli.searches.capacity import PlannedCapacity
from sweep.plan.estimate import Expected
from sweep.plan.packing import Need
from sweep.plan.plan import Deployment, Plan
from sweep.search.ask import NextLaunch, Result
from sweep.search.claim_details import task_of


class AskedCapacity(PlannedAsk):
    """The search for the configuration with the highest capacity. It depends on its launches' claims, in their order.

    `searches` begins with the searches of all launches, and keeps those that were chosen.
    """

    def __init__(self, searches: PlannedCapacity, full: Plan, grid: Plan, launches_of_grid: int) -> None:
        self.searches = searches
        self.unchosen, searches.groups = searches.groups, {}
        self.launches = {
            launch.launch_key: (place, replicate)
            for place, each in enumerate(full.deployments)
            for launch in each.launches(per_replicate=True)
            if (replicate := launch.replicate) is not None
        }
        planned = searches.ledger, searches.paths, searches.command, searches.expect
        super().__init__(full, grid, launches_of_grid, *planned)

    def _restore(self) -> None:
        """Tell the search the claims of launches that earlier runs began; those that were cut off go on first."""
        self.plan = self.searches.plan = replace(self.searches.plan, settings=self.plan.settings)
        order = {trial_id: place for place, trial_id in enumerate(self.ledger.rows)}
        begun = {key: state.measured for key, (state,) in self.unchosen.items() if state.measured}
        for key in sorted(begun, key=lambda key: max(map(order.__getitem__, begun[key]))):
            self._choose(key)
        self._learn()

    def _choose(self, key: str) -> None:
        self.searches.groups[key] = self.unchosen.pop(key)
        self.used.add(self.launches[key])

    def _learn(self) -> None:
        """Tell the search the claims that it does not know."""
        for key, (state,) in self.searches.groups.items():
            if state.concluded and key not in self.told:
                assert state.record is not None
                configuration, replicate = self.launches[key]
                self.told[key] = state.record["status"]
                capacity = capacity_of(state.record)
                if self.best.endswith(PER_GPU):
                    capacity /= self.search.space.gpus[configuration]
                launch = configuration * REPEATS + replicate
                self.search.tell([Result(configuration, launch, (capacity,) if capacity else None)])

    # The driver's interface ------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self.searches.done and super().done

    def ask(self, has_room: Callable[[Need], bool]) -> tuple[Deployment, Expected] | None:
        return self.searches.ask(has_room) or super().ask(has_room)

    def wanted(self, most: int) -> list[Need]:
        return [*self.searches.wanted(most), *super().wanted(most)][:most]

    def settle(self, trial_ids: Iterable[str]) -> str | None:
        self.searches.settle(trial_ids)
        self._learn()
        return self._news()

    def hear(self, launch: Deployment, event: Any) -> str | None:
        self.searches.hear(launch, event)
        self._learn()
        return self._news()

    def _pending(self) -> list[int]:
        """Return the points of launches without a claim: a configuration has one point."""
        return [self.launches[key][0] for key, (state,) in self.searches.groups.items() if not state.concluded]

    def _begin(self, chosen: NextLaunch, replicate: int) -> tuple[Deployment, Expected] | None:
        key = next(key for key, launch in self.launches.items() if launch == (chosen.configuration, replicate))
        self._choose(key)
        begun = self.searches.start(key, lambda need: True)
        self._learn()
        return begun

    # The answer ------------------------------------------------------------------------------------------------------

    def name(self, point: int) -> str:
        return f"{self.deployments[point].describe()} {task_of(next(iter(self.points[point].values())))}"

    def _reason(self, point: int) -> str:
        states = (state for key, (state,) in self.searches.groups.items() if self.launches[key][0] == point)
        record = next(state.record for state in states if state.record)
        return str(record["ended"] or record["lines"][0])

    def write(self) -> dict[str, dict[str, Any]]:
        """Write the claims and the answer into the results folder; return the answer by the name of its quantity."""
        self.searches.write()
        return super().write()


def capacity_of(claim: Mapping[str, Any]) -> float:
    """Return the load that is most likely a claim's capacity; 0 if it has none. Older claims do not name it."""
    middle = math.sqrt(claim["lower"] * (claim["upper"] or claim["lower"]))
    return float(claim.get("estimate", middle) or 0.0)
