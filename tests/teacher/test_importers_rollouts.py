"""The package's own rollout records are conversations like any other."""

import json

import pytest
from rollout_player import log, play
from test_user_turns import CALL, prompt_of

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.rollout.openai_format import trajectory_record
from pact_lightning.teacher.importers.conversation import RecordError
from pact_lightning.teacher.importers.formats import read_conversation
from pact_lightning.types.prompt import UserTurn


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


def record(renderer, prompt, turns):
    (rollout,) = play(renderer, [prompt], turns)[0][0]
    return json.loads(json.dumps(trajectory_record(prompt, rollout, rewards=[0.0] * len(rollout.turns)))), rollout


def test_a_rollout_is_read_back(renderer):
    prompt = prompt_of(UserTurn("And now?"))
    thought = "<think>\nLog it.\n</think>\n\n" + log("x")
    written, rollout = record(renderer, prompt, [thought, "first", log("x"), "second"])
    conversation = read_conversation(written)
    dialogue = conversation.dialogue
    assert conversation.id == prompt.id
    assert dialogue.messages == prompt.messages
    assert dialogue.follow_ups == prompt.follow_ups
    assert [turn.calls for turn in dialogue.turns] == [(CALL,), (), (CALL,)]
    assert dialogue.turns[0].reasoning == rollout.turns[0].reasoning == "Log it."
    assert [turn.responses for turn in dialogue.turns] == [turn.responses for turn in rollout.turns[:-1]]
    assert (dialogue.turns[1].reply, dialogue.final.answer) == ("first", "second")


def test_a_rollout_with_a_malformed_call_is_no_trace(renderer):
    written, _ = record(renderer, prompt_of(), ["<tool_call>\nno\n</tool_call>", "sorry"])
    with pytest.raises(RecordError) as error:
        read_conversation(written)
    assert (error.value.reason, error.value.field) == ("malformed call", "messages[1].malformed_calls")
