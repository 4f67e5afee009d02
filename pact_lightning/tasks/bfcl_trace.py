"""BFCL's ground truth as an expert trace: its calls, run, with what they return."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pact_lightning.dialogue.tool_call import ToolCall
from pact_lightning.environments.bfcl_apis import Scenario, SimulatedAPIs
from pact_lightning.tasks.checks import TaskFieldError
from pact_lightning.traces.schema import ExpertTrace, ExpertTurn, TurnPattern
from pact_lightning.traces.segmentation import turn_pattern

TraceTurns = Literal["user_turn", "call"]
"""Whether an expert turn holds all calls of a user turn, or one call."""
DONE = "Done."
"""What the expert replies to a request that it has met [D]; BFCL has no words for it, and scores none."""
CANNOT = {
    "miss_func": "None of the functions that I have does this.",
    "miss_param": "I need to know more before I can do this.",
}
"""What it replies where the ground truth calls nothing, by category [D]."""


def ground_truth_trace(
    ground_truth: Sequence[Sequence[ToolCall]],
    environment: Mapping[str, Any],
    category: str,
    turns_of: TraceTurns,
) -> ExpertTrace | None:
    """Runs the ground truth.

    Args:
        ground_truth: Calls per user turn.
        environment: ``involved_classes``, ``initial_config`` and ``long_context`` of the task's environment.
        category: BFCL's category; it decides what is replied where nothing is called.
        turns_of: Whether an expert turn holds all calls of a user turn, or one call.

    Returns:
        The trace: no reasoning; a reply after every user turn but the last, whose reply is the ``final`` turn.
        ``None`` where nothing is called at all.

    Raises:
        TaskFieldError: An API cannot load its initial state.
    """
    if not any(ground_truth):
        return None
    try:
        apis = SimulatedAPIs(Scenario(**environment))
    except ValueError as error:
        raise TaskFieldError("initial_config", str(error)) from error
    turns: list[ExpertTurn] = []
    failed = False
    for calls in ground_truth:
        for together in [calls] if calls and turns_of == "user_turn" else [[call] for call in calls]:
            results = [apis.call(call["name"], call["arguments"]) for call in together]
            pattern = turn_pattern(len(turns), failed, (), is_final=False)
            turns.append(ExpertTurn((), tuple(together), tuple(result.text for result in results), pattern))
            failed = any(result.error for result in results)
        turns.append(ExpertTurn((), reply=DONE if calls else CANNOT.get(category, DONE)))
    last = turns.pop()
    final = ExpertTurn((), pattern=TurnPattern.FINAL_ANSWER_TURN, answer=last.reply or "")
    return ExpertTrace(tuple(turns), final, source="BFCL's ground truth, run")
