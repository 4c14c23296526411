"""A run's `adapt` and `predict` for a process that has JAX and nothing else of metakit's."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from metakit._episode import Examples
from metakit._errors import MissingExtraError
from metakit._tree import is_key

from ._folder import replacing, room_for, write
from ._loaded import Run
from ._record import versions

FORMAT = 1


class ExportError(ValueError):
    """A run that cannot be exported as it was asked.

    **Arguments:** a message that names the run or the learner, and says what to try.
    """


def export(
    run: Run,
    out: str | os.PathLike[str],
    *,
    way: int | None = None,
    shot: int,
    platforms: Sequence[str] | None = None,
) -> pathlib.Path:
    """Write `adapt` and `predict` as `jax.export` artefacts, and the weights as safetensors.

    Whoever loads them needs `jax`, and `flatbuffers` with which it reads them. `adapt(weights, x, y)` takes the list of
    weights in the order of `export.json`, a support set of `way * shot` examples and its labels or targets, and returns
    a list of arrays; `predict(adapted, x)` takes that list and any number of queries. Learners that need a key have
    `jax.random.key(0)`.

    **Arguments:**

    - `run`: a finished run on images or curves.
    - `out`: a new or empty folder: `adapt.bin`, `predict.bin`, `weights.safetensors` and `export.json` are written.
    - `way`: classes in a support set; `None` (the default) for curves.
    - `shot`: support examples of each class, in all for curves; at least 1.
    - `platforms`: such as `("cpu", "cuda")`; default the current one.

    **Returns:** the folder.

    **Raises:** `ExportError` for a folder in use, a run that is not finished or acts in environments, a way that the
    network has not, a shot below 1, or a learner that calls back into Python; `MissingExtraError` where `flatbuffers`
    or `safetensors` is not installed.

    >>> export(Run(pathlib.Path("runs/none"), None, None, None, None, {}, {}, False), "out", shot=1)
    Traceback (most recent call last):
    ...
    metakit.experiments...ExportError: runs/none is not finished...
    """
    save = _safetensors()
    place = pathlib.Path(out)
    if not run.finished:
        raise ExportError(f"{run.folder} is not finished. Continue it with --resume {run.folder}.")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ExportError(f"{place} exists and is not empty. Choose another folder.")
    support, query = _shapes(run, way, shot)
    learner, static = eqx.partition(run.learner, eqx.is_array)
    weights, structure = jax.tree.flatten(learner)
    if any(is_key(leaf) for leaf in weights):
        raise ExportError(f"the learner of {run.folder} holds random keys, which safetensors cannot.")
    key = jax.random.key(0)

    def adapted_of(weights: Any, x: Any, y: Any) -> Any:
        module = eqx.combine(jax.tree.unflatten(structure, weights), static)
        return run.algorithm.adapt(module, Examples(x, y, way), key)

    try:
        like = eqx.filter_eval_shape(adapted_of, weights, *support)
        is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
        parts, rest = eqx.partition(like, is_shape)
        leaves, adapted_structure = jax.tree.flatten(parts)

        def adapt(weights: Any, x: Any, y: Any) -> list[Any]:
            return jax.tree.leaves(eqx.filter(adapted_of(weights, x, y), eqx.is_array))

        def predict(adapted: Any, x: Any) -> Any:
            module = eqx.combine(jax.tree.unflatten(adapted_structure, adapted), rest)
            return jax.tree.leaves(run.algorithm.predict(module, x, key))

        one_query = jax.ShapeDtypeStruct((1, *query.shape[1:]), query.dtype)
        for function, arguments in ((adapt, (_like(weights), *support)), (predict, (leaves, one_query))):
            if "callback" in str(jax.make_jaxpr(function)(*arguments)):
                raise ValueError("it calls back into Python, which no artefact can hold.")
        on: dict[str, Any] = {} if platforms is None else {"platforms": list(platforms)}
        artefacts = {
            "adapt": jax.export.export(jax.jit(adapt), **on)(_like(weights), *support),
            "predict": jax.export.export(jax.jit(predict), **on)(leaves, query),
        }
        packed = {name: artefact.serialize() for name, artefact in artefacts.items()}
    except ModuleNotFoundError as error:
        raise MissingExtraError("export", "flatbuffers") from error
    except (ValueError, TypeError, NotImplementedError) as error:
        learner_name = f"{type(run.learner).__name__} of {run.folder}"
        raise ExportError(f"the learner {learner_name} cannot be exported: {error}") from error
    outputs = [aval.shape[-1] for aval in artefacts["predict"].out_avals]
    if way is not None and outputs[0] != way:
        raise ExportError(
            f"the network of {run.folder} has an output for each of {outputs[0]} classes, not {way}. Give "
            f"--way {outputs[0]}."
        )
    _write(place, packed, weights, _record(run, way, shot, support, query), save)
    return place


def _safetensors() -> Any:
    try:
        import safetensors.numpy  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError("export", "safetensors") from error
    return safetensors.numpy.save_file


def _shapes(run: Run, way: int | None, shot: int) -> tuple[tuple[Any, Any], Any]:
    """What a support set and queries look like, the number of queries a symbol."""
    if shot < 1:
        raise ExportError(f"--shot must be at least 1, got {shot}.")
    (count,) = jax.export.symbolic_shape("queries")
    data = run.data
    if data is not None:
        if way is None or way < 2:
            raise ExportError(f"--way must be at least 2 for a run on images, got {way}.")
        x = jax.ShapeDtypeStruct((way * shot, *data.shape), jnp.float32)
        return (x, jax.ShapeDtypeStruct((way * shot,), jnp.int32)), jax.ShapeDtypeStruct(
            (count, *data.shape), jnp.float32
        )
    if way is not None:
        raise ExportError(f"--way would not be used: {run.folder} was trained on curves, which have no classes.")
    if not hasattr(run.algorithm, "adapt") or run.options.get("data") in ("bandits", "navigation"):
        raise ExportError(f"{run.folder} was trained in environments: it learns by acting, not from a support set.")
    point = jax.ShapeDtypeStruct((shot, 1), jnp.float32)
    return (point, point), jax.ShapeDtypeStruct((count, 1), jnp.float32)


def _like(arrays: Sequence[Any]) -> list[Any]:
    return [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in arrays]


def _record(run: Run, way: int | None, shot: int, support: Any, query: Any) -> dict[str, Any]:
    def words(shape: Any) -> dict[str, Any]:
        return {
            "shape": [side if isinstance(side, int) else str(side) for side in shape.shape],
            "dtype": str(shape.dtype),
        }

    data = run.data
    return {
        "format": FORMAT,
        "recipe": run.recipe,
        "way": way,
        "shot": shot,
        "support": {"x": words(support[0]), "y": words(support[1])},
        "query": words(query),
        "images": None if data is None else {"range": [0, 1], "light ink on a dark ground": data.ink},
        "versions": versions(),
    }


def _write(
    place: pathlib.Path, packed: dict[str, Any], weights: Sequence[Any], record: dict[str, Any], save: Any
) -> None:
    named = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(weights)}
    with room_for(place):
        place.mkdir(parents=True, exist_ok=True)
        for name, data in packed.items():
            with replacing(place / f"{name}.bin") as partial:
                partial.write_bytes(data)
        with replacing(place / "weights.safetensors") as partial:
            save(named, str(partial))
    # Last: a folder with a record is whole.
    write(place / "export.json", json.dumps({**record, "weights": list(named)}, indent=2) + "\n")
