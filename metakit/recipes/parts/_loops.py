"""Options of the outer and the inner loop, and of how long a run takes."""

import dataclasses
import math
from collections.abc import Collection
from typing import Annotated, Any, Literal, Protocol

import optax

from metakit import train

from ._devices import every_core
from ._markers import HELD, InTest
from ._option_error import OptionError, require_least, require_positive

EVERY_CORE = "every core"  # the devices of a preset
Schedule = Literal["constant", "cosine", "halving", "cooldown"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a run takes."""

    steps: int
    """Outer steps in all."""
    meta_batch: int
    """Tasks in one outer step."""
    validate_every: int
    """Outer steps between validations, a divisor of --steps; left out, near the default."""
    validation_tasks: int = 200
    """Tasks in a validation."""
    test_tasks: Annotated[int, InTest("num_tasks")] = 600
    """Tasks in the final test."""
    seed: int = 0
    """Seed of every random draw."""
    devices: int | Literal["every core"] = 1
    """Devices to spread the tasks over; a CPU counts as so many. 'every core' takes as many cores as divide
    --meta-batch."""

    def __post_init__(self):
        least = {"steps": 1, "meta_batch": 1, "validate_every": 1, "validation_tasks": 2, "test_tasks": 2, "seed": 0}
        require_least(least, vars(self))
        if self.devices != EVERY_CORE and self.devices < 1:
            raise OptionError(f"--devices must be at least 1, got {self.devices}.")

    @staticmethod
    def settled(values: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
        """A period that divides the steps, and a number of devices that divides the tasks."""
        Budget(**{field.name: values[field.name] for field in dataclasses.fields(Budget)})
        steps, period = values["steps"], values["validate_every"]
        if "validate_every" not in given:
            period = _divisor_near(period, steps)
        if steps % period:
            whose = "" if "validate_every" in given else ", the default,"
            raise OptionError(
                f"--validate-every {period}{whose} must divide --steps {steps}, so that the last step is validated "
                f"too; --steps {period * max(round(steps / period), 1)} would do."
            )
        devices, tasks = values["devices"], values["meta_batch"]
        devices = every_core(tasks) if devices == EVERY_CORE else devices
        if tasks % devices:
            raise OptionError(f"--meta-batch {tasks} must be a multiple of --devices {devices}.")
        return values | {"validate_every": period, "devices": devices}

    @property
    def of_experiment(self) -> dict[str, Any]:
        """The same as fields of an `Experiment`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _divisor_near(wanted: int, steps: int) -> int:
    """A default period for other steps than its own: the nearest that divides them, within a factor of three.

    Where there is none, the default itself, which is then refused."""
    if steps <= wanted:
        return steps
    near = [period for period in range(-(-wanted // 3), 3 * wanted + 1) if steps % period == 0]
    return min(near, key=lambda period: abs(math.log(period / wanted)), default=wanted)


class OuterLoop(Protocol):
    """Options that make an optimiser."""

    def optimiser(self, steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of so many steps."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    """The outer loop: Adam."""

    rate: float
    """Outer rate."""
    schedule: Schedule = "constant"
    """How the outer rate falls."""
    clip_norm: float | None = None
    """Largest Euclidean norm of a meta-gradient; none by default."""

    def __post_init__(self):
        require_positive(rate=self.rate, clip_norm=self.clip_norm)

    def optimiser(self, steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of so many steps."""
        whole, fifth = {"num_steps": steps}, {"every": max(steps // 5, 1)}
        options = {"cosine": whole, "cooldown": whole, "halving": fifth}
        return train.adam(self.rate, schedule=self.schedule, clip_norm=self.clip_norm, **options.get(self.schedule, {}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerSteps:
    """The inner loop."""

    inner_steps: int = 1
    """Inner steps in training."""
    test_inner_steps: Annotated[int | None, InTest("inner_steps")] = None
    """Inner steps in evaluation; by default as in training."""

    def __post_init__(self):
        require_least({"inner_steps": 0, "test_inner_steps": 0}, vars(self))

    @property
    def in_test(self) -> int:
        """Inner steps in evaluation."""
        return self.inner_steps if self.test_inner_steps is None else self.test_inner_steps

    @property
    def in_words(self) -> str:
        """A line of a report."""
        return f"Inner steps: {self.inner_steps} in training, {self.in_test} in the test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerLoop(InnerSteps):
    """The inner loop."""

    inner_rate: Annotated[float, HELD]
    """Inner rate, of the mean support loss."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(inner_rate=self.inner_rate)
