"""Recipes by name: metakit's own, and those of a user's file or module."""

import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import sys
from types import ModuleType

from metakit._errors import nearest

from ._option_error import OptionError
from ._recipe import Recipe, RecipeError

_PACKAGE = __name__.rpartition(".parts.")[0]


def names() -> tuple[str, ...]:
    """The names of metakit's own recipes: each is a file of `metakit/recipes`.

    **Returns:** them, sorted.

    >>> "maml" in names()
    True
    """
    folder = pathlib.Path(__file__).parents[1]
    modules = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return tuple(sorted(name[1:].replace("_", "-") for name in modules if name.startswith("_")))


def find(name: str) -> Recipe:
    """A recipe by its name.

    **Arguments:** `name`: one of `names()`, `"file.py:function"`, or `"package.module:function"`.

    **Returns:** a `Recipe`.

    **Raises:** `OptionError` for a name that is not known; `RecipeError` for a file, module or function that is not
    there, cannot be imported, or is no recipe.

    >>> find("maml").about
    'MAML, second order (Finn et al. 2017)'
    """
    if ":" not in name:
        if name.endswith(".py"):
            raise RecipeError(f"{name} names no function. Write {name}:recipe, with the function's name.")
        if name not in names():
            raise OptionError(f"the algorithm {name!r} is not known. {nearest(name, names())}")
        identifier = name.replace("-", "_")
        return getattr(importlib.import_module(f"{_PACKAGE}._{identifier}"), identifier)
    place, _, function = name.rpartition(":")
    module = _from_file(place) if place.endswith(".py") else _from_module(place)
    found = getattr(module, function, None)
    if found is None:
        there = [n for n, value in vars(module).items() if _is_candidate(value, module)]
        raise RecipeError(f"{place} holds no {function!r}. {nearest(function, there) if there else 'It has none.'}")
    if isinstance(found, Recipe):
        return Recipe(found.function, found.about, found.published, name=name, digest=_digest(module))
    if not inspect.isfunction(found):
        raise RecipeError(f"{name} is no function, so it is no recipe. A recipe returns an mk.Experiment.")
    return Recipe(found, name=name, digest=_digest(module))


def _is_candidate(value: object, module: ModuleType) -> bool:
    return isinstance(value, Recipe) or (inspect.isfunction(value) and value.__module__ == module.__name__)


def _digest(module: ModuleType) -> str:
    assert module.__file__ is not None
    return hashlib.sha256(pathlib.Path(module.__file__).read_bytes()).hexdigest()


def _from_file(place: str) -> ModuleType:
    path = pathlib.Path(place).expanduser()
    if not path.is_file():
        raise RecipeError(f"there is no file {place} (looked for in {pathlib.Path.cwd()}).")
    # Under a name of its own, so that no module of the same name is taken for it.
    name = f"_recipe_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    # What stands beside the file can be imported, as when it is run.
    beside = str(path.resolve().parent)
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(beside)
    return module


def _from_module(place: str) -> ModuleType:
    here = str(pathlib.Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and place.startswith(error.name):
            raise RecipeError(f"there is no module {place}. Install it, or name a file: my_file.py:recipe.") from error
        raise RecipeError(f"{place} cannot be imported: {error}") from error
    except Exception as error:
        raise RecipeError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
