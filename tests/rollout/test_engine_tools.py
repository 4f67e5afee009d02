"""Tools in the rollout engine: whatever they do, and however long they take, is an observation and nothing else."""

from dataclasses import replace

import pytest
from rollout_player import ROOMY, Bench, Player, bench_prompt, call, log, play, play_one

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.environments.protocol import ToolResult
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.types.prompt import EnvironmentSpec
from pact_lightning.types.trajectory import Component, StopReason


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


@pytest.fixture
def hanging():
    """Lets tools hang until the test is over."""
    Bench.ends.clear()
    yield
    Bench.ends.set()


def test_calls_that_cannot_be_run_are_error_observations(renderer):
    turn = f"{call('rm')}\n<tool_call>oops</tool_call>\n{log('x')}"
    rollout, stats = play_one(renderer, turn, "done")
    unknown, malformed, good = rollout.turns[0].responses
    assert unknown == "There is no tool named 'rm'. The tools are: " + ", ".join(Bench.NAMES) + "."
    assert "not valid JSON" in malformed
    assert good == "x"
    assert rollout.turns[0].errors == (True, True, False)
    assert rollout.final_answer == "done"
    assert stats.tool_calls == 1
    observation = next(s for s in rollout.segments if s.component is Component.OBSERVATION)
    assert list(observation.ids) == renderer.observation([unknown, malformed, good])


@pytest.mark.parametrize(
    ("name", "says"),
    [("crash", "KeyError: 'no such key'"), ("leave", "SystemExit: 3"), ("lie", "must return a ToolResult")],
)
def test_a_tool_that_fails_is_an_error_observation(renderer, name, says):
    rollout, stats = play_one(renderer, f"{call(name)}\n{log('x')}", "done")
    response, after = rollout.turns[0].responses
    assert response.startswith("The tool failed: ")
    assert says in response
    assert (after, rollout.turns[0].errors, rollout.final_answer) == ("x", (True, False), "done")
    assert (stats.tool_calls, stats.tool_timeouts) == (2, 0)


def test_wrong_arguments_are_the_tool_s_failure(renderer):
    rollout, _ = play_one(renderer, call("log", '{"where": 1}'), "done")
    assert rollout.turns[0].responses[0].startswith("The tool failed: TypeError")


def test_half_a_character_in_a_response_does_no_harm(renderer):
    rollout, _ = play_one(renderer, call("half"), "done")
    assert rollout.turns[0].responses == ("a?b",)


def test_long_responses_are_cut_and_say_so(renderer):
    limits = replace(ROOMY, max_response_characters=5)
    rollout, _ = play_one(renderer, f"{log('12345')}\n{log('6')}", "done", limits=limits)
    assert rollout.turns[0].responses == ("12345", "12345... (cut after 5 characters)")


def test_calls_of_a_turn_run_in_order_one_after_the_other(renderer):
    """The slow one comes first: side by side, the quick ones would overtake it."""
    prompts = [bench_prompt(n) for n in range(4)]
    turn = "\n".join([log("a", "slow"), log("b"), log("c", "slow"), log("d")])
    results, _, _ = play(renderer, prompts, [turn, log("e"), "done"])
    for (rollout,) in results:
        assert rollout.turns[0].responses == ("a", "a b", "a b c", "a b c d")
        assert rollout.turns[1].responses == ("a b c d e",)


def test_a_hanging_tool_is_given_up_and_the_rollout_goes_on(renderer, hanging):
    limits = replace(ROOMY, tool_timeout_s=0.15)
    rollout, stats = play_one(renderer, f"{log('a')}\n{call('hang')}\n{log('b')}", log("c"), "done", limits=limits)
    assert rollout.turns[0].responses == (
        "a",
        "The tool did not answer within 0.15 seconds.",
        "Not run: the call before it did not end within 0.15 seconds.",
    )
    assert rollout.turns[0].errors == (False, True, True)
    # The environment is still busy: nothing runs in it beside the stuck call.
    assert rollout.turns[1].responses == ("The tool did not answer within 0.15 seconds.",)
    assert (rollout.stop_reason, stats.tool_timeouts) == (StopReason.ANSWERED, 3)


def test_stuck_tools_take_no_place_from_other_rollouts(renderer, hanging):
    limits = replace(ROOMY, tool_timeout_s=0.15, tool_threads=1)
    prompts = [bench_prompt(n) for n in range(6)]
    plays = [
        (renderer.prompt(p.messages, p.tools), [call("hang") if n < 4 else log("x"), "done"])
        for n, p in enumerate(prompts)
    ]
    results, stats, _ = play(renderer, prompts, None, limits, player=Player(renderer, plays))
    assert stats.tool_timeouts == 4
    assert [rollout.turns[0].responses[0] for (rollout,) in results[4:]] == ["x", "x"]
    assert all(rollout.final_answer == "done" for (rollout,) in results)


class Greedy(Bench):
    """Its tool keeps what it is given, and changes it in the next call."""

    def _log(self, what):
        self.seen.append(what)
        self.seen[0].append("changed")
        return ToolResult(str(self.seen))


def test_a_tool_that_changes_its_arguments_does_not_change_the_trajectory(renderer):
    prompt = bench_prompt()
    prompt = replace(prompt, environment=EnvironmentSpec(f"{__name__}.Greedy"))
    turn = call("log", '{"what": ["mine"]}')
    rollout, _ = play_one(renderer, turn, turn, "done", prompt=prompt)
    assert rollout.turns[1].responses == ("[['mine', 'changed', 'changed'], ['mine']]",)
    assert [turn.calls[0]["arguments"] for turn in rollout.turns[:2]] == [{"what": ["mine"]}] * 2


def test_environments_start_side_by_side(renderer):
    prompts = [bench_prompt(number, "Meeting") for number in range(2)]
    results, _, _ = play(renderer, prompts, ["done"])
    assert [rollouts[0].stop_reason for rollouts in results] == [StopReason.ANSWERED] * 2
