"""Recipes: functions with typed options that return an experiment."""

import dataclasses
import functools
import inspect
import pathlib
import shlex
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, get_args, get_origin

from metakit._errors import nearest
from metakit._wording import describe
from metakit.experiments import Experiment, Origin

from ._markers import Held, InTest
from ._option_error import OptionError, option
from ._recall import Recall
from ._refusals import as_options

# What --smoke takes of a recipe that has no options for it.
FEW = {"steps": 4, "validate_every": 2, "validation_tasks": 8, "test_tasks": 20, "meta_batch": 2}


class RecipeError(ValueError):
    """A function is no recipe, or failed as one.

    **Arguments:** a message that names the function and says what to try.
    """


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a recipe.

    **Arguments:** `name`; `kind`, its type; `default`; `in_test`, its name in an evaluation, `None` where that cannot
    choose it anew; `held`, whether the learner holds its number, so that a start from another run must have the same.

    >>> Option("way", int, 5, None, False).default
    5
    """

    name: str
    kind: Any
    default: Any
    in_test: str | None
    held: bool


class Recipe:
    """A function with typed options that returns an `Experiment`.

    Its parameters are plain options (numbers, words, paths), or dataclasses whose fields are options that belong
    together; names of options are unique. A parameter may be a union of dataclasses: the one whose `data` field, or
    whose `OF`, names the data that was chosen is taken, and `None` where none does and the union allows it.

    Call it with any options by name: `mk.recipes.maml(data="omniglot", way=20)`. What is left out has the default that
    was published for that data.

    **Arguments:**

    - `function`: returns an `Experiment`. Each parameter has a type and a default.
    - `about`: itself in a few words; default the first line of the function's docstring.
    - `published`: for each data set the options whose defaults differ from those in the signature.
    - `name`: as on the command line; default the function's, with hyphens.
    - `digest`: of the file that holds it, for a recipe of a user's.

    **Raises:** `RecipeError` for a parameter without a type or a default; a call raises `OptionError` for options that
    it has not or that do not fit, and `RecipeError` where the function fails or returns something else.

    >>> import metakit as mk
    >>> mk.recipes.find("maml").settle({"data": "linear"})["steps"]
    15000
    """

    def __init__(
        self,
        function: Callable[..., Experiment],
        about: str = "",
        published: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        name: str | None = None,
        digest: str | None = None,
    ):
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name or function.__name__.replace("_", "-")
        self.about = about or (inspect.getdoc(function) or "").split("\n")[0] or self.name
        self.published = published or {}
        self.digest = digest
        self.parameters = _parameters(function, self.name)

    def __call__(self, **given: Any) -> Experiment:
        return self.build(self.settle(given))

    def __repr__(self) -> str:
        return f"<recipe {self.name}: {self.about}>"

    @property
    def data(self) -> tuple[str, ...]:
        """The data that it trains on, the default first; empty where it has no such option."""
        found = []
        for kinds, _ in self.parameters.values():
            for kind in kinds:
                found += _takes(kind)
        return tuple(dict.fromkeys(found))

    def groups(self, data: str | None = None) -> dict[str, Any]:
        """By parameter its default: an instance of a dataclass, a plain value, or `None`."""
        if self.data:
            data = self.data[0] if data is None else data
            if data not in self.data:
                raise OptionError(f"{self.name} does not train on --data {data}. {nearest(data, self.data)}")
        found = {}
        for name, (kinds, default) in self.parameters.items():
            groups = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
            if not groups:
                found[name] = default
                continue
            fitting = [kind for kind in groups if data is None or not _of(kind) or data in _of(kind)]
            if not fitting:
                found[name] = None
            elif type(default) is fitting[0]:
                found[name] = default
            else:
                found[name] = fitting[0]
        published = dict(self.published.get(data or "", {}))
        if self.data:
            published["data"] = data
        for name, group in found.items():
            if group is None or not _is_group(group):
                found[name] = published.get(name, group)
                continue
            mine = {f.name: published[f.name] for f in _fields(group) if f.name in published}
            found[name] = group(**mine) if isinstance(group, type) else dataclasses.replace(group, **mine)
        return found

    def options(self, data: str | None = None) -> dict[str, Option]:
        """All options for that data, by name."""
        found = {}
        for name, group in self.groups(data).items():
            if _is_group(group):
                kinds = typing.get_type_hints(type(group), include_extras=True)
                options = [_option(f.name, kinds[f.name], getattr(group, f.name)) for f in _fields(group)]
            elif group is None and _is_group_parameter(self.parameters[name][0]):
                options = []
            else:
                options = [_option(name, self.annotation(name), group)]
            found |= {one.name: one for one in options}
        return found

    def annotation(self, name: str) -> Any:
        """The type of a parameter, with its marks."""
        return typing.get_type_hints(self.function, include_extras=True)[name]

    def settle(self, given: Mapping[str, Any], *, smoke: bool = False) -> dict[str, Any]:
        """All options: those given, and for the others the defaults, as JSON values.

        `smoke` takes a few steps and tasks only, where nothing else was given."""
        known = self.options(given.get("data"))
        for name in given:
            if name not in known:
                raise OptionError(f"{self.name} has no option {option(name)}. {nearest(name, known)}")
        values = {name: one.default for name, one in known.items()}
        groups = self.groups(given.get("data")).values()
        if smoke:
            values |= {name: count for name, count in FEW.items() if name in values}
            if FEW.keys() - values.keys():
                values["smoke"] = True
            if "steps" in values and "validate_every" in values:
                values["validate_every"] = max(int(given.get("steps", values["steps"])) // 2, 1)
        values |= given
        for group in groups:
            if hasattr(group, "settled"):
                values = group.settled(values, given)
        return {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in values.items()}

    def build(self, values: Mapping[str, Any], *, recall: Recall | None = None) -> Experiment:
        """The experiment of all options; with `recall` on the classes that a run has recorded."""
        arguments = {}
        for name, group in self.groups(values.get("data")).items():
            if not _is_group(group):
                arguments[name] = values.get(name, group)
                continue
            kinds = typing.get_type_hints(type(group))
            mine = {f.name: _restored(values[f.name], kinds[f.name]) for f in _fields(group)}
            one = dataclasses.replace(group, **mine)
            arguments[name] = one.recalling(recall) if recall is not None and hasattr(one, "recalling") else one
        experiment = self._called(arguments)
        if values.get("smoke"):
            few = {name: count for name, count in FEW.items() if name not in values}
            experiment = dataclasses.replace(experiment, **few)
        origin = Origin(self.name, dict(values), self.command(values), self.digest)
        return dataclasses.replace(experiment, origin=origin)

    def _called(self, arguments: dict[str, Any]) -> Experiment:
        if self.digest is None:
            with as_options():
                return self.function(**arguments)
        try:
            experiment = self.function(**arguments)
        except OptionError:
            raise
        except Exception as error:
            raise RecipeError(f"the recipe {self.name} raised {type(error).__name__}: {error}") from error
        if not isinstance(experiment, Experiment):
            raise RecipeError(
                f"the recipe {self.name} must return an mk.Experiment, got {describe(experiment)}. End it with "
                "return mk.Experiment(...)."
            )
        return experiment

    def command(self, values: Mapping[str, Any]) -> str:
        """The command that makes the same run: what differs from the defaults."""
        words = ["metakit", "train", self.name]
        data = values.get("data")
        if self.data and data != self.data[0]:
            words += ["--data", str(data)]
        known = self.options(data)
        for name, value in values.items():
            usual = known[name].default if name in known else None
            # How many cores there are is not a default's to say.
            if name != "data" and (value != usual and not (name == "devices" and value == 1)):
                words += [option(name)] if value is True else [option(name), str(value)]
        return shlex.join(words)


def recipe(about: str, **published: Mapping[str, Any]) -> Callable[[Callable[..., Experiment]], Recipe]:
    """Make a recipe of a function; see `Recipe`.

    **Arguments:** `about`, the recipe in a few words; for each data set whose defaults differ from those of the
    signature, a mapping of options under its name.

    **Returns:** a decorator.

    >>> @recipe("mine")
    ... def mine(steps: int = 3) -> Experiment: ...
    >>> mine.options()["steps"].default
    3
    """
    return lambda function: Recipe(function, about, published)


def _parameters(function: Callable[..., Any], name: str) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """By parameter its types, more than one for a union, and its default."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise RecipeError(f"the recipe {name} has an annotation that cannot be read: {error}.") from error
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RecipeError(f"the recipe {name} takes *{parameter.name}; name each option, with its type.")
        if parameter.name not in hints:
            raise RecipeError(
                f"the parameter {parameter.name!r} of the recipe {name} has no type, so the command line cannot read "
                f"it. Write {parameter.name}: int = ..., or another type."
            )
        if parameter.default is parameter.empty:
            raise RecipeError(f"the parameter {parameter.name!r} of the recipe {name} has no default. Give it one.")
        kind = hints[parameter.name]
        union = get_origin(kind) in (typing.Union, types.UnionType)
        kinds = tuple(k for k in get_args(kind) if k is not type(None)) if union else (kind,)
        found[parameter.name] = (kinds, parameter.default)
    return found


