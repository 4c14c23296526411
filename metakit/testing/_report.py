"""What the checks found, in lines."""

from typing import Literal, NamedTuple


class Row(NamedTuple):
    """One check.

    - `check`: its name, a function of `mk.testing`.
    - `outcome`: `"holds"`, `"failed"` or `"skipped"`.
    - `found`: what was found, or why it was skipped; of a check that holds, what it says.
    - `advice`: what to try; empty unless it failed.

    >>> Row("is_pure", "holds", "The same arguments give the same result, bit for bit.", "").outcome
    'holds'
    """

    check: str
    outcome: Literal["holds", "failed", "skipped"]
    found: str
    advice: str


class Report(NamedTuple):
    """What `mk.testing.check` found. `print(report)` shows a line a check; `report.require()` raises if one failed.

    - `name`: of the algorithm.
    - `rows`: a `Row` for every check.

    >>> report = Report("my_learner", (Row("is_pure", "failed", "Two calls differ.", "Keep no state."),))
    >>> report.ok
    False
    >>> print(report)
    my_learner: 0 checks hold, 1 failed, 0 skipped
      FAILED   is_pure: Two calls differ. Keep no state.
    """

    name: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Row, ...]:
        """The checks that failed."""
        return tuple(row for row in self.rows if row.outcome == "failed")

    def require(self) -> None:
        """Raise an `AssertionError` that shows the report where a check failed; for a test."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        count = {
            outcome: sum(row.outcome == outcome for row in self.rows) for outcome in ("holds", "failed", "skipped")
        }
        head = f"{self.name}: {count['holds']} checks hold, {count['failed']} failed, {count['skipped']} skipped"
        return "\n".join([head, *map(_line, self.rows)])


def _line(row: Row) -> str:
    outcome = "FAILED" if row.outcome == "failed" else row.outcome
    return f"  {outcome:<8} {row.check}: {row.found} {row.advice}".rstrip()
