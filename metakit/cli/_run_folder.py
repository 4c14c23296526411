"""A run's folder: its settings, its log, and what was made of it."""

import dataclasses
import errno
import json
import pathlib
import time
from typing import Any

from metakit.train import ConfigChangedError, DiskFullError

from ._config import Settings, Train, UsageError, explicit


class RunFolder:
    """Paths of a run, and the two files that are written while it goes on."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.report = path / "report.md"
        self.checkpoints = path / "checkpoints"

    def log(self, **record: Any) -> None:
        """Append one line to the log."""
        write(self.metrics, json.dumps(record) + "\n", append=True)

    def records(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        # A full disk or a killed process cuts the last line; a resumed run logs it again.
        *whole, _ = self.metrics.read_text().split("\n")
        return [json.loads(line) for line in whole]

    def rewind(self, step: int) -> None:
        """Forget what was logged after the checkpoint that a resumed run continues from."""
        training = ("progress", "validated", "evaluation")
        kept = [r for r in self.records() if r.get("step", 0) <= step and r["event"] in training]
        write(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))


def write(path: pathlib.Path, text: str, *, append: bool = False) -> None:
    """Write a text file; a full disk is an error of its own, and what was there before is kept."""
    try:
        if append:
            with path.open("a") as file:
                file.write(text)
        else:
            partial = path.with_name(path.name + ".part")
            partial.write_text(text)
            partial.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = (
            f"no room left to write {path}. What its folder holds is intact: free some space, and continue with "
            "--resume if there are checkpoints."
        )
        raise DiskFullError(error.errno, message) from error


def create(options: Train, chosen: Settings) -> RunFolder:
    """A new folder; an existing run is never written over."""
    name = f"{chosen.algorithm}-{chosen.data}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = options.run if options.run is not None else pathlib.Path("runs") / name
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"--run {path} exists and is not empty. Choose another folder, or continue it with --resume {path}."
        )
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    write(folder.config, json.dumps(dataclasses.asdict(chosen), indent=2) + "\n")
    return folder


def open_run(path: pathlib.Path) -> tuple[RunFolder, Settings]:
    """An existing run and its settings."""
    folder = RunFolder(path)
    if path.is_file():
        raise UsageError(f"{path} is a file. Give the run folder that holds it, {path.parent}.")
    if not folder.config.exists():
        raise UsageError(f"{path} is no run folder: it holds no config.json. A run is made by 'metakit train'.")
    recorded = json.loads(folder.config.read_text())
    names = {field.name for field in dataclasses.fields(Settings)}
    if set(recorded) != names:
        differing = ", ".join(sorted(set(recorded) ^ names))
        raise UsageError(f"{folder.config} was written by another version of metakit (it differs in: {differing}).")
    return folder, Settings(**recorded)


def resume(options: Train) -> tuple[RunFolder, Settings]:
    """The run to continue; options that contradict it are named."""
    assert options.resume is not None
    if options.run is not None:
        raise UsageError(
            f"--run {options.run} would not be used: --resume continues in {options.resume}. Leave it out."
        )
    folder, recorded = open_run(options.resume)
    given = explicit(options) | {"algorithm": options.algorithm}
    if options.data is not None:
        given["data"] = options.data
    if options.smoke:
        given["smoke"] = True
    changed = {name: value for name, value in given.items() if getattr(recorded, name) != value}
    if changed:
        raise ConfigChangedError(
            str(options.resume), {n: (getattr(recorded, n), value) for n, value in changed.items()}
        )
    return folder, recorded
