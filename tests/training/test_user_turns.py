"""Tasks of several user turns: released one after another, the same in a rollout and in a trace."""

import json
from dataclasses import replace

import pytest
from rollout_player import ROOMY, Player, bench_prompt, log, play

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.tasks.record import check_task, task_from_json, task_to_json
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.task import Reference, Task
from pact_lightning.types.trace import Chunk, ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.types.trajectory import Component, StopReason
from pact_lightning.update.context import ContextBuilder, quote_trace
from pact_lightning.utils.errors import TaskFieldError

LATER = {"type": "function", "function": {"name": "lie", "description": "Later.", "parameters": {"type": "object"}}}
CALL = {"name": "log", "arguments": {"what": "x"}}


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


def prompt_of(*follow_ups):
    prompt = bench_prompt()
    tools = tuple(tool for tool in prompt.tools if tool["function"]["name"] == "log")
    return replace(prompt, tools=tools, follow_ups=follow_ups)


def played(renderer, prompt, turns, limits=ROOMY):
    results, stats, player = play(renderer, [prompt], turns, limits)
    return results[0][0], stats, player


def test_an_answer_releases_the_next_user_turn(renderer):
    prompt = prompt_of(UserTurn("And now?"), UserTurn("Thanks."))
    rollout, stats, _ = played(renderer, prompt, [log("x"), "first", "second", log("x"), "third"])
    assert rollout.stop_reason is StopReason.ANSWERED
    assert rollout.final_answer == "third"
    assert [turn.user and turn.user.content for turn in rollout.turns] == [None, "And now?", "Thanks.", None, None]
    assert [turn.answer for turn in rollout.turns] == ["", "first", "second", "", "third"]
    assert stats.tool_calls == 2
    asked = [segment for segment in rollout.segments if segment.component is Component.PROMPT]
    assert [list(segment.ids) for segment in asked] == [renderer.user_turn(turn) for turn in prompt.follow_ups]
    assert not rollout.policy_mask()[rollout.components() == Component.PROMPT].any()
    assert len(rollout.sampled_logps) == int(rollout.policy_mask().sum())


def test_the_next_user_turn_is_seen_only_when_it_is_released(renderer):
    prompt = prompt_of(UserTurn("secret word"))
    _, _, player = played(renderer, prompt, [log("x"), "first", "second"])
    given = [renderer.codec.decode(ids) for turn in player.log for _, ids, _ in turn]
    assert ["secret word" in text for text in given] == [False, False, True]


def test_later_tools_are_unknown_before_and_known_after(renderer):
    prompt = prompt_of(UserTurn("", (LATER,)))
    turns = ['<tool_call>\n{"name": "lie", "arguments": {}}\n</tool_call>', "I cannot."]
    rollout, stats, _ = played(renderer, prompt, [*turns, turns[0], "done"])
    assert rollout.turns[0].responses == ("There is no tool named 'lie'. The tools are: log.",)
    assert "must return a ToolResult" in rollout.turns[2].responses[0], "it ran, and lied"
    assert stats.tool_calls == 1
    assert prompt.tool_names == ("log", "lie")
    text = renderer.codec.decode(renderer.user_turn(prompt.follow_ups[0]))
    assert '"name": "lie"' in text
    assert text.startswith("\n<|im_start|>user\nFrom here on")


def test_limits_hold_across_user_turns(renderer):
    prompt = prompt_of(UserTurn("And now?"), UserTurn("And now?"))
    rollout, _, _ = played(renderer, prompt, ["a", "b", "c"], replace(ROOMY, max_turns=2))
    assert (rollout.stop_reason, rollout.final_answer, len(rollout.turns)) == (StopReason.MAX_TURNS, None, 2)
    assert rollout.turns[-1].user is None
    whole, _, _ = played(renderer, prompt, ["a", "b", "c"])
    for limit in range(1, len(whole.ids())):
        cut, _, _ = played(renderer, prompt, ["a", "b", "c"], replace(ROOMY, max_trajectory_tokens=limit))
        assert cut.stop_reason is StopReason.MAX_TOKENS_TRAJECTORY
        assert len(cut.ids()) <= limit
        assert cut.ids().tolist() == whole.ids()[: len(cut.ids())].tolist()
        assert cut.components()[-1] != Component.PROMPT


