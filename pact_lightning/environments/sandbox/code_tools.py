"""Environment whose tools are Python snippets from a data file, as in FTRL and ToolHop."""

import ast
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.environments.sandbox.libraries import DEFAULT_PACKAGES
from pact_lightning.environments.sandbox.sandbox import Limits, shared_pool
from pact_lightning.types.prompt import PromptView, ToolSchema

FAILURE_PREFIX = "an error occured when call"
"""Beginning of a failed call's text; the spelling is FTRL's, and models trained elsewhere know it. [C]"""


class CodeToolEnvironment:
    """Environment of one snippet per tool, run in the sandbox. Calls share no state.

    A dictionary or a list becomes JSON, any other result ``str``. A failure becomes the text
    ``an error occured when call {name}: {exception}`` [C]; an exception without a text gives its class name [D]. The
    code and its function run in one namespace; upstream loses the imports at the snippet's top [D].

    Args:
        codes: Source of each tool, by name; the source defines a function of that name.
        tools: Schemas of the tools in OpenAI format.
        timeout_s: Time limit of a call in seconds. [C] 10
        memory_mb: Address space of a call in MiB.
        max_output_chars: Characters of an observation; a longer one is cut and ends in ``[truncated]``.
        packages: Names of installed distributions that the code may import, with what they depend on. For all others
            an import fails as if they were not installed.

    Raises:
        ValueError: A tool has no code or code that is not valid Python, or a limit makes no sense.
    """

    def __init__(
        self,
        codes: Mapping[str, str],
        tools: Sequence[ToolSchema],
        timeout_s: float = 10.0,
        memory_mb: int = 512,
        max_output_chars: int = 10_000,
        *,
        packages: Sequence[str] = DEFAULT_PACKAGES,
    ) -> None:
        self._codes = dict(codes)
        self._tools = tuple(tools)
        self._limits = Limits(timeout_s, memory_mb, max_output_chars)
        self._packages = tuple(packages)
        self._seed = 0
        without = [name for name in (tool["function"]["name"] for tool in tools) if name not in self._codes]
        if without:
            raise ValueError(f"no code is given for the tools {', '.join(without)}; add them to `codes`")
        for name, code in self._codes.items():
            if mistake := _syntax_mistake(code):
                raise ValueError(f"the code of the tool {name!r} is not valid Python: {mistake}")

    @property
    def tools(self) -> Sequence[ToolSchema]:
        """Schemas of the tools in OpenAI format."""
        return self._tools

    def reset(self, task: PromptView, seed: int) -> None:
        """Set the seed of the snippets' ``random``; there is no other state.

        Args:
            task: Not used.
            seed: Seed of ``random`` in every call.
        """
        del task
        self._seed = seed

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool.

        Args:
            name: The tool.
            arguments: Keyword arguments of the tool, as JSON values.

        Returns:
            The observation; ``error`` is set when the call failed.

        Raises:
            SandboxError: The sandbox itself does not work on this machine.
        """
        if name not in self._codes:
            return self._failure(name, f"there is no such tool; the tools are {', '.join(self._codes)}")
        pool = shared_pool(self._packages)
        result = pool.run(self._codes[name], name, arguments, limits=self._limits, seed=self._seed)
        return self._failure(name, result.text) if result.error else result

    def _failure(self, name: str, reason: str) -> ToolResult:
        return ToolResult(f"{FAILURE_PREFIX} {name}: {reason}", error=True)


@lru_cache(maxsize=4096)
def _syntax_mistake(code: str) -> str:
    """Return what keeps a code from being parsed, which runs nothing of it; empty where nothing does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its escapes, which a call's own process tells nobody
            ast.parse(code)
    except (SyntaxError, ValueError) as error:
        return str(error).replace("<unknown>, ", "")
    except (MemoryError, RecursionError):
        return "it is nested too deeply"
    return ""
