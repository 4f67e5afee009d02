"""Rollouts of a run as logs of Inspect (UK AISI), for ``inspect view``, its data frames and Docent.

One log for each file of ``trajectories/``: a rollout is a sample, and its number among those of its task the epoch.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from pact_lightning.rollout.openai_format import rollout_files
from pact_lightning.utils.json_lines import scan_json_lines


def write_inspect_logs(run: Path, folder: Path) -> tuple[list[Path], int]:
    """Write the rollouts of a run as Inspect logs, through Inspect's own Python API.

    Args:
        run: The run's folder.
        folder: Where the logs go, each named as its file of rollouts.

    Returns:
        The logs, and how many lines were left out because they cannot be read.

    Raises:
        FileNotFoundError: The run has no rollouts.
        ImportError: Inspect is not installed.
    """
    files = rollout_files(run / "trajectories")
    if not files:
        raise FileNotFoundError(f"{run} has no rollouts: there is no {run / 'trajectories'}/*.jsonl")
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise ImportError("Inspect logs need inspect-ai: pip install 'pact-lightning[inspect]'") from error
    written, damaged = [], 0
    for file in files:
        lines = list(scan_json_lines(file))
        records = [line.value for line in lines if isinstance(line.value, dict) and "messages" in line.value]
        damaged += len(lines) - len(records)
        location = folder / f"{file.stem}.eval"
        location.parent.mkdir(parents=True, exist_ok=True)
        write_eval_log(_log(run, file, records), str(location))
        written.append(location)
    return written, damaged


def _log(run: Path, file: Path, records: Sequence[Mapping[str, Any]]) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats

    ids = list(dict.fromkeys(str(record.get("task_id")) for record in records))
    samples = [_sample(record) for record in records]
    first = records[0] if records else {}
    written = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    spec = EvalSpec(
        created=written,
        task=file.stem,
        dataset=EvalDataset(name=run.name, samples=len(ids), sample_ids=list(ids)),
        model=_model(first),
        config=EvalConfig(epochs=max((sample.epoch for sample in samples), default=1)),
        metadata={name: first[name] for name in ("phase", "temperature", "checkpoint") if name in first},
    )
    results = EvalResults(
        total_samples=len(samples), completed_samples=len(samples), scores=_means([s.scores or {} for s in samples])
    )
    # Without these Inspect View shows a duration that is no number.
    stats = EvalStats(started_at=written, completed_at=written)
    return EvalLog(status="success", eval=spec, results=results, stats=stats, samples=samples)


def _model(record: Mapping[str, Any]) -> str:
    return str(record.get("model") or "policy")


def _sample(record: Mapping[str, Any]) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelUsage
    from inspect_ai.scorer import Score

    messages = [_message(message) for message in record["messages"]]
    scores = {name: value for name, value in (record.get("scores") or {}).items() if isinstance(value, int | float)}
    if record.get("turn_rewards"):
        scores["reward"] = sum(record["turn_rewards"])
    prompt = messages[: next((n for n, message in enumerate(messages) if message.role == "assistant"), None)]
    last = messages[-1] if messages else None
    answer = last.text if last is not None and last.role == "assistant" else None
    tokens = record.get("tokens")
    usage = ModelUsage(output_tokens=tokens, total_tokens=tokens) if isinstance(tokens, int) else None
    facts = ("kind", "phase", "stop_reason", "tokens", "turn_rewards", "turn_advantages", "temperature", "replaced")
    return EvalSample(
        id=str(record.get("task_id")),
        epoch=int(record.get("sample", 0)) + 1,
        input=prompt,
        target="",
        messages=messages,
        scores={name: Score(value=float(value), answer=answer) for name, value in scores.items()},
        model_usage={} if usage is None else {_model(record): usage},
        metadata={name: record[name] for name in facts if name in record},
    )


def _message(message: Mapping[str, Any]) -> Any:
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
    )
    from inspect_ai.tool import ToolCall, ToolCallError

    role, content = message["role"], str(message.get("content") or "")
    if role == "system":
        return ChatMessageSystem(content=content)
    if role == "user":
        return ChatMessageUser(content=content)
    if role == "tool":
        error = ToolCallError("unknown", content) if message.get("error") else None
        return ChatMessageTool(content=content, tool_call_id=message.get("tool_call_id"), error=error)
    calls = [
        ToolCall(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", ())
    ]
    for error in message.get("malformed_calls", ()):
        calls.append(ToolCall("", "malformed call", {}, parse_error=str(error)))
    reasoning = message.get("reasoning_content")
    parts: Any = [ContentReasoning(reasoning=reasoning), ContentText(text=content)] if reasoning else content
    return ChatMessageAssistant(content=parts, tool_calls=calls or None)


def _means(scores: Sequence[Mapping[str, Any]]) -> list[Any]:
    from inspect_ai.log import EvalMetric, EvalScore

    names = dict.fromkeys(name for each in scores for name in each)
    found = []
    for name in names:
        values = [float(each[name].value) for each in scores if name in each]
        metrics = {"mean": EvalMetric(name="mean", value=fmean(values))}
        found.append(EvalScore(name=name, scorer=name, scored_samples=len(values), metrics=metrics))
    return found
