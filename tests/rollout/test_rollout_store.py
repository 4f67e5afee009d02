"""Rollouts on disk: what comes back is what was written, of the same policy and request only."""

from dataclasses import replace

import pytest
import torch
from hand_made import attempts, bundled_renderer

from pact_lightning.rollout.engine import RolloutRequest
from pact_lightning.rollout.runner import parts_of, reusable
from pact_lightning.rollout.store import RolloutStore
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.trajectory import StopReason


@pytest.fixture(scope="module")
def renderer():
    return bundled_renderer()


@pytest.fixture(scope="module")
def rollouts(renderer):
    """Two requests, and finished rollouts of the first with every field in use."""
    tasks = [make_task("train", index) for index in range(2)]
    made = attempts(renderer, tasks[0])
    made[0].sampled_logps = [-0.1, -1e-17, -12.345678901234567]
    made[0].environment_reward = 0.1 + 0.2
    made[1].stop_reason = StopReason.MAX_TOKENS_TURN
    made[1].tool_calls, made[1].tool_timeouts, made[1].environment_failures = 3, 2, 1
    tool = {"type": "function", "function": {"name": "späť", "parameters": {}}}
    made[1].turns[0] = replace(made[1].turns[0], errors=(True,), user=UserTurn("More?", (tool,)))
    return [RolloutRequest(task.prompt, 3, number) for number, task in enumerate(tasks)], made


def opened(store, requests, renderer, policy="p", what="phase-0001"):
    return store.open(what, policy, requests, lambda prompt: renderer.prompt(prompt.messages, prompt.tools))


def written(store, rollouts, renderer, **how):
    requests, made = rollouts
    with opened(store, requests, renderer, **how) as stored:
        for trajectory in made[:2]:
            stored.append(requests[0], trajectory)


def test_a_rollout_comes_back_equal_in_every_field(tmp_path, rollouts, renderer):
    requests, made = rollouts
    store = RolloutStore(tmp_path)
    written(store, rollouts, renderer)
    with opened(store, requests, renderer) as stored:
        assert stored.known == {(0, 0): made[0], (0, 1): made[1]}
        assert isinstance(stored.known[0, 1].segments[0].ids, tuple)


@pytest.mark.parametrize("change", ["policy", "seed", "prompt"])
def test_rollouts_of_something_else_are_not_reused(tmp_path, rollouts, renderer, change):
    requests, _ = rollouts
    store = RolloutStore(tmp_path)
    written(store, rollouts, renderer)
    if change == "seed":
        requests = [replace(request, seed=7) for request in requests]
    if change == "prompt":
        requests = [replace(request, prompt=replace(request.prompt, tools=())) for request in requests]
    with opened(store, requests, renderer, policy="q" if change == "policy" else "p") as stored:
        assert stored.known == {}
    if change == "policy":
        with opened(store, requests, renderer) as stored:
            assert stored.known == {}, "the file was begun anew"


def test_a_rollout_that_a_kill_cut_off_is_made_again(tmp_path, rollouts, renderer):
    requests, made = rollouts
    store = RolloutStore(tmp_path)
    written(store, rollouts, renderer)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    with opened(store, requests, renderer) as stored:
        assert stored.known == {(0, 0): made[0]}
        stored.append(requests[0], made[1])
    with opened(store, requests, renderer) as stored:
        assert set(stored.known) == {(0, 0), (0, 1)}


def test_a_damaged_file_is_told_and_begun_anew(tmp_path, rollouts, renderer):
    requests, _ = rollouts
    store = RolloutStore(tmp_path)
    written(store, rollouts, renderer)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"rollout"', b'"rollout', 1))
    with (
        pytest.warns(UserWarning, match="their file is damaged"),
        opened(store, requests, renderer) as stored,
    ):
        assert stored.known == {}


def test_rollouts_of_other_processes_are_known_too(tmp_path, rollouts, renderer):
    requests, made = rollouts
    written(RolloutStore(tmp_path, "-rank1"), rollouts, renderer)
    with opened(RolloutStore(tmp_path, "-rank0"), requests, renderer) as stored:
        assert set(stored.known) == {(0, 0), (0, 1)}
        stored.append(requests[0], made[2])
    with opened(RolloutStore(tmp_path), requests, renderer) as stored:
        assert set(stored.known) == {(0, 0), (0, 1), (0, 2)}


def test_log_probabilities_come_back_and_a_lack_of_them_is_told(tmp_path):
    store = RolloutStore(tmp_path)
    logps = {"4.0": torch.randn(5), "4.1": torch.zeros(0)}
    store.save_logps("phase-0001", "p", logps)
    torch.testing.assert_close(store.read_logps("phase-0001", "p"), logps, rtol=0, atol=0)
    for what, policy in (("phase-0001", "q"), ("phase-0002", "p")):
        with pytest.raises(FileNotFoundError, match=f"in the middle of {what}, but the log-probabilities"):
            store.read_logps(what, policy)


def test_only_the_phase_in_work_is_kept(tmp_path, rollouts, renderer):
    store = RolloutStore(tmp_path / "rollouts")
    names = ["phase-0000", "phase-0001", "phase-0002", "validation-0001", "validation-0002"]
    for what in names:
        written(store, rollouts, renderer, what=what)
        store.save_logps(what, "p", {})
    store.drop(before=1)
    assert {path.name.partition(".")[0] for path in store.folder.iterdir()} == {
        "phase-0001",
        "phase-0002",
        "validation-0002",
    }
    store.clear()
    assert not store.folder.exists()


def test_parts_hold_whole_requests_and_all_of_them(rollouts):
    requests = [replace(rollouts[0][0], samples=samples) for samples in (3, 3, 3, 9, 1, 1)]
    parts = list(parts_of(requests, rows=2))
    assert [list(part) for part in parts] == [[0, 1], [2], [3], [4, 5]]
    assert [list(part) for part in parts_of(requests, rows=64)] == [[0, 1, 2, 3, 4, 5]]


def test_a_part_is_reused_as_a_whole_where_the_run_must_be_exact(rollouts):
    requests = [replace(rollouts[0][0], samples=2) for _ in range(3)]
    known = dict.fromkeys([(0, 0), (0, 1), (1, 0)], rollouts[1][0])
    parts = [range(1), range(1, 3)]
    assert set(reusable(known, parts, requests, exact=True)) == {(0, 0), (0, 1)}
    assert set(reusable(known, parts, requests, exact=False)) == set(known)
