"""metakit: meta-learning as three pure functions, for JAX.

A meta-learner is `adapt`, `predict` and `meta_loss` on one task; everything else composes them.
"""

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import experiments as experiments, recipes as recipes, testing as testing
    from ._public import *  # noqa: F403 - the public names once, for readers and for type checkers
    from .experiments import Experiment as Experiment
    from .recipes import open_run as open_run

__version__ = _version("metakit")

# Imported when asked for: `metakit --help` needs no JAX, and who composes functions needs no plots.
_LATER = {
    "experiments": "experiments",
    "recipes": "recipes",
    "testing": "testing",
    "Experiment": "experiments",
    "open_run": "recipes",
}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # asked for by tools; not worth importing JAX
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _LATER:
        module = importlib.import_module(f".{_LATER[name]}", __name__)
        value = module if name == _LATER[name] else getattr(module, name)
    else:
        public = importlib.import_module("._public", __name__)
        globals().update({key: value for key, value in vars(public).items() if not key.startswith("_")})
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    public = importlib.import_module("._public", __name__)
    return sorted({*(name for name in vars(public) if not name.startswith("_")), *_LATER, "__version__"})
