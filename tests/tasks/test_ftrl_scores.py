"""Solve-P, Solve-R and Solve-F1 on FTRL's real tasks, against its rules stated once more over the raw rows."""

import gzip
import json
import random

import pytest

from pact_lightning.metrics.solve import SolveRate
from pact_lightning.tasks.ftrl.tasks import FTRLTasks
from pact_lightning.types.tool_call import ParsedCall
from pact_lightning.types.trajectory import RolloutTurn, Trajectory


@pytest.fixture(scope="module")
def solved(shared_data):
    """Tasks with known calls, each with its raw row and what the calls return."""
    folder = shared_data / "ftrl"
    tasks = FTRLTasks(folder / "tasks.jsonl.gz", reference_calls=folder / "reference_calls.jsonl").load()
    with gzip.open(folder / "tasks.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(task, json.loads(row["unsolved_set"])) for task, row in zip(tasks, rows, strict=True) if task.trace]


def known(task):
    return [(turn.calls[0]["name"], turn.responses[0]) for turn in task.trace.turns]


def perfect(calls, rng):
    return list(calls)


def partial(calls, rng):
    return list(calls)[: len(calls) // 2]


def reordered(calls, rng):
    return rng.sample(list(calls), len(calls))


def repeated(calls, rng):
    return [call for call in calls for _ in range(2)]


def wrong(calls, rng):
    return [(tool, "an error occured when call it: no") for tool, _ in calls]


def swapped(calls, rng):
    """The right responses, from the wrong tools."""
    return [("another_tool", response) for _, response in calls]


def mixed(calls, rng):
    return reordered([*wrong(calls, rng), *repeated(partial(calls, rng), rng)], rng)


def nothing(calls, rng):
    return []


VARIANTS = [perfect, partial, reordered, repeated, wrong, swapped, mixed, nothing]


def restated(calls, unsolved):
    """One sample's scores by the rules, on the row's own ``{tool: [answer, ...]}``."""

    def even(text):
        return text.lower().replace(",", "")

    left = {tool: list(answers) for tool, answers in unsolved.items()}
    total = sum(map(len, left.values()))
    hits = 0
    for tool, observation in calls:
        for place, answer in enumerate(left.get(tool, [])):
            if all(even(piece) in even(observation) for piece in answer.split(", ")):
                left[tool].pop(place)
                hits += 1
                break
    precision = hits / len(calls) if calls else 1.0
    return precision, hits / total, 2 * hits / (len(calls) + total)


def rollout(task, calls):
    turns = [
        RolloutTurn(
            "", parsed=(ParsedCall({"name": tool, "arguments": {}}),), responses=(observation,), errors=(False,)
        )
        for tool, observation in calls
    ]
    return Trajectory(task.id, 0, (), turns=turns)


@pytest.mark.shared
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_the_rules(solved, variant):
    rng = random.Random(variant.__name__)
    metric, expected = SolveRate(), []
    for task, unsolved in solved:
        calls = variant(known(task), rng)
        one = SolveRate()
        for each in (metric, one):
            each.update(rollout(task, calls), task.reference)
        expected.append(restated(calls, unsolved))
        assert tuple(map(float, one.compute().values())) == pytest.approx(expected[-1], abs=1e-6), task.id
    means = [sum(column) / len(expected) for column in zip(*expected, strict=True)]
    assert len(expected) == 84
    assert [float(value) for value in metric.compute().values()] == pytest.approx(means, abs=1e-5)


@pytest.mark.shared
def test_what_the_variants_must_give(solved):
    """Known in advance, so that metric and restatement cannot be wrong together."""
    rng = random.Random(0)

    def means(variant):
        scores = [restated(variant(known(task), rng), unsolved) for task, unsolved in solved]
        return [sum(column) / len(scores) for column in zip(*scores, strict=True)]

    assert means(perfect)[1] == 1.0
    assert means(wrong)[:2] == means(swapped)[:2] == [0.0, 0.0]
    assert means(nothing) == [1.0, 0.0, 0.0]
    assert means(repeated)[1] == 1.0
    assert means(repeated)[0] < means(perfect)[0]
    assert 0 < means(partial)[1] < 1
