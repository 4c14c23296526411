"""The figures to reach, and what a record says of them."""

import dataclasses
import statistics
from typing import Any

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Target:
    """One figure: a ratio of times to be at least something, or a number to be at most something."""

    workload: str
    what: str
    least: float | None  # None: to be reported
    stretch: float | None
    peers: tuple[str, ...] = ()  # of a ratio: the best of these; none for a number

    @property
    def is_ratio(self) -> bool:
        return bool(self.peers)


# With F.batch_norm PyTorch's vmap computes another meta-gradient, so only the exact one is a peer there.
_LOOP, _VMAP, _EXACT = ("PyTorch loop",), ("PyTorch vmap",), ("PyTorch vmap, exact norm",)

TARGETS = (
    Target("sinusoid", "against PyTorch vmap", 12, 25, _VMAP),
    Target("sinusoid", "against PyTorch loop", 60, 120, _LOOP),
    Target("sinusoid_sampled", "against PyTorch vmap", 10, 20, _VMAP),
    Target("sinusoid_sampled", "against PyTorch loop", 40, 100, _LOOP),
    Target("omniglot_paper", "against PyTorch, the better of loop and vmap", 3, 4.5, _LOOP + _EXACT),
    Target("conv4_heavy", "against PyTorch, the better of loop and vmap", 1.5, 2.3, _LOOP + _EXACT),
    Target("conv4_heavy", "against vmap(lax.conv) in JAX", 20, None, ("JAX, vmap(lax.conv)",)),
    Target("conv4_heavy", "first call, cold (s)", 6, 3),
    Target("conv4_heavy", "first call, from cache (s)", 1.5, None),
    Target("conv4_heavy", "temporary memory, 8 tasks (MiB)", 120, 60),
    Target("conv4_heavy", "temporary memory, 64 tasks (MiB)", 120, 60),
    Target("conv4_heavy", "process peak, in PyTorch loop's", None, 1.0),
    Target(
        "proto60",
        "against PyTorch, the better of plain and channels_last",
        1.0,
        1.3,
        ("PyTorch plain", "PyTorch channels_last"),
    ),
    Target("mini84", "against PyTorch, the better of loop and vmap", 1.6, 2.5, _LOOP + _EXACT),
    Target("meta_test", "tasks per second against a PyTorch loop", 1.5, None, _LOOP),
)


def median(record: dict[str, Any], side: str) -> float | None:
    """Milliseconds per step of a side, or `None` where it was not timed."""
    times = record.get("times", {}).get("milliseconds", {}).get(side)
    return statistics.median(times) if times else None


def fastest(record: dict[str, Any], sides: tuple[str, ...] | list[str]) -> tuple[str, float] | None:
    """The fastest of some sides and its time; `None` where none was timed."""
    timed = {side: time for side in sides if (time := median(record, side)) is not None}
    best = min(timed, key=lambda side: timed[side], default=None)
    return None if best is None else (best, timed[best])


def metakit_sides(record: dict[str, Any]) -> list[str]:
    return [name for name, side in record["sides"].items() if side["kind"] == "metakit"]


def figure(target: Target, record: dict[str, Any]) -> tuple[float, str] | None:
    """The number and between whom, or `None` where it was not measured."""
    if target.is_ratio:
        ours, theirs = fastest(record, metakit_sides(record)), fastest(record, target.peers)
        if ours is None or theirs is None:
            return None
        return theirs[1] / ours[1], f"{ours[0]} : {theirs[0]}"
    facts = record.get("times", {}).get("workers", {}).get("metakit 1")
    if facts is None:
        return None
    ours, theirs = _peak(record, "metakit 1"), _peak(record, "torch loop")
    numbers: dict[str, float | None] = {
        "process peak, in PyTorch loop's": None if ours is None or theirs is None else ours / theirs,
        # Tracing and compiling: what the first call takes longer than the second.
        "first call, cold (s)": facts["cold"]["first"] - facts["cold"]["second"],
        "first call, from cache (s)": facts["cached"]["first"] - facts["cached"]["second"],
        "temporary memory, 8 tasks (MiB)": facts["temporary_bytes"] / MIB,
        "temporary memory, 64 tasks (MiB)": facts["temporary_bytes_8x_tasks"] / MIB,
    }
    number = numbers[target.what]
    return None if number is None else (number, "metakit")


def _peak(record: dict[str, Any], worker: str) -> float | None:
    peak = record["times"]["workers"].get(worker, {}).get("peak_bytes")
    return None if peak is None else peak["process"]


def verdict(target: Target, value: float) -> str:
    def reached(limit: float) -> bool:
        return value >= limit if target.is_ratio else value <= limit

    if target.stretch is not None and reached(target.stretch):
        return "stretch"
    if target.least is None:
        return "reported"
    return "met" if reached(target.least) else "NOT MET"
