"""Command lines from dataclasses and from the signatures of recipes, by tyro."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro

from metakit.recipes import OptionError, Recipe, option

T = TypeVar("T")
_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
_COMMON = "Every command also has --traceback, and --no-compilation-cache."


def parse(kind: type[T], words: Sequence[str], prog: str) -> T:
    """The options of a command; tyro shows help and mistakes and leaves."""
    description = f"{kind.__doc__}\n\n{_COMMON}"
    return tyro.cli(kind, args=list(words), prog=f"metakit {prog}", description=description, config=_CONFIG)


def value_of(name: str, words: Sequence[str]) -> str | None:
    """The value of an option among words that are not yet parsed."""
    for i, word in enumerate(words):
        head, equals, tail = word.partition("=")
        if head.replace("_", "-") == option(name):
            return tail if equals else (words[i + 1] if i + 1 < len(words) else None)
    return None


def is_given(name: str, words: Sequence[str]) -> bool:
    """Whether an option stands among the words."""
    return any(word.partition("=")[0].replace("_", "-") == option(name) for word in words)


def check_known(words: Sequence[str], known: Iterable[str], whose: str, prog: str) -> None:
    """Refuse an option that is none of those known, and name the nearest."""
    there = [option(name) for name in known]
    for word in words:
        head = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and head not in (*there, "--help"):
            closest = difflib.get_close_matches(head, there, n=1, cutoff=0.0)[0]
            raise OptionError(f"{whose} has no option {head}. The nearest is {closest}; see metakit {prog} --help.")


def parse_recipe(
    recipe: Recipe, general: type[T], words: Sequence[str], prog: str, *, data: str | None
) -> tuple[T, dict[str, Any]]:
    """The general options of a command, and those of the recipe that were given."""
    known = (*vars(general()), *recipe.options(data))
    check_known(words, known, recipe.name if data is None else f"{recipe.name} on {data}", prog)
    fields: list[tuple[str, Any, Any]] = [("general", general, general())]
    for name, group in recipe.groups(data).items():
        if dataclasses.is_dataclass(group):
            one = _with_all_data(group, recipe.data)
            fields.append((name, type(one), one))
        elif group is not None or name in recipe.options(data):
            fields.append((name, recipe.annotation(name), group))
    form = dataclasses.make_dataclass(
        recipe.name, [(name, kind, dataclasses.field(default=default)) for name, kind, default in fields], frozen=True
    )
    about = f"{recipe.about}\n\n{_of_data(recipe, data)}{_COMMON}"
    parsed = tyro.cli(form, args=list(words), prog=f"metakit {prog}", description=about, config=_CONFIG)
    values: dict[str, Any] = {}
    for name, _, default in fields[1:]:
        value = getattr(parsed, name)
        group = dataclasses.is_dataclass(default)
        values |= (
            {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init} if group else {name: value}
        )
    return parsed.general, {name: value for name, value in values.items() if is_given(name, words)}


def _of_data(recipe: Recipe, data: str | None) -> str:
    if len(recipe.data) < 2:
        return ""
    return f"The defaults are those for {data or recipe.data[0]}; --data NAME --help shows those for NAME.\n\n"


def _with_all_data(group: Any, data: Sequence[str]) -> Any:
    """The group that stands for one data set, with an option that names them all."""
    hints = typing.get_type_hints(type(group), include_extras=True)
    if typing.get_origin(hints.get("data")) is not Literal:
        return group
    about = "What to train on. " + (type(group).__doc__ or "").split("\n")[0]
    kind = Annotated[Literal[tuple(data)], tyro.conf.arg(help=about)]
    wider = dataclasses.make_dataclass(
        type(group).__name__,
        [("data", kind, dataclasses.field(default=group.data))],
        bases=(type(group),),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": type(group).__doc__},
    )
    return wider(**{f.name: getattr(group, f.name) for f in dataclasses.fields(group) if f.init})
