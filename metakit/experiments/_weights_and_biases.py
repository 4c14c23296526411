"""A run in Weights & Biases."""

import pathlib
import secrets
from typing import Any, Literal

from metakit._errors import MissingExtraError

from ._events import Started
from ._tracker import AbstractTracker, Numbers, options


class WeightsAndBiases(AbstractTracker):
    """A listener that logs a run's numbers to Weights & Biases.

    The names are those of `TensorBoard`; the options are the configuration. Its files are in `wandb/` of the run
    folder, and `wandb/run-id` there is the run that a continued one goes on with. Steps that were logged before are
    the same numbers again; the service keeps the first. It prints nothing: log in with `wandb login` beforehand.

    **Arguments:**

    - `project`: default `"metakit"`.
    - `name`: of the run; default the run folder's name.
    - `mode`: `"online"`, or `"offline"` to send it later with `wandb sync`. `None` (the default) leaves it to the
      environment variable `WANDB_MODE`.

    **Raises:** `MissingExtraError` where wandb is not installed: `pip install "metakit[wandb]"`.

    >>> import metakit as mk
    >>> mk.experiments.WeightsAndBiases(mode="offline").project  # doctest: +SKIP
    'metakit'
    """

    def __init__(
        self, project: str = "metakit", name: str | None = None, mode: Literal["online", "offline"] | None = None
    ):
        try:
            import wandb  # noqa: PLC0415 # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise MissingExtraError("wandb", "wandb") from error
        self.project, self.name, self.mode = project, name, mode
        self._library: Any = wandb
        self._run: Any = None
        self._rows = 0

    def _open(self, started: Started) -> bool:
        file = started.folder / "wandb" / "run-id"
        known = file.exists()
        run_id = file.read_text().strip() if known else secrets.token_hex(4)
        file.parent.mkdir(exist_ok=True)
        asked = options(started.experiment).items()
        config = {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in asked}
        self._run = self._library.init(
            project=self.project,
            name=started.folder.name if self.name is None else self.name,
            mode=self.mode,
            id=run_id,
            resume="allow",
            dir=started.folder,
            config=config,
            # One of its own: another run in the same process is another's to end.
            reinit="create_new",
            settings=self._library.Settings(silent=True, console="off"),
        )
        file.write_text(f"{run_id}\n")
        self._rows = started.experiment.steps
        return known

    def _put(self, numbers: Numbers) -> None:
        if numbers.counted is None:
            self._run.log(numbers.values, step=numbers.step)
            return
        # The service's own step only rises, and a series counts from its own beginning: rows after the last step.
        self._rows += 1
        count = f"{numbers.counted}_count"
        for name in numbers.values:
            self._run.define_metric(name, step_metric=count)
        self._run.log({count: numbers.step, **numbers.values}, step=self._rows)

    def _close(self, *, is_whole: bool) -> None:
        self._run.finish(exit_code=0 if is_whole else 1)
