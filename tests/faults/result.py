"""What came of one fault: a row of a table in docs/reliability.md or docs/resume.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FaultResult:
    """One row.

    Attributes:
        section: The table it belongs to, by its marks on one of these pages.
        fault: What was injected, in a few words.
        times: How often.
        held: How often all of it held: no hang, nothing lost, nothing leaked, the run went on.
        happened: What happened, in a few words.
    """

    section: str
    fault: str
    times: int
    held: int
    happened: str

    @property
    def ok(self):
        """Whether it always held."""
        return self.times > 0 and self.held == self.times
