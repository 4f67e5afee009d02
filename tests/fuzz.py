"""Feeds generated inputs to what reads text from outside; exit status 0 only if nothing unexpected was raised.

The invariants and the strategies are those of the property tests; here they run on many more inputs.
``PYTHONPATH=tests python -m fuzz --help``.
"""

import argparse
import sys
import time
import traceback
from functools import partial

import rooms  # noqa: F401  # puts the rooms on the path; before what is imported from there
import test_importers_properties as importers
from hand_made import bundled_renderer
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from test_components_and_rendering import (
    HOSTILE,
    test_control_text_from_outside_never_becomes_a_control_token,
    test_segments_join_to_the_ids_whatever_was_sampled,
)
from test_importers import sharegpt, toolrl
from test_tasks_mistakes import test_mistakes_are_told_exactly_where_the_schema_or_a_contradiction_says_so
from test_tool_call_parsing import HOSTILE as HOSTILE_TURNS
from test_tool_call_parsing import test_hostile_text_never_raises_and_gives_only_usable_calls

BATCH = 5000
"""Inputs of one run of Hypothesis, which remembers all of a run."""


def invariant(test):
    """A property test without its own strategy and its own number of examples."""
    return test.hypothesis.inner_test


def parser(data):
    invariant(test_hostile_text_never_raises_and_gives_only_usable_calls)(data.draw(HOSTILE_TURNS))


def renderer(data, rendering):
    if data.draw(st.booleans()):
        check = invariant(test_control_text_from_outside_never_becomes_a_control_token)
        check(rendering, data.draw(HOSTILE), data.draw(HOSTILE))
    else:
        ids = data.draw(st.lists(st.integers(0, 1162), min_size=1, max_size=40))
        invariant(test_segments_join_to_the_ids_whatever_was_sampled)(rendering, ids)


def task_reader(data):
    invariant(test_mistakes_are_told_exactly_where_the_schema_or_a_contradiction_says_so)(data)


def trace_importer(data):
    kind = data.draw(st.integers(0, 2))
    if kind == 0:
        importers.imported_or_told(data.draw(importers.JSON), data.draw(st.sampled_from(["auto", *importers.FORMATS])))
    elif kind == 1:
        make = data.draw(st.sampled_from(importers.MAKERS))
        invariant(importers.test_a_mutated_record_is_imported_or_told)(data, make)
    else:
        make = data.draw(st.sampled_from([sharegpt, toolrl]))
        invariant(importers.test_text_with_any_tags_is_imported_or_told)(data, make)


def targets():
    return {
        "tool-call parser": parser,
        "renderer": partial(renderer, rendering=bundled_renderer()),
        "task reader": task_reader,
        "trace importer": trace_importer,
    }


def fuzz(check, inputs, first_seed=0):
    """Runs a check on so many inputs; gives how many were run and what it raised, as text."""
    run = 0

    def counted(data):
        nonlocal run
        check(data)
        run += 1  # afterwards: what Hypothesis gives up on half-way is no input

    number = first_seed
    while run < inputs:
        size = min(BATCH, inputs - run)
        configured = settings(
            max_examples=size, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), derandomize=False,
        )  # fmt: skip
        before = run
        try:
            seed(number)(configured(given(st.data())(counted)))()
        except Exception:  # noqa: BLE001  # whatever it is, it is what was looked for
            return run, traceback.format_exc()
        if run == before:
            return run, "Hypothesis gave no input"
        number += 1
    return run, ""


def main():
    parse = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parse.add_argument("--inputs", type=int, default=100_000, help="inputs of each target (default 100000)")
    parse.add_argument("--targets", default="", help="comma-separated; all if left out")
    given_arguments = parse.parse_args()
    chosen = [name.strip() for name in given_arguments.targets.split(",") if name.strip()]
    failed = False
    for name, check in targets().items():
        if chosen and name not in chosen:
            continue
        started = time.monotonic()
        run, raised = fuzz(check, given_arguments.inputs)
        failed |= bool(raised)
        print(f"{name}: {run} inputs in {time.monotonic() - started:.0f} s, {'RAISED' if raised else 'nothing raised'}")
        if raised:
            print(raised)
        sys.stdout.flush()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
