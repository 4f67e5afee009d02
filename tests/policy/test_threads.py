"""The number of CPU threads follows what other processes leave free."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pact_lightning.policy.threads import CoreTimes, FreeThreads, free_cores, threads_for


def test_free_cores_are_idle_or_ours() -> None:
    """Two cores for ten seconds: three of them idle, eight of our own, so that nine went to others."""
    before, after = CoreTimes(at=100.0, idle=50.0, own=7.0), CoreTimes(at=110.0, idle=53.0, own=15.0)
    assert free_cores(before, after) == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("free", "most", "threads"),
    [
        (2.0, 2, 2),
        (1.7, 2, 2),  # a neighbour takes less than a third of a core
        (1.6, 2, 1),
        (1.33, 2, 1),  # one busy process beside our two threads, each with two thirds of a core
        (0.0, 2, 1),
        (63.9, 16, 16),
    ],
)
def test_a_thread_for_each_free_core(free: float, most: int, threads: int) -> None:
    assert threads_for(free, most) == threads


@given(st.floats(-1, 300), st.floats(0, 300), st.integers(1, 256))
def test_threads_stay_within_bounds_and_grow_with_free_cores(free: float, more: float, most: int) -> None:
    fewer, larger = threads_for(free, most), threads_for(free + more, most)
    assert 1 <= fewer <= larger <= most


def test_fewer_threads_after_two_intervals_and_more_after_four() -> None:
    following = FreeThreads.next_number
    assert following(2, [1], first=True) == 1
    assert following(2, [2, 1]) == 2
    assert following(2, [2, 1, 1]) == 1
    assert following(1, [1, 2, 2, 2]) == 1
    assert following(1, [2, 2, 2, 2]) == 2
    assert following(8, [6, 3]) == 6
    assert following(1, [8, 6, 7, 4]) == 4


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads that nothing fixes."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_beside_busy_processes_one_thread_is_left() -> None:
    threads = FreeThreads()
    threads.most = 2
    decoder = nn.Linear(2, 2)
    hook = threads.follow(decoder)
    assert hook is not None
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count() or 1)]
    try:
        time.sleep(1.0)
        decoder(torch.zeros(2))
        assert torch.get_num_threads() == 1
    finally:
        for process in busy:
            process.kill()
            process.wait()
    hook.remove()


@pytest.mark.usefixtures("two_threads")
def test_a_number_in_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert FreeThreads().follow(nn.Linear(2, 2)) is None
    assert torch.get_num_threads() == 2


_PRODUCT = """
import sys
from pact_lightning.cli.main import _ask_for_same_bits
_ask_for_same_bits()
import torch
draw = torch.Generator().manual_seed(0)
tokens, adapter = torch.randn(5003, 131, generator=draw), torch.randn(5003, 32, generator=draw)
found = []
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    found.append(adapter.T @ tokens)  # an adapter's gradient: a long sum for each of few numbers
sys.exit(not all(torch.equal(found[0], other) for other in found))
"""


def _intel() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and "GenuineIntel" in cpu.read_text(encoding="utf-8", errors="replace")


@pytest.mark.skipif(not _intel(), reason="MKL's promise is for Intel's processors")
def test_products_have_the_same_bits_by_any_number_of_threads() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MKL_CBWR", "OMP_NUM_THREADS")}
    subprocess.run([sys.executable, "-c", _PRODUCT], check=True, env=environment)
