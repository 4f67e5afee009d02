"""Row ``head_memory``: peak memory of log-probabilities and their backward pass, against all logits at once."""

import resource
import subprocess
import sys

import psutil
import torch

from benchmarks.row import Rounds, Row
from pact_lightning.policy.logprobs import chunked_logprobs

_POSITIONS, _VOCAB, _HIDDEN = 8_192, 151_936, 512
_PEER_NEEDS = 3.2 * 4 * _POSITIONS * _VOCAB
_GIB = 2**30


def run(rounds: Rounds) -> Row:
    """Measure bytes beyond inputs and weight, each side once in a process of its own; memory does not vary."""
    if not torch.cuda.is_available() and psutil.virtual_memory().available < _PEER_NEEDS:
        raise RuntimeError(f"all logits at once take {_PEER_NEEDS / _GIB:.0f} GiB, more than is free; free some memory")
    ours, peer = (_in_own_process(side, rounds) / _GIB for side in ("ours", "peer"))
    settings = {
        "unit": "GiB",
        "positions": _POSITIONS,
        "vocab": _VOCAB,
        "hidden": _HIDDEN,
        "dtype": "float32",
        "head": "trained: the gradient of its weight counts on both sides",
        "ours_is": "chunked_logprobs, chunk_size 1024",
        "peer_is": "cross_entropy of hidden @ weight.T",
        "measured": "torch.cuda.max_memory_allocated" if torch.cuda.is_available() else "growth of ru_maxrss",
    }
    return Row("head_memory", ours, peer, ours / peer, 0.125, "at most", 1, settings)


def _in_own_process(side: str, rounds: Rounds) -> float:
    rounds.tell(side)
    command = [sys.executable, "-m", "benchmarks.head_memory", side]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def _measure(side: str) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    hidden = torch.randn(_POSITIONS, _HIDDEN, device=device, requires_grad=True)
    weight = torch.randn(_VOCAB, _HIDDEN, device=device).mul_(_HIDDEN**-0.5).requires_grad_()
    targets = torch.randint(_VOCAB, (_POSITIONS,), device=device)
    torch.autograd.backward(
        _logp(side, hidden[:8], weight[:100], targets[:8] % 100).sum()
    )  # libraries set themselves up
    hidden.grad = weight.grad = None
    before = _peak()
    torch.autograd.backward(_logp(side, hidden, weight, targets).sum())
    return _peak() - before


def _logp(side: str, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if side == "ours":
        return chunked_logprobs(hidden, weight, targets).logp
    return -torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")


def _peak() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kibibytes * 1024)


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
