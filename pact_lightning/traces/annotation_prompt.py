"""How an annotator is asked to cut a turn's reasoning (METHOD section 6; the wording is ours)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pact_lightning.dialogue.tool_call import ToolCall
from pact_lightning.traces.schema import ChunkType

PROMPT_VERSION = 1
"""Counts up with every change of wording; part of the cache's key."""

_MEANINGS: Mapping[ChunkType, str] = {
    ChunkType.TASK_RESTATE: "says what is asked, or what is left to do",
    ChunkType.TOOL_SCAN: "looks over the tools",
    ChunkType.TOOL_SELECTION: "decides for a tool",
    ChunkType.REQUIRED_ARG_GROUNDING: "finds the values of required arguments",
    ChunkType.OPTIONAL_ARG_ANALYSIS: "weighs optional arguments",
    ChunkType.IRRELEVANT_TOOL_REJECTION: "rules out tools that do not help",
    ChunkType.FAILURE_REFLECTION: "thinks about a call that failed",
    ChunkType.FALLBACK_PLAN: "plans what to try instead",
    ChunkType.DECISION_SUMMARY: "sums up what was decided or found",
    ChunkType.EXPLICIT_CALL_PREVIEW: "shows or announces the call: its JSON, its name with all arguments, or a phrase "
    "such as 'so I will call'",
    ChunkType.FINAL_ANSWER_GROUNDING: "states or prepares the final answer",
    ChunkType.OTHER: "anything else",
}

_SYSTEM = (
    "You label the reasoning that an assistant wrote before a tool call. Its paragraphs are numbered. Group them into "
    "consecutive chunks, so that every chunk does one thing, and answer with one JSON object and nothing else:\n"
    '{"chunks": [{"type": "...", "paragraph_ids": [1, 2]}, '
    '{"type": "...", "paragraph_ids": [2, 3], "split_paragraph_id": 2, "cut_before_text": "..."}], '
    '"dangerous_spans": [{"paragraph_id": 3, "text": "...", "kind": "call"}], '
    '"recommended_prefix_levels": {"L1": 1, "L2": 1, "L3": 2, "L4": 2}, "quality_flags": ["..."]}\n'
    "Rules. Chunks come in order and together hold every paragraph. Where one thing ends in the middle of a paragraph, "
    "the next chunk begins there: it lists that paragraph first, names it in split_paragraph_id, and gives in "
    "cut_before_text the first words of its part, copied exactly and occurring only once in the paragraph. "
    "dangerous_spans are exact quotes that give away the coming call (kind call) or the final answer (kind answer); an "
    "empty list if there are none. recommended_prefix_levels says how many chunks, counted from the first, can be "
    "shown to a learner at each level without giving away the call: L1 the first step, L4 everything that is safe; the "
    "numbers never decrease. quality_flags are short remarks on reasoning that is wrong, repetitive or off the point; "
    "usually an empty list. Never rewrite the text.\nTypes:\n"
)


def annotation_messages(paragraphs: Sequence[str], calls: Sequence[ToolCall], context: str) -> list[dict[str, Any]]:
    """The dialogue up to the annotator's answer.

    Args:
        paragraphs: The reasoning's paragraphs, in order; they are numbered from 1.
        calls: The calls that follow the reasoning.
        context: What the reasoning is about, the question, say; may be empty.
    """
    types = "\n".join(f"- {kind.value}: {meaning}" for kind, meaning in _MEANINGS.items())
    about = f"The question:\n{context}\n\n" if context else ""
    shown = "\n".join(json.dumps(dict(call), ensure_ascii=False) for call in calls) or "none; it answers the user"
    numbered = "\n".join(f"[{number}] {text.strip()}" for number, text in enumerate(paragraphs, start=1))
    user = f"{about}The call that follows:\n{shown}\n\nThe reasoning:\n{numbered}"
    return [{"role": "system", "content": _SYSTEM + types}, {"role": "user", "content": user}]


def correction_messages(answer: str, problem: str) -> list[dict[str, Any]]:
    """What is said after an answer that is of no use."""
    content = f"That is not usable: {problem}. Answer again with the whole JSON object, corrected."
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": content}]
