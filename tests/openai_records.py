"""Tasks with their traces, written as records in OpenAI's message format."""

import json


def openai_record(task):
    """Convert a task with its trace to a record that :func:`conversation_from_openai` reads back.

    The format has no place for chunk types and turn patterns; they are found again by rule when it is read.
    """
    messages = [dict(message) for message in task.prompt.messages]
    coming = iter(task.prompt.follow_ups)
    turns = task.trace.turns if task.trace else ()
    for index, turn in enumerate(turns):
        messages += _turn_messages(index, turn)
        if turn.reply is not None:
            user = next(coming)
            tools = {"tools": [dict(tool) for tool in user.tools]} if user.tools else {}
            messages.append({"role": "user", "content": user.content, **tools})
    if task.trace and task.trace.final:
        final = task.trace.final
        messages.append({"role": "assistant", "content": final.answer, "reasoning_content": final.reasoning})
    reference = task.reference
    return {
        "id": task.id,
        "messages": messages,
        "tools": [dict(tool) for tool in task.prompt.tools],
        "environment": {
            "class_path": task.prompt.environment.class_path,
            "init_args": dict(task.prompt.environment.init_args),
        },
        "reference": {
            "answer": reference.answer,
            "calls": [dict(call) for call in reference.calls],
            "sub_answers": [{"tool": sub.tool, "answer": sub.answer} for sub in reference.sub_answers],
        },
        "kind": task.kind,
        "metadata": dict(task.metadata),
    }


def _turn_messages(index, turn):
    assistant = {"role": "assistant", "content": turn.reply, "reasoning_content": turn.reasoning}
    if not turn.calls:
        return [assistant]
    ids = [f"call_{index}_{number}" for number in range(len(turn.calls))]
    assistant["tool_calls"] = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
        }
        for id_, call in zip(ids, turn.calls, strict=True)
    ]
    responses = zip(ids, turn.responses, strict=True)
    return [assistant, *({"role": "tool", "tool_call_id": id_, "content": text} for id_, text in responses)]