def trace():
    reasoned = ExpertTurn((Chunk("What is asked? "), Chunk("Log it.")), (CALL,), ("x",))
    return ExpertTrace(
        (reasoned, ExpertTurn((), reply="first"), ExpertTurn((), (CALL,), ("x x",))),
        ExpertTurn((), pattern=TurnPattern.FINAL_ANSWER_TURN, answer="second"),
    )


def test_a_trace_is_rendered_as_the_rollout_that_does_the_same(renderer):
    prompt = prompt_of(UserTurn("And now?", (LATER,)))
    rendered = render_trace(renderer, trace(), prompt.follow_ups, with_final=True)
    policy = ~((rendered.components == Component.OBSERVATION) | (rendered.components == Component.PROMPT))
    lines = [rendered.ids[policy & (rendered.turns == turn)].tolist() for turn in range(4)]
    player = Player(renderer, [(renderer.prompt(prompt.messages, prompt.tools), lines)])
    rollout = play(renderer, [prompt], lines, player=player)[0][0][0]
    assert rollout.ids().tolist() == rendered.ids.tolist()
    assert rollout.components().tolist() == rendered.components.tolist()
    assert rollout.turn_indices().tolist() == rendered.turns.tolist()


def test_a_reply_without_a_follow_up_is_refused(renderer):
    with pytest.raises(ValueError, match="replies to 1 user turns, but only 0 follow"):
        render_trace(renderer, trace())
    task = Task(prompt_of(), Reference(), trace())
    with pytest.raises(TaskFieldError, match=r"belongs in `trace\.final`"):
        check_task(task)


@pytest.mark.parametrize("template", ["turns", "user_block", "system_block"])
def test_the_privileged_context_holds_replies_and_user_turns_but_not_the_answer(renderer, template):
    task = Task(prompt_of(UserTurn("And now?")), Reference(), trace())
    context = ContextBuilder(renderer, template, "full", 4000).privileged(task, task.trace, 4, 100)
    text = renderer.codec.decode(context.ids)
    assert text.index("first") < text.index("And now?")
    assert "second" not in text
    assert context.shared == (template == "turns")


def test_quoted_user_turns_stand_behind_their_reply():
    lines = quote_trace(trace(), [UserTurn("And now?")]).splitlines()
    assert lines[lines.index("reply: first") + 1] == "user: And now?"


def test_tasks_with_user_turns_survive_a_file():
    task = Task(prompt_of(UserTurn("And now?", (LATER,)), UserTurn("Bye.")), Reference(), trace())
    assert task_from_json(json.loads(json.dumps(task_to_json(task)))) == task


@pytest.mark.parametrize(
    ("follow_up", "field"),
    [
        ({"content": ""}, "follow_ups[0]"),
        ({"content": 3}, "follow_ups[0].content"),
        ({"content": "x", "tools": [{"function": {}}]}, "follow_ups[0].tools[0].function.name"),
        ({"content": "x", "tools": [{"function": {"name": "log", "parameters": {}}}]}, "follow_ups[0].tools[0]"),
        ({}, "follow_ups[0].content"),
        ("x", "follow_ups[0]"),
    ],
)
def test_a_broken_user_turn_is_named(follow_up, field):
    record = task_to_json(Task(prompt_of(), Reference())) | {"follow_ups": [follow_up]}
    with pytest.raises(TaskFieldError) as error:
        task_from_json(record)
    assert error.value.field.startswith(field)


def test_the_record_holds_the_user_turns(renderer):
    prompt = prompt_of(UserTurn("And now?", (LATER,)))
    rollout, _, _ = played(renderer, prompt, ["first", "second"])
    messages = trajectory_record(prompt, rollout)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[2] == {"role": "user", "content": "And now?", "tools": [LATER]}
