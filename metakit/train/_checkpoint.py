"""Checkpoints that continue a run bit for bit."""

import contextlib
import functools
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax

from metakit._tree import is_key
from metakit._typecheck import typed

from ._errors import CheckpointError
from ._record import open_record, room_needed
from ._state import TrainState, require_one, require_unused
from ._static import static_parts


@functools.cache
def _orbax() -> Any:
    """Imported by who saves or restores: it takes a fifth of the time of `import metakit`."""
    import orbax.checkpoint  # noqa: PLC0415

    return orbax.checkpoint


class Best(NamedTuple):
    """The best learner so far by validation score.

    **Arguments:** `learner`; `score`, its validation score; `step`, how many steps it had been trained for.

    >>> Best(learner=None, score=0.93, step=500).score
    0.93
    """

    learner: Any
    score: float
    step: int


class Checkpoints:
    """A folder of checkpoints of one run, from which it continues bit for bit.

    A checkpoint holds the arrays of the training state and of the best learner; what is not an array
    (functions, sizes) comes from the template that you restore into, so no code is ever loaded from a file. It is
    described there in words, functions by their names, and a template whose learner differs in it is refused: with
    another activation, loss or number of steps the same weights are another learner.
    The folder records the configuration it was started with, and resuming with another one is refused. A
    checkpoint appears under its name only once it is complete: whatever interrupts a save, the ones before
    stay usable.

    **Arguments:**

    - `folder`: made if it does not exist.
    - `config`: the configuration of the run, of JSON values (numbers, strings, lists, mappings). `None` (the
      default) opens a folder that exists and takes the configuration recorded there.
    - `max_to_keep`: how many of the newest checkpoints stay; default 2.

    **Raises:** `CheckpointError` for a folder that holds something else, or nothing where `config` is `None`;
    `ConfigChangedError` naming each field that differs; `CheckpointVersionError` for another format;
    `TypeError` for a configuration that JSON cannot hold.

    >>> import jax, jax.numpy as jnp, optax, tempfile, metakit as mk
    >>> state = mk.train.init(jnp.ones(2), optax.sgd(0.1), key=jax.random.key(0))
    >>> folder = tempfile.TemporaryDirectory()
    >>> with Checkpoints(folder.name, config={"rate": 0.1}) as checkpoints:
    ...     checkpoints.save(state)
    ...     checkpoints.restore(state).learner.tolist()
    [1.0, 1.0]
    >>> Checkpoints(folder.name, config={"rate": 0.2})
    Traceback (most recent call last):
    ...
    metakit.train...ConfigChangedError: ...(rate: was 0.1, now 0.2)...
    >>> folder.cleanup()
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, config: Mapping[str, Any] | None = None, max_to_keep: int = 2
    ):
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep must be at least 1, got {max_to_keep}; the last checkpoint is the run.")
        self.folder = pathlib.Path(folder).absolute()
        self.config: dict[str, Any] = open_record(self.folder, config)
        options = _orbax().CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            # A save that returns is on disk; and no thread reads a state whose memory the next step donates.
            enable_async_checkpointing=False,
        )
        with _quiet():
            self._manager = _orbax().CheckpointManager(self.folder / "steps", options=options)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; `None` before the first."""
        return self._manager.latest_step()

    @typed
    def save(self, state: TrainState, best: Best | None = None) -> None:
        """Write a checkpoint of `state` (and of the best learner so far), named after its step.

        Saving the step that was saved last again is allowed and does nothing.

        **Raises:** `DiskFullError` when there is no room; the checkpoints before it are intact. `ValueError` for a
        state that was used before or holds several trainings.
        """
        require_unused(state)
        require_one(state)
        step = int(state.step)
        if step == self.latest_step:
            return
        record = {"state": _describe(state), "static": static_parts(state.learner), "best": None}
        items: dict[str, Any] = {"state": _orbax().args.StandardSave(_to_arrays(state))}
        if best is not None:
            leaves = _describe(best.learner)
            static = static_parts(best.learner)
            record["best"] = {"score": float(best.score), "step": int(best.step), "learner": leaves, "static": static}
            items["best"] = _orbax().args.StandardSave(_to_arrays(best.learner))
        items["record"] = _orbax().args.JsonSave(record)
        # Not when the folder is opened: whoever opens it to evaluate may do so while the run is saving.
        self._remove_unfinished()
        with _quiet(), room_needed(self.folder), self._none_unfinished_after():
            self._manager.save(step, args=_orbax().args.Composite(**items), force=True)

    @typed
    def restore(self, template: TrainState, *, step: int | None = None) -> TrainState:
        """The state that was saved.

        **Arguments:**

        - `template`: a state of the same structure, as `init` makes it. Its arrays give shapes, dtypes and
          devices.
        - `step`: which checkpoint; `None` (the default) is the newest.

        **Raises:** `CheckpointError` when there is none, or when it does not fit the template.
        """
        step = self._step(step)
        with _quiet():
            record = self._restore(step, record=_orbax().args.JsonRestore()).record
            self._require_fit(record["state"], template, "state")
            self._require_same_static(record.get("static"), template.learner, "state.learner")
            arrays = self._restore(step, state=_orbax().args.StandardRestore(_abstract(template))).state
        return _from_arrays(arrays, template)

    @typed
    def restore_best(self, template: Any, *, step: int | None = None) -> Best | None:
        """The best learner so far, as of a checkpoint; `None` where there had been no validation.

        **Arguments:** `template`, a learner of the same structure; `step`, as in `restore`.

        **Raises:** `CheckpointError` when there is no checkpoint, or when it does not fit the template.
        """
        step = self._step(step)
        with _quiet():
            record = self._restore(step, record=_orbax().args.JsonRestore()).record["best"]
            if record is None:
                return None
            self._require_fit(record["learner"], template, "learner")
            self._require_same_static(record.get("static"), template, "learner")
            arrays = self._restore(step, best=_orbax().args.StandardRestore(_abstract(template))).best
        return Best(_from_arrays(arrays, template), record["score"], record["step"])

    def close(self) -> None:
        """Release the folder. A `with` statement does it for you."""
        with _quiet():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for unfinished in (self.folder / "steps").glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(unfinished, ignore_errors=True)

    @contextlib.contextmanager
    def _none_unfinished_after(self) -> Iterator[None]:
        """Remove what a failed save has written: on a full disk it is in the way of the next attempt."""
        try:
            yield
        except BaseException:
            self._remove_unfinished()
            raise

    def _step(self, step: int | None) -> int:
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise CheckpointError(f"{self.folder} holds no complete checkpoint yet; train and save first.")
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint of step {step}; it holds {steps}.")
        return steps[-1] if step is None else step

    def _restore(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=_orbax().args.Composite(**items))

    def _require_fit(self, saved: list[list[Any]], template: Any, name: str) -> None:
        before, now = ({path: rest for path, *rest in leaves} for leaves in (saved, _describe(template)))
        for path in [*before, *now]:
            if before.get(path) != now.get(path):
                raise CheckpointError(
                    f"The checkpoint in {self.folder} does not fit the template: {name}{path} is "
                    f"{_words(before.get(path))} there and {_words(now.get(path))} here. Build the learner, "
                    "the optimiser and the precision (float32 or float64) as they were when the run began."
                )

    def _require_same_static(self, saved: dict[str, str] | None, learner: Any, name: str) -> None:
        if saved is None:  # written before there was a description
            return
        now = static_parts(learner)
        for path in [*saved, *now]:
            if saved.get(path) != now.get(path):
                raise CheckpointError(
                    f"The checkpoint in {self.folder} does not fit the template: {name}{path} is "
                    f"{saved.get(path, 'absent')} there and {now.get(path, 'absent')} here. Its weights were trained "
                    "with the former: restore into the learner as it was, and change it afterwards "
                    "(mk.train.with_learner for a state)."
                )


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _numbered(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by position.

    By position, because a path may hold characters that a file name cannot; and without the empty ones,
    which orbax refuses to write and whose shape, in the template, says all about them.
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]
    return {f"{i:05d}": leaf for i, leaf in enumerate(arrays) if leaf.size > 0}


def _to_arrays(tree: Any) -> dict[str, Any]:
    return {name: _raw(leaf) for name, leaf in _numbered(tree).items()}


def _abstract(tree: Any) -> dict[str, Any]:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in _to_arrays(tree).items()
    }


def _from_arrays(arrays: dict[str, Any], template: Any) -> Any:
    leaves, structure = jax.tree.flatten(template)
    position = 0
    for i, leaf in enumerate(leaves):
        if not eqx.is_array(leaf):
            continue
        saved = arrays.get(f"{position:05d}")
        position += 1
        if saved is not None:
            leaves[i] = jax.random.wrap_key_data(saved, impl=jax.random.key_impl(leaf)) if is_key(leaf) else saved
    return jax.tree.unflatten(structure, leaves)


def _describe(tree: Any) -> list[list[Any]]:
    """Path, shape and dtype of every array, as JSON values."""
    return [
        [jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree.leaves_with_path(tree)
        if eqx.is_array(leaf)
    ]


def _words(shape_and_dtype: list[Any] | None) -> str:
    return "absent" if shape_and_dtype is None else f"{shape_and_dtype[1]}{shape_and_dtype[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax tells absl's logger about every file, and the trace of every error that it goes on to raise."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
