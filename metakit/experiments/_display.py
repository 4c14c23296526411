"""What a terminal or a notebook shows while a run goes on."""

import importlib.util
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn

from metakit.train import Interrupted, Progress, Resumed, Validated

from ._events import Reported, RunEvent, Started, Tested, Testing
from ._report import clock, result_table, warnings


class Display:
    """A listener that shows a live line on a terminal or in a notebook; elsewhere a plain line for every tenth.

    **Arguments:** `console`, a rich console; by default standard output.

    >>> Display().live in (True, False)
    True
    """

    def __init__(self, console: Console | None = None):
        self.console = Console() if console is None else console
        # In a notebook rich needs ipywidgets to show what moves.
        in_notebook = self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        self.live = self.console.is_terminal or in_notebook
        self.bar: Bar | None = None
        self.steps, self.logged = 0, 0
        self.validation = ""

    def __call__(self, event: RunEvent) -> None:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Validated):
            self._validated(event)
        elif isinstance(event, Testing):
            self._testing(event)
        elif isinstance(event, Tested):
            self.close()
            self._tested(event)
        elif isinstance(event, Reported):
            self._say(f"report: {event.path}")
        elif isinstance(event, Resumed):
            self._say(f"continuing from step {event.step}")
        elif isinstance(event, Interrupted):
            self.close()
            self._say(f"stopped after step {event.step}; everything is saved")

    def close(self) -> None:
        """Take the live line away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _say(self, words: str) -> None:
        self.console.print(words, highlight=False, markup=False, soft_wrap=True)

    def _start(self, event: Started) -> None:
        experiment = event.experiment
        self.steps, self.scores = experiment.steps, experiment.scores
        if experiment.words.title:
            data = f": {experiment.words.data}" if experiment.words.data else ""
            self._say(f"{experiment.words.title}{data}")
        self._say(f"run folder: {event.folder}")
        self.validation = f"| validation {self.scores.name.replace('_', ' ')} none yet" if experiment.val else ""
        fields: dict[str, Any] = {"loss": float("nan"), "validation": self.validation, "speed": 0.0, "left": "?"}
        self.bar = Bar(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[validation]}"),
            TextColumn("| {task.fields[speed]:.1f} steps/s"),
            TextColumn("| {task.fields[left]} left"),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task("train", total=self.steps, **fields)

    def _progress(self, event: Progress) -> None:
        if self.bar is not None:
            more = {"validation": self.validation, "speed": event.steps_per_second, "left": clock(event.seconds_left)}
            self.bar.update(self.task, completed=event.step, loss=event.loss, **more)
        if not self.live and (event.step - self.logged >= self.steps / 10):
            self.logged = event.step
            self._say(
                f"step {event.step}/{self.steps}  loss {event.loss:.4f}  {self.validation}  "
                f"{event.steps_per_second:.1f} steps/s  {clock(event.seconds_left)} left"
            )

    def _validated(self, event: Validated) -> None:
        score = self.scores.show(event.result[self.scores.name])
        self.validation = f"| validation {self.scores.name.replace('_', ' ')} {score}"
        if self.bar is not None:
            self.bar.update(self.task, validation=self.validation)

    def _testing(self, event: Testing) -> None:
        if not self.live:
            self._say(f"testing {event.number}/{event.of}: {event.what}")
        elif event.number == 1 or self.bar is None:
            self.close()
            columns = (
                TextColumn("[bold]test"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
            )
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(event.what, total=event.of)
        else:
            self.bar.update(self.task, completed=event.number - 1, description=event.what)

    def _tested(self, event: Tested) -> None:
        self.console.print(result_table(event.experiment, event.assessment))
        for warning in warnings(event.experiment, event.assessment):
            self._say(f"note: {warning}")
