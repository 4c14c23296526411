"""A record as tables: for a terminal, as Markdown."""

from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from .targets import MIB, TARGETS, fastest, figure, median, verdict

_WIDE = 140


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _times(record: dict[str, Any], side: str) -> str:
    times = record["times"]["milliseconds"].get(side)
    if not times:
        return ""
    middle = _number(median(record, side) or 0.0)
    return middle if len(times) == 1 else f"{middle} ({_number(min(times))}..{_number(max(times))})"


def _first_call(facts: dict[str, Any], which: str) -> str:
    return _number(facts[which]["first"] - facts[which]["second"]) if which in facts else ""


def _memory(facts: dict[str, Any]) -> str:
    if "peak_bytes" not in facts:
        return ""
    peak, start = (facts[when]["process"] / MIB for when in ("peak_bytes", "start_bytes"))
    device = facts["peak_bytes"]["device"]
    own = "" if device is None else f"; device {device / MIB:,.0f}"
    return f"{peak:,.0f} ({start:,.0f}){own}"


def _difference(record: dict[str, Any], precision: str, side: str) -> str:
    found = record.get("differences", {}).get(precision, {}).get(side)
    return "" if found is None else f"{found['relative']:.0e}"


def workload_table(record: dict[str, Any]) -> Table:
    """One row for each side."""
    workload, timed = record["workload"], "times" in record
    peers = [name for name, side in record["sides"].items() if side["kind"] == "torch"]
    best = fastest(record, peers)
    unit = "ms a task" if workload["learner"] == "meta_test" else "ms a step"
    header = ["side"]
    if timed:
        header += [f"{unit}, median (min..max)", "speed against the best peer", "% of matmul rate"]
        header += ["first call (s)", "from cache (s)", "process peak (before the first step), MiB"]
    header += ["differs, float64", "differs, float32"]
    rows = []
    for name, side in record["sides"].items():
        row = [name]
        if timed:
            time, facts = median(record, name), record["times"]["workers"].get(side["worker"], {})
            matmul = record["times"].get("matmul_flop_per_second")
            rate = None if time is None or matmul is None else record["flop"] / (time / 1e3) / matmul
            row += [
                _times(record, name),
                "no peer" if best is None else "" if time is None else f"{_number(best[1] / time)}x",
                "" if rate is None else f"{100 * rate:.1f}",
                _first_call(facts, "cold"),
                _first_call(facts, "cached"),
                _memory(facts),
            ]
        rows.append([*row, _difference(record, "float64", name), _difference(record, "float32", name)])
    return Table(f"{workload['name']}: {workload['about']}", header, rows, _notes(record, peers))


def _notes(record: dict[str, Any], peers: list[str]) -> list[str]:
    notes = [f"{record['flop'] / 1e9:.3g} GFLOP a step."]
    if "times" in record:
        matmul = record["times"].get("matmul_flop_per_second")
        if matmul is not None:
            notes[0] = f"{notes[0][:-1]}; matmul reached {matmul / 1e9:,.0f} GFLOP/s."
        facts = record["times"]["workers"].get("metakit 1", {})
        if "temporary_bytes" in facts:
            tasks = record["workload"]["tasks"]
            if record["workload"]["learner"] == "meta_test":
                tasks = record["workload"]["steps_per_call"]
            one, eight = facts["temporary_bytes"] / MIB, facts["temporary_bytes_8x_tasks"] / MIB
            notes.append(
                f"Temporary memory of metakit: {one:,.1f} MiB for {tasks} tasks, {eight:,.1f} for {8 * tasks}."
            )
        if any(len(times) == 1 for times in record["times"]["milliseconds"].values()):
            notes.append("A single time: one call, because it is slow.")
    if not peers:
        notes.append("No PyTorch here: pip install torch, or name a Python that has it with --peer-python.")
    inexact = [name for name, side in record["sides"].items() if not side["exact"]]
    if inexact:
        notes.append(
            f"{', '.join(inexact)}: its meta-gradient is wrong, because PyTorch's vmap loses a term of the second "
            "derivative of F.batch_norm (pytorch/functorch#534); timed all the same."
        )
    return notes


def targets_table(record: dict[str, Any]) -> Table:
    """Every figure of the workloads in a record beside what it should be."""
    rows = []
    for target in TARGETS:
        if target.workload not in record["workloads"]:
            continue
        found, sign = figure(target, record["workloads"][target.workload]), "x" if target.is_ratio else ""
        stretch = "" if target.stretch is None else f"{target.stretch:g}{sign}"
        measured = ["not measured", "", ""]
        if found is not None:
            measured = [f"{_number(found[0])}{sign}", verdict(target, found[0]), found[1]]
        limits = ["" if target.least is None else f"{target.least:g}{sign}", stretch]
        rows.append([target.workload, target.what, measured[0], *limits, *measured[1:]])
    header = ["workload", "figure", "measured", "at least / most", "stretch", "verdict", "between"]
    return Table("Figures to reach", header, rows, [])


def tables(record: dict[str, Any]) -> list[Table]:
    each = [workload_table(one) for one in record["workloads"].values()]
    return each if record["smoke"] else [*each, targets_table(record)]


def machine_line(record: dict[str, Any]) -> str:
    facts = record["machine"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "jax", "equinox", "optax"))
    torch = f"PyTorch {facts['torch']}" if facts.get("torch") else "no PyTorch"
    line = f"{facts['cores']} cores, {facts['device']} ({facts['platform']}); {versions}; {torch}; float32."
    return f"SMOKE SIZE: no figure here means anything. {line}" if record["smoke"] else line


def show(record: dict[str, Any], console: Console) -> None:
    console.print(machine_line(record), markup=False)
    for table in tables(record):
        if console.width < _WIDE:
            _show_as_list(table, console)
        else:
            shown = RichTable(*table.header, title=table.title, title_justify="left")
            for row in table.rows:
                shown.add_row(*row)
            console.print(shown)
        for note in table.notes:
            console.print(note, markup=False)


def _show_as_list(table: Table, console: Console) -> None:
    """In 80 columns a table of nine would be cut to five letters each."""
    console.print(f"\n{table.title}", style="bold", markup=False)
    for first, *rest in table.rows:
        console.print(first, markup=False)
        for name, value in zip(table.header[1:], rest, strict=True):
            if value:
                console.print(f"    {name}: {value}", markup=False)


def markdown(record: dict[str, Any]) -> str:
    parts = [machine_line(record)]
    for table in tables(record):
        lines = [f"### {table.title}", "", f"| {' | '.join(table.header)} |", f"|{'---|' * len(table.header)}"]
        lines += [f"| {' | '.join(row)} |" for row in table.rows]
        parts.append("\n".join(lines))
        parts.append("\n".join(table.notes))
    return "\n\n".join(part for part in parts if part) + "\n"
