"""A rollout with somebody at its other end, who gives the user turns while it runs."""

from dataclasses import replace

import pytest
from rollout_player import ROOMY, Bench, Player, bench_prompt, log

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.rollout.engine import RolloutEngine, RolloutRequest
from pact_lightning.types.prompt import EnvironmentSpec, UserTurn
from pact_lightning.types.trajectory import StopReason

SAYS = (UserTurn("And twice?"), UserTurn("Thanks."))
TURNS = (f"<think>One.</think>\n\n{log('one')}", "It is one.", log("two"), "It is two.", "You are welcome.")


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


class Somebody:
    """Says its lines, and remembers what it saw."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.seen = []

    def said(self, turn):
        self.seen.append((turn.text, turn.responses))

    def answered(self, turn):
        self.seen.append(turn.responses)

    def next_user_turn(self):
        line = self.lines.pop(0) if self.lines else None
        if isinstance(line, BaseException):
            raise line
        return line


class Closing(Bench):
    closed = 0

    def close(self):
        Closing.closed += 1


def talk(renderer, prompt, turns, somebody, limits=ROOMY):
    player = Player(renderer, [(renderer.prompt(prompt.messages, prompt.tools), turns)])
    engine = RolloutEngine(renderer, limits)
    ((trajectory,),), _ = engine.run([RolloutRequest(prompt, 1, 0)], player, conversation=somebody)
    return trajectory


def test_user_turns_that_are_typed_are_those_of_a_task(renderer):
    """Token for token: what a user types is rendered as a task's follow-ups are in training."""
    somebody = Somebody(*SAYS)
    typed = talk(renderer, bench_prompt(), TURNS, somebody)
    task = replace(bench_prompt(), follow_ups=SAYS)
    trained = talk(renderer, task, TURNS, None)
    assert typed.segments == trained.segments
    assert typed.turns == trained.turns
    assert typed.stop_reason is trained.stop_reason is StopReason.ANSWERED
    assert somebody.seen[:3] == [(TURNS[0], ()), ("one",), (TURNS[1], ())], "each turn before and after its calls"
    assert len(somebody.seen) == len(TURNS) + 2


def test_a_user_speaks_once_the_task_s_own_turns_are_used_up(renderer):
    task = replace(bench_prompt(), follow_ups=SAYS[:1])
    assert (
        talk(renderer, task, TURNS, Somebody(SAYS[1])).turns
        == talk(renderer, bench_prompt(), TURNS, Somebody(*SAYS)).turns
    )


def test_each_message_has_all_turns_and_a_rollout_without_anybody_its_own(renderer):
    two = replace(ROOMY, max_turns=2)
    assert talk(renderer, bench_prompt(), TURNS, Somebody(*SAYS), two).stop_reason is StopReason.ANSWERED
    looping = talk(renderer, bench_prompt(), ["No.", *[log("x")] * 9], Somebody(SAYS[0]), two)
    assert (looping.stop_reason, len(looping.turns)) == (StopReason.MAX_TURNS, 3)
    task = replace(bench_prompt(), follow_ups=SAYS)
    assert len(talk(renderer, task, TURNS, None, two).turns) == 2


def test_a_user_who_leaves_leaves_no_environment_open(renderer):
    prompt = replace(bench_prompt(), environment=EnvironmentSpec(f"{__name__}.Closing"))
    with pytest.raises(KeyboardInterrupt):
        talk(renderer, prompt, TURNS, Somebody(KeyboardInterrupt()))
    assert Closing.closed == 1
