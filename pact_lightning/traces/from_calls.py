"""Makes an expert trace of known calls and their responses, for data sets that come without a teacher's text."""

from collections.abc import Sequence

from pact_lightning.dialogue.tool_call import ToolCall
from pact_lightning.traces.schema import ExpertTrace, ExpertTurn
from pact_lightning.traces.segmentation import segment_reasoning, turn_pattern


def trace_from_calls(
    calls: Sequence[ToolCall],
    responses: Sequence[str],
    reasoning: Sequence[str] | None = None,
    *,
    failed: Sequence[bool] | None = None,
    source: str = "",
) -> ExpertTrace:
    """Makes a trace of one turn per call.

    Args:
        calls: The calls, in order; at least one.
        responses: One tool response per call.
        reasoning: One reasoning text per call, segmented here; without it the turns have no reasoning, and only their
            calls are ever supervised.
        failed: Whether each response reports an error; it tells retries from follow-ups. Default: none failed.
        source: Where the trace comes from, for reports.

    Returns:
        The trace, without a final answer.

    Raises:
        ValueError: There is no call, or a sequence is not as long as ``calls``.
    """
    if not calls:
        raise ValueError("a trace needs at least one call; a task without calls has no trace, so leave it out")
    for name, values in (("responses", responses), ("reasoning", reasoning), ("failed", failed)):
        if values is not None and len(values) != len(calls):
            raise ValueError(f"{len(calls)} calls but {len(values)} entries in {name}; give one entry per call")
    turns = []
    for index, (call, response) in enumerate(zip(calls, responses, strict=True)):
        chunks = segment_reasoning(reasoning[index], [call]) if reasoning is not None else ()
        retry = index > 0 and failed is not None and failed[index - 1]
        turns.append(ExpertTurn(chunks, (call,), (response,), turn_pattern(index, retry, chunks, is_final=False)))
    return ExpertTrace(tuple(turns), source=source)
