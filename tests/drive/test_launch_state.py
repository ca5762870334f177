"""A launch's transitions, as a table and without an executor."""

from types import SimpleNamespace

import pytest

from sweep.base.records import Outcome
from sweep.drive.launch_state import ENDED, TRANSITIONS, Action, LaunchState, Stage, Trigger
from sweep.node.events import Placed
from sweep.plan.plan import Deployment, Trial

NODE = Placed("n0", "10.0.0.1")
OTHER = Placed("n1", "10.0.0.2")


def state_of(*trial_ids):
    trials = [Trial(trial_id, SimpleNamespace(), SimpleNamespace(), 0, 1, {}, {}) for trial_id in trial_ids]
    return LaunchState(Deployment("a", SimpleNamespace(), SimpleNamespace(), 0, None, trials))


def running(state, node=NODE):
    state.submitted("1")
    state.started(node)
    return state


def pending(state):
    return [trial.trial_id for trial in state.pending_trials]


def test_nothing_but_the_table_can_happen():
    for stage in Stage:
        for trigger in Trigger:
            state = state_of("1")
            state.stage = stage
            if (stage, trigger) not in TRANSITIONS:
                with pytest.raises(ValueError, match=f"a: {trigger.name} in stage {stage.name}"):
                    state.advance(trigger)


def test_what_ends_needs_a_slot_no_more_and_is_queued_again_only_by_an_action():
    """Every way into PENDING from elsewhere is a REQUEUE, so that the packer's queue agrees with the stages."""
    for (before, _), (after, action) in TRANSITIONS.items():
        if after is Stage.PENDING:
            assert (action is Action.REQUEUE) == (before is not Stage.PENDING)
        assert not (before in ENDED and after is not Stage.PENDING)


def test_a_loss_retries_the_pending_trials_with_the_one_that_ran_last():
    state = running(state_of("1", "2", "3"))
    state.finish("1", Outcome.OK)
    assert state.lost(in_our_code=False, limit=20) is Action.REQUEUE
    assert pending(state) == ["3", "2"], "2 was running: it may be what kills the worker"
    assert state.trials_without_row == 2
    state.submitted("2")
    state.lost(in_our_code=False, limit=20)
    assert pending(state) == ["3", "2"], "this attempt had not started: nothing ran"


def test_a_loss_after_the_last_row_is_an_end():
    state = running(state_of("1"))
    state.finish("1", Outcome.HUNG)
    assert state.lost(in_our_code=False, limit=1) is Action.NOTHING
    assert state.stage is Stage.DONE


def test_a_start_ends_the_wait():
    state = state_of("1")
    state.submitted("1")
    state.not_started(now=100.0, patience=60.0)
    running(state)
    state.lost(in_our_code=False, limit=20)
    state.submitted("3")
    assert state.not_started(now=1000.0, patience=60.0) is Action.REQUEUE


def test_an_attempt_has_no_node_until_it_starts():
    state = running(state_of("1"))
    assert state.node == NODE
    state.lost(in_our_code=False, limit=20)
    state.submitted("2")
    assert (state.node, state.attempt) == (None, "2")


def test_a_pending_deployment_retries_its_failed_trials_too_and_is_queued_once():
    state = running(state_of("1", "2"))
    state.finish("1", Outcome.HUNG)
    assert state.lost(in_our_code=False, limit=20) is Action.REQUEUE
    assert pending(state) == ["2"]
    assert state.reopen(lambda trial_id, outcome: outcome is Outcome.HUNG) == ({"1"}, Action.NOTHING)
    assert pending(state) == ["1", "2"]
