"""The rollout engine: every way a rollout can end, exact limits, order, and whose result is whose."""

from dataclasses import replace

import pytest
from rollout_player import ROOMY, Player, bench_prompt, log, play, play_one

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.rollout.engine import RolloutEngine, RolloutLimits, RolloutRequest
from pact_lightning.tasks.bundled.tasks import BundledTasks
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.trajectory import Component, StopReason


@pytest.fixture(scope="module")
def renderer():
    return ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))


def expert_run(renderer, tasks, limits, samples=1):
    """Plays the experts' own turns as a policy; gives what a perfect rollout is, per task, too."""
    plays, perfect = [], []
    for task in tasks:
        trace = render_trace(renderer, task.trace, with_final=True)
        policy = trace.components != Component.OBSERVATION
        turns = [trace.ids[policy & (trace.turns == turn)].tolist() for turn in range(int(trace.turns[-1]) + 1)]
        plays.append((renderer.prompt(task.prompt.messages, task.prompt.tools), turns))
        perfect.append(trace)
    engine, player = RolloutEngine(renderer, limits), Player(renderer, plays)
    results, stats = engine.run([RolloutRequest(task.prompt, samples, 0) for task in tasks], player)
    return results, stats, perfect


@pytest.fixture(scope="module")
def tasks():
    return [*BundledTasks("train", 12).load(), *BundledTasks("longer", 4).load()]


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_policy_that_plays_the_expert_gets_the_expert_s_dialogue(renderer, tasks, rows):
    results, stats, perfect = expert_run(renderer, tasks, replace(ROOMY, rows=rows), samples=2)
    for task, rollouts, trace in zip(tasks, results, perfect, strict=True):
        for sample, rollout in enumerate(rollouts):
            assert (rollout.task_id, rollout.sample) == (task.id, sample)
            assert rollout.stop_reason is StopReason.ANSWERED
            assert rollout.final_answer == f"<answer>{task.reference.answer}</answer>"
            assert list(rollout.prompt_ids) == renderer.prompt(task.prompt.messages, task.prompt.tools)
            assert rollout.ids().tolist() == trace.ids.tolist()
            assert rollout.components().tolist() == trace.components.tolist()
            assert rollout.turn_indices().tolist() == trace.turns.tolist()
            assert len(rollout.sampled_logps) == int(rollout.policy_mask().sum())
            for turn, theirs in zip(rollout.turns, task.trace.turns, strict=False):
                assert (turn.calls, turn.responses, turn.reasoning) == (
                    theirs.calls,
                    theirs.responses,
                    theirs.reasoning,
                )
                assert turn.errors == tuple('"error"' in response for response in theirs.responses)
    assert stats.rollouts == 2 * len(tasks)
    assert stats.tool_calls == 2 * sum(len(turn.calls) for task in tasks for turn in task.trace.turns)
    assert stats.tokens == sum(int(rollout.policy_mask().sum()) for rollouts in results for rollout in rollouts)


def test_the_trajectory_limit_cuts_exactly(renderer, tasks):
    task = max(tasks[:12], key=lambda task: len(task.trace.turns))
    whole = render_trace(renderer, task.trace, with_final=True)
    length, last_turn = len(whole.ids), int((whole.turns == whole.turns[-1]).sum())
    for limit in [
        1,
        2,
        length - last_turn,
        length - last_turn + 1,
        length - 1,
        length,
        length + 1,
        *range(7, length, 9),
    ]:
        ((rollout,),), _, _ = expert_run(renderer, [task], replace(ROOMY, max_trajectory_tokens=limit))
        ids = rollout.ids().tolist()
        assert ids == whole.ids[: len(ids)].tolist()
        assert len(ids) <= limit
        if limit >= length:
            assert (rollout.stop_reason, len(ids)) == (StopReason.ANSWERED, length)
        else:
            assert rollout.stop_reason is StopReason.MAX_TOKENS_TRAJECTORY
            # Either full to the brim, or the next observation would have left no room for a token.
            assert len(ids) == limit or whole.components[len(ids)] == Component.OBSERVATION
            assert rollout.final_answer is None


# ---------------------------------------------------------------------------------------------------- stop reasons


def test_a_plain_answer_ends_a_rollout(renderer):
    rollout, stats = play_one(renderer, "<answer>3</answer>")
    assert (rollout.stop_reason, rollout.final_answer) == (StopReason.ANSWERED, "<answer>3</answer>")
    assert [turn.responses for turn in rollout.turns] == [()]
    assert (stats.rollouts, stats.tool_calls) == (1, 0)


@pytest.mark.parametrize("turns", [1, 3])
def test_max_turns_ends_after_the_last_turn_s_tools(renderer, turns):
    rollout, _ = play_one(renderer, *[log("x")] * 5, limits=replace(ROOMY, max_turns=turns))
    assert rollout.stop_reason is StopReason.MAX_TURNS
    assert [turn.responses for turn in rollout.turns] == [(" ".join("x" * n),) for n in range(1, turns + 1)]
    assert rollout.components()[-1] != Component.OBSERVATION
    assert rollout.final_answer is None


def test_an_answer_in_the_last_turn_is_an_answer(renderer):
    rollout, _ = play_one(renderer, log("x"), "done", limits=replace(ROOMY, max_turns=2))
    assert (rollout.stop_reason, rollout.final_answer) == (StopReason.ANSWERED, "done")


def test_a_turn_may_use_its_limit_to_the_last_token_and_no_further(renderer):
    length = len(renderer.codec.control("one two three four")) + 1
    fits, _ = play_one(renderer, "one two three four", limits=replace(ROOMY, max_new_tokens_per_turn=length))
    cut, _ = play_one(renderer, "one two three four", limits=replace(ROOMY, max_new_tokens_per_turn=length - 1))
    assert fits.stop_reason is StopReason.ANSWERED
    assert (cut.stop_reason, len(cut.ids()), cut.final_answer) == (StopReason.MAX_TOKENS_TURN, length - 1, None)


