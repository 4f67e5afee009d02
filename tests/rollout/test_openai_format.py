"""Trajectories as OpenAI messages: nothing that was called, answered or refused gets lost."""

import json
from dataclasses import replace

import pytest

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.types.prompt import EnvironmentSpec, PromptView
from pact_lightning.types.trajectory import Component, RolloutTurn, Segment, StopReason, Trajectory

PROMPT = PromptView(
    "t-1",
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe?"}),
    (),
    EnvironmentSpec("package.Class"),
)
CALLS = [{"name": "add", "arguments": {"a": 1, "b": "é"}}, {"name": "sub", "arguments": {}}]


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


def block(call):
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def rollout(renderer, *turns):
    """A trajectory as the engine makes it, from each turn's text, responses and errors."""
    trajectory = Trajectory("t-1", 3, (1, 2, 3))
    for index, (text, responses, errors) in enumerate(turns):
        ids = renderer.codec.control(text + "<|im_end|>")
        read = renderer.read_turn(ids)
        trajectory.turns.append(replace(read, responses=tuple(responses), errors=tuple(errors)))
        trajectory.segments += renderer.turn_segments(ids, index)
    return trajectory


def test_calls_come_back_as_they_were_made_with_their_responses_by_id(renderer):
    text = f"<think>\nTwo calls.\n</think>\n\n{block(CALLS[0])}\n{block(CALLS[1])}"
    trajectory = rollout(renderer, (text, ["3", "no"], [False, True]), ("<answer>3</answer>", [], []))
    record = json.loads(
        json.dumps(trajectory_record(PROMPT, trajectory, rewards=[0.5, 1.0], advantages=[1, 2], phase=4))
    )
    system, user, assistant, first, second, final = record["messages"]
    assert [system, user] == [dict(message) for message in PROMPT.messages]
    assert (assistant["role"], assistant["content"], assistant["reasoning_content"]) == ("assistant", "", "Two calls.")
    functions = [call["function"] for call in assistant["tool_calls"]]
    assert [{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions] == CALLS
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert len(set(ids)) == 2
    assert [first["tool_call_id"], second["tool_call_id"]] == ids
    assert [(m["role"], m["content"], m["error"]) for m in (first, second)] == [
        ("tool", "3", False),
        ("tool", "no", True),
    ]
    assert (final["content"], "tool_calls" in final) == ("<answer>3</answer>", False)
    assert (record["task_id"], record["sample"], record["phase"]) == ("t-1", 3, 4)
    assert (record["turn_rewards"], record["turn_advantages"]) == ([0.5, 1.0], [1, 2])
    assert record["stop_reason"] == "answered"
    assert record["tokens"] == len(trajectory.ids())


def test_ids_of_calls_are_unique_over_the_turns(renderer):
    turns = [(f"{block(CALLS[0])}\n{block(CALLS[1])}", ["1", "2"], [False, False])] * 3
    messages = trajectory_record(PROMPT, rollout(renderer, *turns))["messages"]
    asked = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    answered = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert len(set(asked)) == 6
    assert asked == answered


def test_a_malformed_call_keeps_its_place_and_its_error(renderer):
    text = f"{block(CALLS[0])}\n<tool_call>oops</tool_call>\n{block(CALLS[1])}"
    trajectory = rollout(renderer, (text, ["1", "not JSON", "2"], [False, True, False]))
    assistant, *responses = trajectory_record(PROMPT, trajectory)["messages"][2:]
    assert [call["function"]["name"] for call in assistant["tool_calls"]] == ["add", "sub"]
    (error,) = assistant["malformed_calls"]
    assert "not valid JSON" in error
    assert [response["content"] for response in responses] == ["1", "not JSON", "2"]
    assert ["tool_call_id" in response for response in responses] == [True, False, True]
    assert [response.get("tool_call_id") for response in responses][::2] == [c["id"] for c in assistant["tool_calls"]]


@pytest.mark.parametrize("thinking", ["", "<think>\nHm.\n</think>\n\n"])
def test_text_before_a_call_is_the_message_s_content(renderer, thinking):
    trajectory = rollout(renderer, (f"{thinking}I will add.\n{block(CALLS[0])}", ["1"], [False]))
    assert trajectory_record(PROMPT, trajectory)["messages"][2]["content"] == "I will add."


def test_a_turn_cut_off_in_its_call_has_no_response(renderer):
    trajectory = rollout(renderer, ('<tool_call>\n{"name"', [], []))
    (assistant,) = trajectory_record(PROMPT, trajectory)["messages"][2:]
    assert assistant["malformed_calls"] == ["The tool call is not closed with </tool_call>."]


def test_a_turn_cut_off_in_its_thinking_keeps_its_text(renderer):
    (assistant,) = trajectory_record(PROMPT, rollout(renderer, ("<think>\nHm", [], [])))["messages"][2:]
    assert assistant["reasoning_content"] == "Hm"


def test_a_failed_environment_says_why():
    turn = RolloutTurn("", responses=("environment failed: no such file",))
    trajectory = Trajectory("t-1", 0, (1,), turns=[turn], stop_reason=StopReason.ENVIRONMENT_FAILED)
    record = trajectory_record(PROMPT, trajectory)
    assert record["stop_reason"] == "environment_failed"
    assert record["messages"][-1] == {"role": "tool", "content": "environment failed: no such file", "error": True}


def test_a_trajectory_s_arrays_are_as_long_as_its_ids():
    segments = [
        Segment((4, 5), Component.REASONING, 0),
        Segment((6,), Component.TOOL_CALL, 0),
        Segment((7, 8, 9), Component.OBSERVATION, 0),
        Segment((10,), Component.ANSWER, 1),
    ]
    trajectory = Trajectory("t", 0, (1,), segments)
    assert trajectory.ids().tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert trajectory.turn_indices().tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert trajectory.policy_mask().tolist() == [True, True, True, False, False, False, True]
    assert trajectory.components().tolist() == [1, 1, 2, 5, 5, 5, 3]
