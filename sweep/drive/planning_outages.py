"""Outages during planning: a failing index, registry or hub is retried for some time, then the run halts."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from backends.prepare.retry import FAULTS, patiently
from sweep.base.config import ConfigError, Halted, Settings
from sweep.base.exits import Outage
from sweep.base.masking import masked_message, secret_values
from sweep.drive import policy
from sweep.inputs.hub import forget_outages

Planning = TypeVar("Planning")


def plan_patiently(plan: Callable[[], Planning], settings: Callable[[], Settings]) -> Planning:
    """Return the result of `plan`, retried after outages as long as the patience in the run's `settings` allows.

    The patience is two minutes at most, since nothing has worked in this run yet. In a dry run, raises ConfigError at
    once. Otherwise raises Halted when the patience is over: the same command can be repeated.
    """
    try:
        return plan()
    except FAULTS as error:
        if not policy.is_waited_for(error):
            raise
        if settings().dry_run:
            raise ConfigError(str(error)) from None
        failures = [error]  # the first failure, reported like later failures

    def try_again() -> Planning:
        if failures:
            raise failures.pop()
        forget_outages()
        return plan()

    try:
        return patiently(try_again, policy.patience(settings(), worked=False), _print_outage)
    except Outage as error:
        raise Halted(f"planning: {error}; run the same command again to continue") from error


def _print_outage(reason: str) -> None:
    text = masked_message(" ".join(reason.split()), secret_values(os.environ))
    print(f"planning: {text}; retrying", file=sys.stderr, flush=True)
