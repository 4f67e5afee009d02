"""The annotator on real teacher turns: cuts inside real paragraphs, and calls that really stand in the reasoning."""

import asyncio
import gzip
import json
import re

import pytest
from annotations import annotator_at, answer, chunk
from scripted_server import ScriptedServer, chat

from pact_lightning.traces.levels import literal_call_spans, prefix_ends

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_CALLS = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def turns_of(path):
    """Reasoning and calls of each row that calls tools; the rows' blocks hold one JSON object a line."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        outputs = [json.loads(line)["output"] for line in file]
    for output in outputs:
        think, calls = _THINK.search(output), _CALLS.search(output)
        if think and calls:
            entries = [json.loads(line) for line in calls.group(1).splitlines() if line.strip()]
            yield think.group(1), [{"name": e["name"], "arguments": e["parameters"]} for e in entries]


def careless(request, number):
    """An annotator that calls everything safe, and cuts every paragraph before its last word where that is unique."""
    chunks = []
    # In the prompt the paragraphs are numbered; their own line breaks are inside.
    shown = request["messages"][1]["content"].partition("The reasoning:\n")[2]
    parts = re.split(r"^\[\d+\] ", shown, flags=re.M)[1:]
    for index, text in enumerate(parts, start=1):
        chunks.append(chunk("decision_summary", index))
        last = text.split()[-1]
        if text.count(last) == 1 and text.strip() != last:
            chunks.append(chunk("tool_selection", index, split=index, before=last))
    return chat(answer(*chunks))


@pytest.mark.shared
def test_real_turns_are_covered_and_safe(shared_data, tmp_path):
    turns = list(turns_of(shared_data / "toolrl" / "teacher_turns.jsonl.gz"))
    assert len(turns) > 100

    async def run(annotator):
        async with annotator:
            return await annotator.annotate_all([(reasoning, calls, "") for reasoning, calls in turns])

    with ScriptedServer(careless) as server:
        annotator = annotator_at(server, tmp_path)
        annotated = asyncio.run(run(annotator))
        annotator.close()
    assert annotator.stats.annotated == len(turns)
    retyped = 0
    for (reasoning, calls), chunks in zip(turns, annotated, strict=True):
        assert "".join(piece.text for piece in chunks) == reasoning
        ends = prefix_ends(chunks, calls)
        assert all(literal_call_spans(reasoning[:end], calls) == [] for end in ends)
        retyped += any(piece.type.value == "explicit_call_preview" for piece in chunks)
    print(f"{len(turns)} turns, {retyped} with a literal call that the answer called safe")
    assert retyped > 0
