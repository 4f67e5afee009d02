"""The bundled world with tools that go through the sandbox, a share of which misbehaves."""

import random
from itertools import count

from faults.snippets import SNIPPETS, source
from pact_lightning.environments.sandbox.code_tools import CodeToolEnvironment
from pact_lightning.tasks.bundled.tools import BundledWorld

_GOOD = "def good(text): return text"
_turn = count()


class MisbehavingWorld(BundledWorld):
    """A task of the bundled world; each call's response takes the way through the sandbox, or a fault's does instead.

    Args:
        split: The task's split.
        index: The task's number.
        share: Share of calls that misbehave, in [0, 1]; the faults take turns.
        timeout_s: Time limit of a call.
    """

    injected = 0

    def __init__(self, split, index, share, timeout_s):
        super().__init__(split, index)
        self._share = share
        codes = {"good": _GOOD} | {f"f{number}": source(snippet) for number, snippet in enumerate(SNIPPETS)}
        # Every fault under its own name within the sandbox's environment, whose functions are all called `f`.
        self._boxes = {
            name: CodeToolEnvironment({name if name == "good" else "f": code}, [], timeout_s=timeout_s)
            for name, code in codes.items()
        }
        self._draw = random.Random(index)

    def reset(self, task, seed):
        super().reset(task, seed)
        self._draw = random.Random(seed)

    def call(self, name, arguments):
        result = super().call(name, arguments)
        if self._draw.random() < self._share:
            number = next(_turn) % len(SNIPPETS)
            type(self).injected += 1
            return self._boxes[f"f{number}"].call("f", {"path": "/root/nowhere"})
        answered = self._boxes["good"].call("good", {"text": result.text})
        return result if not answered.error else answered
