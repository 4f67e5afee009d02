"""Which trace stands in the privileged context: the expert's, the controls', a sibling's."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hand_made import FULL, attempts, bundled_renderer, gradients, hand_made_group, prepared
from plain_pact import Plain

from pact_lightning.credit.group import CreditConfig, make_group
from pact_lightning.objectives.pact import Coefficients
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.traces.tokens import render_trace
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.update.trace_source import shown_traces, trace_of_rollout

RENDERER = bundled_renderer()
TASKS = [make_task("train", index) for index in range(6)]


def with_responses(group):
    """The group, with a response to every call."""
    for trajectory in group.trajectories:
        trajectory.turns = [replace(turn, responses=("It is so.",) * len(turn.parsed)) for turn in trajectory.turns]
    return group


def group_of(index=1, **changes):
    return with_responses(hand_made_group(RENDERER, index, **changes))


def test_by_default_a_group_shows_its_own_trace_to_all_rollouts():
    group = group_of()
    assert shown_traces(group, "expert", TASKS, 0) is None
    assert group.traces[0].trace is group.task.trace
    assert group.traces[0].rollouts == (0, 1, 2)


def test_a_mismatched_trace_is_another_tasks_drawn_from_seed_task_and_visit():
    def drawn(seed, position):
        (shown,) = shown_traces(group_of(position=position), "mismatched", TASKS, seed)
        return next(task.id for task in TASKS if task.trace is shown.trace)

    first = [drawn(0, position) for position in range(12)]
    assert first == [drawn(0, position) for position in range(12)]
    assert first != [drawn(1, position) for position in range(12)]
    assert group_of().task.id not in first
    assert len(set(first)) > 1
    assert shown_traces(group_of(), "mismatched", TASKS[1:2], 0) == (), "there is no other task"


def test_a_shuffled_trace_has_the_same_turns_in_another_order():
    group = group_of()
    own = group.task.trace.turns
    assert len(own) > 1
    for position in range(5):
        (shown,) = shown_traces(replace(group, position=position), "shuffled", TASKS, 0)
        assert shown.trace.turns != own
        assert Counter(map(repr, shown.trace.turns)) == Counter(map(repr, own))
    group.task = replace(group.task, trace=replace(group.task.trace, turns=own[:1]))
    assert shown_traces(group, "shuffled", TASKS, 0) == ()


@pytest.mark.parametrize("template", ["turns", "user_block", "system_block"])
def test_an_empty_trace_is_as_long_as_the_own_and_says_nothing(template):
    group = group_of()
    module = PACTModule(policy=FULL, trace_template=template, anchor_probability=0.0)
    own = module._job(group).context
    group.shown = shown_traces(group, "empty", TASKS, 0)
    blank = module._job(group).context
    assert len(blank.ids) == len(own.ids)
    added = Counter(blank.ids.tolist()) - Counter(blank.prompt.tolist())
    line_feed = RENDERER.codec.plain("\n")[0]
    assert added[line_feed] > 20
    assert added.total() - added[line_feed] <= 8, "but for what opens the assistant's turn"
    assert blank.ids[-3:].tolist() == own.ids[-3:].tolist(), "a rollout can go on from it"
    assert blank.target.ids.tolist() == own.target.ids.tolist(), "the SFT term imitates the expert all the same"
    assert not blank.shared


def successes(index=1):
    """Two rollouts that solve the task, by the expert's way and out of nowhere, and one that does not."""
    task = make_task("train", index)
    rollouts = attempts(RENDERER, task)
    again = attempts(RENDERER, task)[0]
    again.sample = 1
    return with_responses(make_group(task, [rollouts[0], again, rollouts[2]], CreditConfig(), position=index))


def test_no_rollout_is_scored_under_itself():
    shown = shown_traces(successes(), "sibling", TASKS, 0)
    assert [part.rollouts for part in shown] == [(1, 2), (0,)]
    single = group_of()  # one success
    (only,) = shown_traces(single, "sibling", TASKS, 0)
    assert only.rollouts == (1, 2)
    for part in (*shown, only):
        rendered = RENDERER.codec.decode(render_trace(RENDERER, part.trace).ids.tolist())
        assert "<answer>" not in rendered
        assert part.trace.final is None
    assert "tool_call" in rendered


def test_a_sibling_that_states_its_answer_is_cut():
    group = group_of()
    trajectory = group.trajectories[0]
    answer = group.task.reference.answer
    turn = replace(trajectory.turns[0], reasoning=f"I look. The answer is {answer}.")
    trajectory.turns[0] = turn
    trace = trace_of_rollout(trajectory, group.task)
    assert answer not in trace.turns[0].reasoning
    assert trace.turns[0].calls == turn.calls


def test_without_a_success_there_is_no_sibling_and_an_expert_goes_first_where_asked():
    group = group_of()
    group.trajectories, group.turn_rewards = group.trajectories[1:], group.turn_rewards[1:]
    assert shown_traces(group, "sibling", TASKS, 0) == ()
    assert shown_traces(group_of(), "expert_else_sibling", TASKS, 0) is None
    alone = group_of()
    alone.task = replace(alone.task, trace=None)
    assert shown_traces(alone, "expert_else_sibling", TASKS, 0)[0].rollouts == (1, 2)


def test_rollouts_of_a_group_are_scored_under_different_contexts_and_add_up():
    """The best one under the prompt, the others under it; the expert is imitated; all old log-probs are there."""
    settings = {"anchor_probability": 0.0, "coefficients": Coefficients(sft=0.1, kl=0.0, entropy=0.0)}
    module = prepared(FULL, 0.02, **settings)
    group = group_of()
    group.shown = shown_traces(group, "sibling", TASKS, 0)
    module.prepare_phase([group], optimizer_steps=2)
    assert len(group.old_logps) == 3
    plain = Plain(module)
    context = module.contexts.privileged(group.task, group.shown[0].trace, 4, 0).ids
    own = [plain.prompt(group), context, context]
    losses = []
    for sample, trajectory in enumerate(group.trajectories):
        logp = plain.logps(own[sample], trajectory)
        kept = torch.from_numpy(trajectory.policy_mask())
        advantage = group.token_advantages(sample)[kept]
        torch.testing.assert_close(group.old_logps[sample][kept], logp.detach(), rtol=0, atol=2e-4)
        losses.append(-((logp - logp.detach()).exp() * advantage).mean())
    expected = plain.gradient(torch.stack(losses).mean() + 0.1 * plain.sft(group))
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    torch.testing.assert_close(gradients(module, group), expected, rtol=1e-4, atol=1e-5 * max(1.0, largest))
    assert module.logged[0]["train/anchored"] == 0.0


def test_the_shown_trace_is_imitated_where_asked():
    group = group_of(shown=None, imitate_shown=True)
    assert group.imitated is group.task.trace
    group.shown = shown_traces(group, "mismatched", TASKS, 0)
    assert group.imitated is group.shown[0].trace
    group.imitate_shown = False
    assert group.imitated is group.task.trace
