"""What the terminal shows while a run goes on."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn

from metakit.train import Event, Interrupted, Progress, Resumed, Validated

from ._forms import AbstractForm


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Display:
    """A live line on a terminal; elsewhere a plain line for every tenth of the run."""

    def __init__(self, console: Console, *, steps: int, form: AbstractForm):
        self.console = console
        self.steps = steps
        self.show = form.show
        self.score, self.name = form.score, form.score.replace("_", " ")
        self.validation = "none yet"
        self.logged = 0
        self.bar = Bar(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn(f"| validation {self.name} {{task.fields[validation]}}"),
            TextColumn("| {task.fields[speed]:.1f} steps/s"),
            TextColumn("| {task.fields[left]} left"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> "Display":
        self.bar.start()
        fields: dict[str, Any] = {"loss": float("nan"), "validation": self.validation, "speed": 0.0, "left": "?"}
        self.task = self.bar.add_task("train", total=self.steps, **fields)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.bar.update(
                self.task,
                completed=event.step,
                loss=event.loss,
                validation=self.validation,
                speed=event.steps_per_second,
                left=clock(event.seconds_left),
            )
            if not self.console.is_terminal and event.step - self.logged >= self.steps / 10:
                self.logged = event.step
                self.console.print(
                    f"step {event.step}/{self.steps}  loss {event.loss:.4f}  validation {self.name} {self.validation}  "
                    f"{event.steps_per_second:.1f} steps/s  {clock(event.seconds_left)} left",
                    highlight=False,
                )
        elif isinstance(event, Validated):
            self.validation = self.show(event.result[self.score])
            self.bar.update(self.task, validation=self.validation)
        elif isinstance(event, Resumed):
            self.console.print(f"continuing from step {event.step}", highlight=False)
        elif isinstance(event, Interrupted):
            self.console.print(f"stopped after step {event.step}; everything is saved", highlight=False)
