"""A run's `adapt` and `predict` for a process that has JAX and nothing else of metakit's."""

import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from metakit._episode import Examples
from metakit._errors import MissingExtraError, nearest
from metakit._tree import is_key

from ._folder import replacing, room_for, write
from ._loaded import Run
from ._predict import fixed_way
from ._record import versions

FORMAT = 1
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# What JAX calls Python by; a program that holds one needs this process.
_CALLBACKS = ("pure_callback", "io_callback", "debug_callback", "debug_print")


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
    a list of arrays; `predict(adapted, x)` takes that list and any number of queries, and returns a list of outputs:
    logits, or what `export.json` names. Learners that need a key always have `jax.random.key(0)`.

    **Arguments:**

    - `run`: a finished run on images or curves. Images are float32 in 0..1, `[n, channels, height, width]`, as in
      episodes; points of a curve are `[n, 1]`.
    - `out`: a new or empty folder: `adapt.bin`, `predict.bin`, `weights.safetensors` and `export.json` are written.
    - `way`: classes in a support set; `None` (the default) for curves.
    - `shot`: support examples of each class, in all for curves; at least 1.
    - `platforms`: such as `("cpu", "cuda")`; default the current one.

    **Returns:** the folder.

    **Raises:** `ExportError` for a folder in use, a run that is not finished or acts in environments, a way that the
    network has no outputs for, a shot below 1, a platform that is not known, or a learner that calls back into Python
    or asks how many queries there are; `MissingExtraError` where `flatbuffers` or `safetensors` is not installed.

    >>> export(Run(pathlib.Path("runs/none"), None, None, None, None, {}, {}, False), "out", shot=1)
    Traceback (most recent call last):
    ...
    metakit.experiments...ExportError: runs/none is not finished...
    """
    save = _writer_of_weights()
    place = pathlib.Path(out)
    if not run.finished:
        raise ExportError(f"{run.folder} is not finished. Continue it with --resume {run.folder}.")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ExportError(f"{place} exists and is not empty. Choose another folder.")
    _check_platforms(platforms)
    asked = _asked(run, way, shot)
    named = _weights(run)
    try:
        artefacts, outputs = _lower(run, list(named.values()), asked, platforms)
        packed = {f"{name}.bin": artefact.serialize() for name, artefact in artefacts.items()}
    except _CountsQueriesError as error:
        raise ExportError(f"{_whose(run)} asks how many queries there are, which an artefact leaves open.") from error
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ExportError(f"{_whose(run)} cannot be exported: {error}") from error
    answered = artefacts["predict"].out_avals[0].shape[-1]
    if way is not None and answered != way:
        raise _of_another_way(run, way, answered)
    facts = _facts(run, asked, named, artefacts, outputs)
    with room_for(place):
        place.mkdir(parents=True, exist_ok=True)
        for name, program in packed.items():
            with replacing(place / name) as partial:
                partial.write_bytes(program)
        with replacing(place / "weights.safetensors") as partial:
            # The format knows C order alone, and the library does not look.
            save({name: np.asarray(leaf, order="C") for name, leaf in named.items()}, str(partial))
    # Last: a folder with its facts is whole.
    write(place / "export.json", json.dumps(facts, indent=2) + "\n")
    return place


def _writer_of_weights() -> Any:
    """`save_file` of safetensors, once it is known that JAX can write its artefacts too."""
    for package in ("flatbuffers", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("export", package)
    import safetensors.numpy  # noqa: PLC0415

    return safetensors.numpy.save_file


def _check_platforms(platforms: Sequence[str] | None) -> None:
    """JAX lowers for a platform that it does not know, and the artefact runs nowhere."""
    known = tuple(dict.fromkeys((*_PLATFORMS, jax.export.default_export_platform())))
    for name in platforms or ():
        if name not in known:
            raise ExportError(f"--platforms {name} is not known. {nearest(name, known)}")


class _Asked(NamedTuple):
    """What support sets and queries look like; the number of queries is a symbol."""

    way: int | None
    shot: int
    x: jax.ShapeDtypeStruct
    y: jax.ShapeDtypeStruct
    query: jax.ShapeDtypeStruct


def _asked(run: Run, way: int | None, shot: int) -> _Asked:
    if shot < 1:
        raise ExportError(f"--shot must be at least 1, got {shot}.")
    (count,) = jax.export.symbolic_shape("queries")
    data, point = run.data, (1,)
    if data is not None:
        if way is None or way < 2:
            raise ExportError(f"--way must be at least 2 for a run on images, got {way}.")
        head = fixed_way(run)
        if head is not None and head != way:
            raise _of_another_way(run, way, head)
        shape = tuple(data.shape)
        y = jax.ShapeDtypeStruct((way * shot,), jnp.int32)
        return _Asked(way, shot, _floats(way * shot, shape), y, _floats(count, shape))
    if run.options.get("data") in ("bandits", "navigation"):
        raise ExportError(f"{run.folder} was trained in environments: it learns by acting, not from a support set.")
    if way is not None:
        raise ExportError(f"--way would not be used: {run.folder} was trained on curves, which have no classes.")
    return _Asked(None, shot, _floats(shot, point), _floats(shot, point), _floats(count, point))


def _floats(count: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *shape), jnp.float32)


def _of_another_way(run: Run, way: int, outputs: int) -> ExportError:
    return ExportError(
        f"the network of {run.folder} has an output for each of {outputs} classes, not {way}. Give --way {outputs}, or "
        "export a run of a learner that takes any number, such as prototypical."
    )


def _whose(run: Run) -> str:
    return f"the learner {type(run.learner).__name__} of {run.folder}"


def _weights(run: Run) -> dict[str, Any]:
    """The arrays of the learner by their place in it, in flattening order."""
    arrays = jax.tree.leaves_with_path(eqx.filter(run.learner, eqx.is_array))
    if any(is_key(leaf) for _, leaf in arrays):
        raise ExportError(f"{_whose(run)} holds random keys, which safetensors cannot.")
    return {f"learner{jax.tree_util.keystr(path)}": leaf for path, leaf in arrays}


def _lower(
    run: Run, weights: list[Any], asked: _Asked, platforms: Sequence[str] | None
) -> tuple[dict[str, jax.export.Exported], list[str]]:
    """Both functions on flat lists of arrays, what is not an array a part of them, and the names of the outputs."""
    parts, static = eqx.partition(run.learner, eqx.is_array)
    structure, key = jax.tree.structure(parts), jax.random.key(0)

    def adapted_of(weights: Any, x: Any, y: Any) -> Any:
        learner = eqx.combine(jax.tree.unflatten(structure, weights), static)
        return run.algorithm.adapt(learner, Examples(x, y, asked.way), key)

    like = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in weights]
    shapes = eqx.filter_eval_shape(adapted_of, like, asked.x, asked.y)
    adapted_like, rest = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    leaves, adapted_structure = jax.tree.flatten(adapted_like)

    def adapt(weights: Any, x: Any, y: Any) -> list[Any]:
        return jax.tree.leaves(eqx.filter(adapted_of(weights, x, y), eqx.is_array))

    def predicted(adapted: Any, x: Any) -> Any:
        state = eqx.combine(jax.tree.unflatten(adapted_structure, adapted), rest)
        return eqx.filter(run.algorithm.predict(state, x, key), eqx.is_array)

    def predict(adapted: Any, x: Any) -> list[Any]:
        return jax.tree.leaves(predicted(adapted, x))

    one_query = jax.ShapeDtypeStruct((1, *asked.query.shape[1:]), asked.query.dtype)
    for function, arguments in ((adapt, (like, asked.x, asked.y)), (predict, (leaves, one_query))):
        # Before it is lowered: the error of JAX comes last, and names no learner.
        if any(name in _CALLBACKS for name in _primitives(jax.make_jaxpr(function)(*arguments))):
            raise ValueError(f"its {function.__name__} calls back into Python, which no artefact can hold.")
    try:
        outputs = jax.tree.leaves_with_path(jax.eval_shape(predicted, leaves, asked.query))
    except Exception as error:  # one query it could answer; JAX has many errors for a number that it does not know
        raise _CountsQueriesError from error
    alone = "y" if asked.way is None else "logits"
    names = [jax.tree_util.keystr(path).lstrip(".") or alone for path, _ in outputs]
    on: dict[str, Any] = {} if platforms is None else {"platforms": list(platforms)}
    artefacts = {
        "adapt": jax.export.export(jax.jit(adapt), **on)(like, asked.x, asked.y),
        "predict": jax.export.export(jax.jit(predict), **on)(leaves, asked.query),
    }
    return artefacts, names


class _CountsQueriesError(Exception):
    """A learner does something else for another number of queries."""


def _primitives(program: ClosedJaxpr | Jaxpr) -> Iterator[str]:
    """The names of the operations of a program and of the programs within it."""
    for equation in program.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _primitives(inner)


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _facts(
    run: Run,
    asked: _Asked,
    named: dict[str, Any],
    artefacts: dict[str, jax.export.Exported],
    outputs: Sequence[str],
) -> dict[str, Any]:
    """`export.json`."""
    data, predicted = run.data, artefacts["predict"].out_avals
    return {
        "format": FORMAT,
        "recipe": run.recipe,
        "learner": type(run.learner).__name__,
        "way": asked.way,
        "shot": asked.shot,
        "images": None
        if data is None
        else {"range": [0, 1], "layout": "channels, height, width", "light_ink_on_dark": data.ink},
        "support": {"x": _words(asked.x), "y": _words(asked.y)},
        "query": _words(asked.query),
        "outputs": [{"name": name, **_words(aval)} for name, aval in zip(outputs, predicted, strict=True)],
        "weights": [{"name": name, **_words(leaf)} for name, leaf in named.items()],
        "adapted": [_words(aval) for aval in artefacts["adapt"].out_avals],
        "key": "jax.random.key(0), in adapt and in predict",
        "platforms": list(artefacts["adapt"].platforms),
        "versions": versions(),
    }


def _words(of: Any) -> dict[str, Any]:
    return {"shape": [side if isinstance(side, int) else str(side) for side in of.shape], "dtype": str(of.dtype)}
