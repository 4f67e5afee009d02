"""Statistics of a set of tasks: lengths under a tokenizer, tools, references, traces."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pact_lightning.dialogue.renderer import Renderer
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.prompt import PromptView
from pact_lightning.types.task import Task
from pact_lightning.types.trace import ExpertTrace


def spread(values: Sequence[int]) -> dict[str, float]:
    """Return the smallest, median, 90th percentile and largest value; empty without values.

    >>> spread([1, 2, 3, 4, 5])
    {'min': 1.0, 'median': 3.0, 'p90': 4.6, 'max': 5.0}
    """
    if not values:
        return {}
    low, median, p90, high = np.percentile(values, [0, 50, 90, 100]).tolist()
    return {"min": low, "median": median, "p90": p90, "max": high}


def task_statistics(tasks: Sequence[Task], renderer: Renderer, max_prompt_tokens: int) -> dict[str, Any]:
    """Count a set of tasks and measure their lengths.

    Args:
        tasks: The tasks.
        renderer: Renders prompts and traces with the tokenizer in question, as training does.
        max_prompt_tokens: The limit that training would have.

    Returns:
        A JSON-able object: ``tasks, kinds, environments, references, prompt_tokens, tools, follow_ups, traces,
        left_out``; lengths in tokens, a prompt's with its tools and the opened assistant turn.
    """
    lengths = [len(renderer.prompt(task.prompt.messages, task.prompt.tools)) for task in tasks]
    over = sum(length > max_prompt_tokens for length in lengths)
    references = [task.reference for task in tasks]
    return {
        "tasks": len(tasks),
        "kinds": dict(Counter(task.kind for task in tasks).most_common()),
        "environments": dict(Counter(task.prompt.environment.class_path for task in tasks).most_common()),
        "references": {
            "answer": sum(reference.answer is not None for reference in references),
            "calls": sum(bool(reference.calls) for reference in references),
            "sub_answers": sum(bool(reference.sub_answers) for reference in references),
        },
        "prompt_tokens": spread(lengths),
        "tools": spread([len(task.prompt.tool_names) for task in tasks]),
        "follow_ups": {
            "tasks": sum(bool(task.prompt.follow_ups) for task in tasks),
            "turns": spread([len(task.prompt.follow_ups) for task in tasks if task.prompt.follow_ups]),
        },
        "traces": _trace_statistics(tasks, renderer),
        "left_out": {"max_prompt_tokens": max_prompt_tokens, "tasks": over},
    }


def _trace_tokens(renderer: Renderer, prompt: PromptView, trace: ExpertTrace) -> int:
    return len(render_trace(renderer, trace, prompt.follow_ups, tools=prompt.tools).ids)


def _trace_statistics(tasks: Sequence[Task], renderer: Renderer) -> dict[str, Any]:
    traced = [(task, task.trace) for task in tasks if task.trace is not None]
    traces = [trace for _, trace in traced]
    return {
        "tasks": len(traced),
        "with_reasoning": sum(any(turn.reasoning for turn in trace.turns) for trace in traces),
        "with_final": sum(trace.final is not None for trace in traces),
        "turns": spread([len(trace.turns) for trace in traces]),
        "calls": spread([sum(len(turn.calls) for turn in trace.turns) for trace in traces]),
        "tokens": spread([_trace_tokens(renderer, task.prompt, trace) for task, trace in traced]),
    }
