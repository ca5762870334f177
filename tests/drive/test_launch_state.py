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


EXPECTED = """
PENDING    SUBMIT         SUBMITTED    NOTHING
PENDING    POSTPONE       POSTPONED    NOTHING
PENDING    COMPLETE       DONE         NOTHING
PENDING    UNSCHEDULABLE  UNAVAILABLE  RECORD_UNAVAILABLE
PENDING    REOPEN         PENDING      NOTHING
SUBMITTED  START          RUNNING      NOTHING
SUBMITTED  COMPLETE       DONE         NOTHING
SUBMITTED  RETRY          PENDING      REQUEUE
SUBMITTED  GIVE_UP        GIVEN_UP     RECORD_INVALID
SUBMITTED  POSTPONE       POSTPONED    NOTHING
SUBMITTED  UNSCHEDULABLE  UNAVAILABLE  RECORD_UNAVAILABLE
SUBMITTED  UNPREPARED     DONE         RECORD_LAUNCH_FAILED
RUNNING    COMPLETE       DONE         NOTHING
RUNNING    RETRY          PENDING      REQUEUE
RUNNING    GIVE_UP        GIVEN_UP     RECORD_INVALID
RUNNING    POSTPONE       POSTPONED    NOTHING
RUNNING    UNPREPARED     DONE         RECORD_LAUNCH_FAILED
DONE         REOPEN       PENDING      REQUEUE
POSTPONED    REOPEN       PENDING      REQUEUE
GIVEN_UP     REOPEN       PENDING      REQUEUE
UNAVAILABLE  REOPEN       PENDING      REQUEUE
"""
ROWS = [tuple(line.split()) for line in EXPECTED.split("\n") if line]


@pytest.mark.parametrize(("stage", "trigger", "after", "action"), ROWS)
def test_the_table(stage, trigger, after, action):
    state = state_of("1")
    state.stage = Stage[stage]
    assert state.advance(Trigger[trigger]) is Action[action]
    assert state.stage is Stage[after]


def test_nothing_else_can_happen():
    allowed = {(Stage[stage], Trigger[trigger]) for stage, trigger, _, _ in ROWS}
    assert set(TRANSITIONS) == allowed
    for stage in Stage:
        for trigger in Trigger:
            state = state_of("1")
            state.stage = stage
            if (stage, trigger) not in allowed:
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


@pytest.mark.parametrize("in_our_code", [False, True])
def test_losses_and_errors_have_limits_of_their_own(in_our_code):
    state = state_of("1")
    for _ in range(2):
        running(state)
        assert state.lost(in_our_code, limit=3) is Action.REQUEUE
    running(state)
    assert state.lost(not in_our_code, limit=3) is Action.REQUEUE, "the first of its kind"
    running(state)
    assert state.lost(in_our_code, limit=3) is Action.RECORD_INVALID
    assert state.stage is Stage.GIVEN_UP


def test_a_loss_after_the_last_row_is_an_end():
    state = running(state_of("1"))
    state.finish("1", Outcome.HUNG)
    assert state.lost(in_our_code=False, limit=1) is Action.NOTHING
    assert state.stage is Stage.DONE


def test_a_node_that_does_not_start_it_costs_time_and_no_loss():
    state = state_of("1")
    state.submitted("1")
    assert state.not_started(now=100.0, patience=60.0) is Action.REQUEUE
    state.submitted("2")
    assert state.not_started(now=160.0, patience=60.0) is Action.REQUEUE
    state.submitted("3")
    assert state.not_started(now=160.1, patience=60.0) is Action.RECORD_UNAVAILABLE
    assert (state.stage, state.losses) == (Stage.UNAVAILABLE, 0)


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


def test_what_failed_on_a_quarantined_node_is_retried_once():
    state = running(state_of("1", "2", "3"))

    def faults(trial_id, outcome):
        return outcome is Outcome.LAUNCH_FAILED

    state.finish("1", Outcome.OK)
    state.finish("2", Outcome.LAUNCH_FAILED)
    state.finish("3", Outcome.OOM_RUN)
    assert state.reopen(faults) == (0, Action.NOTHING), "it still runs there"
    state.advance(Trigger.COMPLETE)
    assert state.reopen(faults) == (1, Action.REQUEUE)
    assert pending(state) == ["2"]
    assert state.trials_without_row == 0, "the failed trial keeps its row until it has another"
    running(state, OTHER)
    state.finish("2", Outcome.LAUNCH_FAILED)
    state.advance(Trigger.COMPLETE)
    assert pending(state) == []
    assert state.reopen(faults) == (0, Action.NOTHING), "once"
    assert state.stage is Stage.DONE


def test_a_deployment_without_failed_trials_stays_as_it_is():
    state = running(state_of("1"))
    state.finish("1", Outcome.OK)
    state.advance(Trigger.COMPLETE)
    assert state.reopen(lambda trial_id, outcome: outcome is Outcome.HUNG) == (0, Action.NOTHING)
    assert state.stage is Stage.DONE


def test_a_pending_deployment_retries_its_failed_trials_too_and_is_queued_once():
    state = running(state_of("1", "2"))
    state.finish("1", Outcome.HUNG)
    assert state.lost(in_our_code=False, limit=20) is Action.REQUEUE
    assert pending(state) == ["2"]
    assert state.reopen(lambda trial_id, outcome: outcome is Outcome.HUNG) == (1, Action.NOTHING)
    assert pending(state) == ["1", "2"]
