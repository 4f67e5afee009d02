"""Player of BFCL calls through the rollout engine, and the leaderboard's own checker, for tests."""

import json
import uuid
from itertools import chain

from rollout_player import Player

from pact_lightning.rollout.engine import RolloutEngine, RolloutLimits, RolloutRequest
from pact_lightning.tasks.bfcl.package import data_folder
from pact_lightning.tasks.bfcl.rows import CATEGORIES

LIMITS = RolloutLimits(
    max_turns=80, max_new_tokens_per_turn=20_000, max_trajectory_tokens=10**6, max_response_characters=10**6
)
"""Roomy: what is judged is the calls."""


def block(call):
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def lines_of(user_turns):
    """Assistant turns that make the steps of each user turn, and answer it. A step is a list of calls."""
    return list(
        chain.from_iterable([*map("\n".join, [map(block, step) for step in steps]), "ok"] for steps in user_turns)
    )


def roll_out(renderer, plays, limits=LIMITS):
    """Rollouts of tasks under a policy that knows its lines: ``plays`` pairs a task with its assistant turns."""
    prompts = [tuple(renderer.prompt(task.prompt.messages, task.prompt.tools)) for task, _ in plays]
    rollouts = []
    # Two tasks of one scenario may begin with the same prompt, by which the player tells its lines.
    for part in _without_twins(prompts):
        player = Player(renderer, [(prompts[index], plays[index][1]) for index in part])
        requests = [RolloutRequest(plays[index][0].prompt, 1, index) for index in part]
        results, _ = RolloutEngine(renderer, limits).run(requests, player)
        rollouts += [(index, result[0]) for index, result in zip(part, results, strict=True)]
    return [rollout for _, rollout in sorted(rollouts, key=lambda entry: entry[0])]


def _without_twins(prompts):
    parts = []
    for index, prompt in enumerate(prompts):
        part = next((part for part in parts if all(prompts[other] != prompt for other in part)), None)
        if part is None:
            part = []
            parts.append(part)
        part.append(index)
    return parts


class Official:
    """The leaderboard's own verdicts."""

    def __init__(self):
        from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker, multi_turn_utils

        self.checker, self.instances = multi_turn_checker.multi_turn_checker, vars(multi_turn_utils)
        self.execute = multi_turn_utils.execute_multi_turn_func_call
        self.rows, self.ground_truth = {}, {}
        for category in CATEGORIES:
            name = f"BFCL_v4_multi_turn_{category}.json"
            self.rows |= {row["id"]: row for row in read_lines(data_folder() / name)}
            answers = read_lines(data_folder() / "possible_answer" / name)
            self.ground_truth |= {row["id"]: row["ground_truth"] for row in answers}

    def verdict(self, task, user_turns):
        """The verdict on steps of calls per user turn; a step is a list of calls."""
        decoded = [[[as_python(call) for call in step] for step in steps if step] for steps in user_turns]
        name = f"m{uuid.uuid4().hex}"
        try:
            row = self.rows[task.id]
            return self.checker(decoded, self.ground_truth[task.id], row, task.kind, name)["valid"]
        finally:
            self.forget(name)

    def texts(self, task, calls):
        """What the leaderboard's executor answers to some calls."""
        name, row = f"m{uuid.uuid4().hex}", self.rows[task.id]
        try:
            texts, _ = self.execute(
                [as_python(call) for call in calls],
                row["initial_config"],
                row["involved_classes"],
                name,
                task.id,
                long_context=task.kind == "long_context",
            )
            return texts
        finally:
            self.forget(name)

    def forget(self, name):
        for key in [key for key in self.instances if key.startswith(name)]:
            del self.instances[key]


def as_python(call):
    return f"{call['name']}({', '.join(f'{name}={value!r}' for name, value in call['arguments'].items())})"


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
