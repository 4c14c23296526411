"""What can go wrong while training, as types a caller can catch."""

from typing import Any


class NonFiniteLossError(FloatingPointError):
    """The loss, its gradient or the updated learner stopped being finite.

    **Arguments:**

    - `step`: the index, from 0, of the step that failed.
    - `loss`, `gradient_norm`: what that step computed.
    - `state`: the training state *before* that step: the last good one.

    The step that failed was not applied, and neither was any after it, so `error.state` can be evaluated,
    saved, or trained on with a lower rate.
    """

    def __init__(self, step: int, loss: float, gradient_norm: float, state: Any):
        self.step = step
        self.loss = loss
        self.gradient_norm = gradient_norm
        self.state = state
        super().__init__(
            f"Step {step} is not finite: loss {loss}, gradient norm {gradient_norm}. It was not applied; "
            "error.state is the last good state, and checkpoints already written are intact. Likely causes and what to "
            "try: an outer rate that is too high (lower it, or clip: mk.train.adam(rate, clip_norm=10.0)); an inner "
            "rate that makes adaptation diverge (lower it); an adaptive inner optimiser without eps_root (give it "
            "1e-8: the derivative of a square root at 0 is infinite); an inner loop under mk.inner.Implicit that has "
            "not converged, which compiled code can only show as NaN (take more inner steps, or accept the bias by "
            "tolerance=None; outside jit the gradient's own error says how far it is); NaN in the data "
            "(mk.check_values)."
        )


class CheckpointError(ValueError):
    """A folder, or what it holds, is not a checkpoint that can be used here.

    **Arguments:** a message that names the folder and says what to try. `ConfigChangedError` and
    `CheckpointVersionError` are special cases.
    """


class ConfigChangedError(CheckpointError):
    """A run is being resumed with another configuration than it was started with.

    **Arguments:**

    - `folder`: where the checkpoints are.
    - `changes`: for each field that differs, dotted for nested ones, its recorded and its new value.

    Going on would give a run that neither configuration describes.
    """

    def __init__(self, folder: str, changes: dict[str, tuple[Any, Any]]):
        self.folder = folder
        self.changes = changes
        listed = "; ".join(f"{name}: was {old!r}, now {new!r}" for name, (old, new) in changes.items())
        super().__init__(
            f"The run in {folder} was started with another configuration ({listed}). Use the recorded values "
            "to resume it, or another folder to start a new run."
        )


class CheckpointVersionError(CheckpointError):
    """A folder was written in a format that this version of metakit does not read.

    **Arguments:** `folder`; `found`, the format's version there; `expected`, the one this metakit writes.
    """

    def __init__(self, folder: str, found: Any, expected: int):
        self.folder = folder
        self.found = found
        self.expected = expected
        newer = isinstance(found, int) and found > expected
        super().__init__(
            f"The checkpoints in {folder} have format version {found!r}; this metakit reads version "
            f"{expected}. "
            + (
                "Upgrade metakit, or start a new run in another folder."
                if newer
                else "Start a new run in another folder."
            )
        )


class DiskFullError(OSError):
    """There was no room for a checkpoint; those already written are intact.

    **Arguments:** those of `OSError`: `errno.ENOSPC` and a message that names the folder.
    """


def require_positive(name: str, value: int, meaning: str) -> None:
    """A count of steps or tasks."""
    if isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be at least 1 ({meaning}), got {value}.")
