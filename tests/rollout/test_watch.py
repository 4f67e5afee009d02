"""Environments of no use stop a run: no start, no answer. A share of failures, or a policy without calls, does not."""

import pytest

from pact_lightning.environments.functions import CallableTools
from pact_lightning.environments.protocol import EnvironmentUnavailableError
from pact_lightning.environments.tool_output import is_unreachable
from pact_lightning.rollout.watch import EnvironmentWatch, UselessEnvironmentsError
from pact_lightning.types.trajectory import RolloutTurn, StopReason, Trajectory


def rollout(task, calls=0, unanswered=0, started=True):
    turns = [RolloutTurn(text="", responses=(f"response in {task}",))]
    reason = StopReason.ANSWERED if started else StopReason.ENVIRONMENT_FAILED
    return Trajectory(str(task), 0, (), turns=turns, stop_reason=reason, tool_calls=calls, unanswered_calls=unanswered)


BAD = {"calls": 3, "unanswered": 3}
CLOSED = {"started": False}


def over(tasks):
    watch = EnvironmentWatch("phase-0000")
    watch.expect(tasks)
    return watch


def at_the_end(*rollouts):
    watch = over(trajectory.task_id for trajectory in rollouts)
    for trajectory in rollouts:
        watch.ended(trajectory)
    watch.check_all(watch.counts())


@pytest.mark.parametrize(
    ("bad", "told"), [(BAD, "no tool call was answered in"), (CLOSED, "no environment could be started in")]
)
def test_where_every_task_fails_the_run_stops_and_says_what_came_first(bad, told):
    with pytest.raises(UselessEnvironmentsError, match=rf"{told} phase-0000 \(3 tasks\).*task 0: response in 0$"):
        at_the_end(*(rollout(task, **bad) for task in range(3)))


@pytest.mark.parametrize("bad", [BAD, CLOSED])
@pytest.mark.parametrize("good", [{"calls": 3, "unanswered": 2}, {"calls": 1}])
def test_one_answer_is_enough_to_go_on(bad, good):
    at_the_end(
        *(rollout(task, **bad) for task in range(31)),
        rollout(31, **good),
        *(rollout(task, **bad) for task in range(99)),
    )


@pytest.mark.parametrize("bad", [BAD, CLOSED])
def test_a_phase_that_began_well_goes_on_where_all_of_its_further_prompts_fail(bad):
    watch = over("012")
    for task in range(3):
        watch.ended(rollout(task, calls=1))
    watch.expect("3")
    watch.ended(rollout(3, **bad))
    watch.check_all(watch.counts())


def test_a_policy_that_calls_nothing_says_nothing_of_its_tools():
    at_the_end(*(rollout(task) for task in range(50)))
    at_the_end(rollout(0, **BAD), *(rollout(task) for task in range(1, 50)))


@pytest.mark.parametrize("bad", [BAD, CLOSED])
def test_a_large_phase_is_not_tried_to_its_end(bad):
    watch = over(map(str, range(1000)))
    for task in range(31):
        watch.ended(rollout(task, **bad))
    for _ in range(99):
        watch.ended(rollout(0, **bad))  # rollouts of one task that cannot work are no sign
    with pytest.raises(UselessEnvironmentsError, match=r"\(32 tasks\)"):
        watch.ended(rollout(31, **bad))


def test_what_one_process_lacks_another_one_may_have():
    watch = over("0")
    watch.ended(rollout(0, **BAD))
    other = over("1")
    other.ended(rollout(1, calls=1))
    both = {name: value + other.counts()[name] for name, value in watch.counts().items()}
    watch.check_all(both)
    other.check_all(both)
    idle = over("")
    with pytest.raises(UselessEnvironmentsError, match="see the messages of the other processes"):
        idle.check_all(watch.counts())


def wrapped(how):
    try:
        try:
            raise ConnectionRefusedError("no")
        except OSError as error:
            if how == "cause":
                raise RuntimeError("the client's own") from error
            if how == "hidden":
                raise KeyError("a mistake") from None
            raise ValueError("the client's own")  # noqa: B904  # by the context alone
    except Exception as error:  # noqa: BLE001
        return error


def test_only_a_failed_connection_is_no_answer():
    assert all(map(is_unreachable, (TimeoutError(), ConnectionResetError(), wrapped("cause"), wrapped("context"))))
    assert not any(map(is_unreachable, (None, FileNotFoundError(), KeyError(), ValueError(), wrapped("hidden"))))


def away() -> str:
    """Asks a server."""
    raise ConnectionRefusedError("nobody there")


def clumsy() -> str:
    """Fails by itself."""
    raise KeyError("x")


def hopeless() -> str:
    """Gives up."""
    raise EnvironmentUnavailableError("gone for good")


def test_functions_tell_a_server_that_is_away_from_a_mistake_and_may_stop_the_run():
    tools = CallableTools([away, clumsy, hopeless])
    assert [(r.error, r.unanswered) for r in (tools.call("away", {}), tools.call("clumsy", {}))] == [
        (True, True),
        (True, False),
    ]
    assert not tools.call("nosuch", {}).unanswered
    with pytest.raises(EnvironmentUnavailableError, match="gone for good"):
        tools.call("hopeless", {})
