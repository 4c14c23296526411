"""Recipes: one file an algorithm, each a function with typed, published options that returns an `Experiment`.

`mk.recipes.maml(data="omniglot", way=20)` calls one. A file `_name.py` of this folder that holds a function `name` is a
recipe; nothing else has to be told. `parts/` is what they are made of.
"""

from .parts import (
    Option as Option,
    OptionError as OptionError,
    Recipe as Recipe,
    RecipeError as RecipeError,
    choose as choose,
    evaluation as evaluation,
    find as find,
    in_options as in_options,
    names as names,
    offer as offer,
    open_run as open_run,
    option as option,
    recipe as recipe,
    recipe_of as recipe_of,
    resumed as resumed,
    seeds as seeds,
    start_from as start_from,
    test_options as test_options,
)


def __getattr__(name: str) -> Recipe:
    if name.replace("_", "-") in names():
        return find(name.replace("_", "-"))
    raise AttributeError(f"module {__name__!r} has no recipe {name!r}. It has {', '.join(names())}.")


def __dir__() -> list[str]:
    return sorted([*globals(), *(name.replace("-", "_") for name in names())])
