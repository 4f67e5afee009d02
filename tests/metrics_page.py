"""The names on docs/metrics.md, for the tests that compare them with what runs and callbacks log."""

import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
OURS = ("train", "anchor", "anneal", "rollout", "val", "test", "mismatch", "privilege", "time", "perf", "sft")
_FOREIGN = {"train/time", "train/samples", "train/batches"}  # ThroughputMonitor's


def names_on_the_page() -> list[str]:
    """Names and patterns, such as ``privilege/gap_turn_{t}``: the first cell of each row."""
    return re.findall(r"^\| `([^`]+/[^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def is_one_of(name: str, pattern: str) -> bool:
    """Whether a logged name is the one on the page, or one of its pattern's."""
    parts = [re.escape(part) for part in re.split(r"\{\w+\}", pattern)]
    return re.fullmatch(".+".join(parts), name) is not None


def undocumented(logged: Iterable[str]) -> list[str]:
    """Logged names of the package's own that stand on the page neither as they are nor as another stage's."""
    documented = names_on_the_page()
    own = {name for name in logged if name.partition("/")[0] in OURS and "/" in name} - _FOREIGN
    # `test/x` and `rollout/x` are explained as `val/x`.
    asked = {name: (name, re.sub(r"^(test|rollout)/", "val/", name)) for name in own}
    return sorted(
        name for name, either in asked.items() if not any(is_one_of(n, p) for n in either for p in documented)
    )
