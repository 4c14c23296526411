"""What of a learner is no array, in words that are the same in every process."""

import dataclasses
import enum
import functools
import hashlib
import inspect
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import numpy as np

from metakit._static import Static

_PLAIN = (bool, int, float, complex, str, bytes, types.NoneType)


def static_parts(tree: Any) -> dict[str, str]:
    """The description of every part that is no JAX array, by its path.

    Never by an id or an address: a class and a function are their names, without the private modules on the way, so
    that moving one inside its package changes nothing; a function that a function made is its name and what it closes
    over. Two lambdas of one place are the same.
    """
    # None is left out, so that a field that a later version adds does not refuse what an earlier one wrote.
    return {path: words for path, words in _walk(tree, "", ()) if words != "None"}


def _walk(node: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    if eqx.is_array(node):
        return
    node = node.value if isinstance(node, Static) else node  # not a word of how a learner holds its functions
    if id(node) in above:
        yield path, "itself"
        return
    above = (*above, id(node))
    children = _children(node)
    yield path, _words(node)
    for name, child in children:
        yield from _walk(child, path + name, above)


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, (type, *_PLAIN)):
        return []
    if isinstance(node, functools.partial):  # eqx.Partial is a module
        return [(".func", node.func), (".args", node.args), (".keywords", node.keywords)]
    if dataclasses.is_dataclass(node):
        names = [field.name for field in dataclasses.fields(node)]
        return [(f".{name}", getattr(node, name)) for name in names if hasattr(node, name)]
    if isinstance(node, Mapping):
        return sorted((f"[{key!r}]", child) for key, child in node.items() if isinstance(key, _PLAIN))
    names = getattr(node, "_fields", None)  # of a named tuple
    if isinstance(node, tuple) and names is not None:
        return [(f".{name}", child) for name, child in zip(names, node, strict=True)]
    if isinstance(node, tuple | list):
        return [(f"[{index}]", child) for index, child in enumerate(node)]
    if inspect.ismethod(node):
        return [(".__self__", node.__self__)]
    if inspect.isfunction(node):
        return _closure(node)
    return []


def _closure(function: types.FunctionType) -> list[tuple[str, Any]]:
    """What a function closes over and cannot change: how `select.by_name("head.*")` differs from another."""
    own = inspect.unwrap(function)
    cells = zip(own.__code__.co_freevars, own.__closure__ or (), strict=True) if inspect.isfunction(own) else ()
    found = {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
    fixed = (*_PLAIN, tuple, types.FunctionType, type)
    return sorted((f".{name}", value) for name, value in found.items() if isinstance(value, fixed))


def _words(node: Any) -> str:
    if isinstance(node, enum.Enum):
        return f"{_name(type(node))}.{node.name}"
    if isinstance(node, _PLAIN):
        return repr(node)
    if isinstance(node, np.dtype):
        return str(node)
    if isinstance(node, np.ndarray | np.generic):
        digest = hashlib.sha256(np.ascontiguousarray(node).tobytes()).hexdigest()[:16]
        return f"numpy {node.dtype}{list(node.shape)} {digest}"
    if isinstance(node, types.ModuleType):
        return _public(node.__name__)
    if isinstance(node, set | frozenset):
        return f"{{{', '.join(sorted(map(_words, node)))}}}"
    return _name(node) if isinstance(node, type) or _is_function(node) else f"a {_name(type(node))}"


def _is_function(node: Any) -> bool:
    """Also what wraps one, such as `jax.jit` and `jax.custom_jvp`, and a ufunc."""
    return callable(node) and isinstance(getattr(node, "__name__", None), str)


def _name(thing: Any) -> str:
    name = getattr(thing, "__qualname__", thing.__name__)
    module = _public(getattr(thing, "__module__", None) or "")
    return f"{module}.{name}" if module else name


def _public(module: str) -> str:
    if module == "__main__":  # a script's own name, by which others import it
        main = sys.modules[module]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else pathlib.Path(file).stem if file else "main"
    return ".".join(part for part in module.split(".") if not part.startswith("_") and part != "builtins")