def test_by_default_the_trajectory_s_limit_is_the_only_one_on_a_turn(renderer):
    """A model that thinks for thousands of tokens, as the paper's do, is not cut."""
    assert RolloutLimits().max_new_tokens_per_turn is None
    thought = "<think>\n" + "one two three four " * 500 + "\n</think>\n\ndone"
    length = len(renderer.codec.control(thought)) + 1
    assert length > 1024
    rollout, _ = play_one(renderer, thought, limits=RolloutLimits())
    assert (rollout.stop_reason, rollout.final_answer, len(rollout.ids())) == (StopReason.ANSWERED, "done", length)
    cut, _ = play_one(renderer, thought, limits=RolloutLimits(max_trajectory_tokens=length - 1))
    assert (cut.stop_reason, len(cut.ids())) == (StopReason.MAX_TOKENS_TRAJECTORY, length - 1)


def test_a_call_cut_off_by_the_turn_s_limit_is_not_run(renderer):
    length = len(renderer.codec.control(log("x")))
    rollout, stats = play_one(renderer, log("x"), limits=replace(ROOMY, max_new_tokens_per_turn=length - 1))
    assert rollout.stop_reason is StopReason.MAX_TOKENS_TURN
    assert (rollout.turns[0].calls, rollout.turns[0].responses, stats.tool_calls) == ((), (), 0)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ("Broken", "no such file"),
        ("BrokenReset", "bad task"),
        ("Missing", "cannot be imported"),
        ("HangingReset", "did not answer within 0.2 seconds"),
    ],
)
def test_an_environment_that_fails_ends_its_own_rollouts_only(renderer, environment, why):
    prompts = [bench_prompt(0), bench_prompt(1, environment), bench_prompt(2)]
    limits = replace(ROOMY, rows=1, tool_timeout_s=0.2)
    results, stats, _ = play(renderer, prompts, ["fine"], limits, samples=2)
    assert [[str(rollout.stop_reason) for rollout in rollouts] for rollouts in results] == [
        ["answered"] * 2,
        ["environment_failed"] * 2,
        ["answered"] * 2,
    ]
    for rollout in results[1]:
        assert why in rollout.turns[0].responses[0]
        assert (len(rollout.ids()), rollout.final_answer) == (0, None)
    assert stats.rollouts == 6


# ------------------------------------------------------------------------------------------------ order and identity


def test_how_long_tools_take_changes_nothing(renderer):
    def run(delays):
        prompts = [bench_prompt(n, delays=delays) for n in range(6)]
        plays = []
        for n, prompt in enumerate(prompts):
            turns = [f"<think>\n{'so ' * (3 * n % 5)}\n</think>\n\n{log(n)}\n{log('y')}"] * (1 + n % 3) + ["done"]
            plays.append((renderer.prompt(prompt.messages, prompt.tools), turns))
        results, _, player = play(renderer, prompts, None, replace(ROOMY, rows=4), 3, Player(renderer, plays))
        return player.log, [[rollout.ids().tolist() for rollout in rollouts] for rollouts in results]

    quick = run(delays=False)
    assert len(quick[0]) > 5
    for _ in range(2):
        assert run(delays=True) == quick


def test_the_same_task_twice_gives_each_request_its_own_rollouts(renderer):
    """A phase that crosses from one pass over the tasks into the next may draw a task twice."""
    results, stats, _ = play(renderer, [bench_prompt()] * 2, [str], samples=3)
    answers = [rollout.final_answer for rollouts in results for rollout in rollouts]
    assert len(set(answers)) == 6
    assert stats.rollouts == 6
    assert [rollout.sample for rollouts in results for rollout in rollouts] == [0, 1, 2, 0, 1, 2]


def test_every_turn_of_every_rollout_has_a_seed_of_its_own(renderer):
    prompts = [bench_prompt(n) for n in range(3)]

    def seeds():
        turns = [log, log, str]
        results, _, _ = play(renderer, prompts, turns, samples=4)
        return [turn.answer or turn.calls[0]["arguments"]["what"] for rs in results for r in rs for turn in r.turns]

    first = seeds()
    assert len(set(first)) == 36
    assert seeds() == first


def test_progress_counts_every_rollout_once(renderer):
    seen = []
    prompts = [bench_prompt(n) for n in range(3)]
    player = Player(renderer, [(renderer.prompt(p.messages, p.tools), [log("x"), "done"]) for p in prompts])
    requests = [RolloutRequest(prompt, 2, 0) for prompt in prompts]
    RolloutEngine(renderer, ROOMY).run(requests, player, lambda stats: seen.append(stats.rollouts))
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("rows", [2, 5, 64])
def test_the_longest_prompts_start_first_and_results_keep_the_order_of_the_requests(renderer, tasks, rows):
    """What the cache needs for prompts it then needs at once, and not in the middle of a phase."""
    plays, requests = [], []
    for number, task in enumerate(tasks):
        plays.append((renderer.prompt(task.prompt.messages, task.prompt.tools), [f"answer {number}"]))
        requests.append(RolloutRequest(task.prompt, 2, 0))
    player = Player(renderer, plays)
    results, _ = RolloutEngine(renderer, replace(ROOMY, rows=rows)).run(requests, player)
    started = [len(ids) for submitted in player.log for _, ids, _ in submitted]
    assert started == sorted(started, reverse=True)
    assert len(set(started)) > 2
    for number, rollouts in enumerate(results):
        assert [rollout.final_answer for rollout in rollouts] == [f"answer {number}"] * 2