def _is_group(value: Any) -> bool:
    return dataclasses.is_dataclass(value)


def _is_group_parameter(kinds: Collection[Any]) -> bool:
    return any(dataclasses.is_dataclass(kind) for kind in kinds)


def _fields(group: Any) -> list[Any]:
    return [field for field in dataclasses.fields(group) if field.init]


def _takes(kind: Any) -> tuple[str, ...]:
    """The data that a group stands for."""
    if not dataclasses.is_dataclass(kind):
        return ()
    data = typing.get_type_hints(kind).get("data")
    return tuple(get_args(data)) if get_origin(data) is typing.Literal else ()


def _of(kind: Any) -> tuple[str, ...]:
    """The data that a group goes with; empty for all."""
    return _takes(kind) or getattr(kind, "OF", ())


def _option(name: str, annotation: Any, default: Any) -> Option:
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    in_test = next((mark.name for mark in marks if isinstance(mark, InTest)), None)
    kind = get_args(annotation)[0] if marks else annotation
    return Option(name, kind, default, in_test, any(isinstance(mark, Held) for mark in marks))


def _restored(value: Any, kind: Any) -> Any:
    """A value of JSON, or of a user's, as what it stands for: paths are words, and whole numbers numbers."""
    kinds = get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return pathlib.Path(value) if isinstance(value, str) and pathlib.Path in kinds else value
