"""Fields that records of every format may have beside their messages: id, reference, environment, kind, metadata."""

from collections.abc import Mapping
from typing import Any

from pact_lightning.teacher.importers.calls import read_call
from pact_lightning.teacher.importers.conversation import Conversation, Dialogue, Reading
from pact_lightning.teacher.importers.fields import decoded, read_id, wanted
from pact_lightning.types.prompt import EnvironmentSpec, ToolSchema
from pact_lightning.types.task import Reference, SubAnswer


def conversation_of(
    record: Mapping[str, Any],
    dialogue: Dialogue,
    tools: tuple[ToolSchema, ...],
    reading: Reading,
    form: str,
) -> Conversation:
    """Make a conversation of a dialogue and the fields that records of every format may have beside it.

    Args:
        record: The record; its ``id`` or ``task_id``, ``environment``, ``reference`` or ``answer``, ``kind`` and
            ``metadata`` are used if present.
        dialogue: The record's dialogue.
        tools: The record's tools.
        reading: What is known of the record; gets the counts of changes.
        form: Name of its format and forms.

    Raises:
        RecordError: A field has the wrong type.
    """
    return Conversation(
        id=read_id(record, "id", "task_id"),
        dialogue=dialogue,
        tools=tools,
        environment=read_environment(record),
        reference=read_reference(record, reading),
        kind=wanted(record.get("kind") or "", str, "kind"),
        metadata=decoded(record.get("metadata") or {}, dict, "metadata"),
        form=form,
    )


def read_reference(record: Mapping[str, Any], reading: Reading) -> Reference:
    """Read a record's known solution: ``reference {answer, calls, sub_answers}``, or ``answer`` alone.

    Raises:
        RecordError: A field has the wrong type.
    """
    given = decoded(record.get("reference") or {}, dict, "reference")
    answer = record.get("answer") if given.get("answer") is None else given["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    calls = wanted(given.get("calls") or [], list, "reference.calls")
    sub_answers = []
    for index, entry in enumerate(wanted(given.get("sub_answers") or [], list, "reference.sub_answers")):
        where = f"reference.sub_answers[{index}]"
        pair = wanted(entry, dict, where)
        sub_answers.append(SubAnswer(*(wanted(pair.get(key), str, f"{where}.{key}") for key in ("tool", "answer"))))
    return Reference(
        None if answer is None else wanted(answer, str, "reference.answer"),
        tuple(read_call(call, f"reference.calls[{index}]", reading) for index, call in enumerate(calls)),
        tuple(sub_answers),
    )


def read_environment(record: Mapping[str, Any]) -> EnvironmentSpec | None:
    """Read a record's ``environment {class_path, init_args}``, if it has one.

    Raises:
        RecordError: A field has the wrong type.
    """
    if record.get("environment") is None:
        return None
    value = decoded(record["environment"], dict, "environment")
    class_path = wanted(value.get("class_path"), str, "environment.class_path")
    return EnvironmentSpec(class_path, wanted(value.get("init_args") or {}, dict, "environment.init_args"))
