"""What recipes are made of: groups of options that belong together, and the steps that several recipes share."""

from ._choose import choose as choose
from ._curves import GaussianProcess as GaussianProcess, Lines as Lines, Points as Points
from ._devices import offer as offer
from ._evaluation import evaluation as evaluation, test_options as test_options
from ._find import find as find, names as names
from ._gradient import (
    GRADIENT as GRADIENT,
    ON_OTHER_DATA as ON_OTHER_DATA,
    adapted_at_length as adapted_at_length,
    gradient_based as gradient_based,
    image_network as image_network,
    with_test_steps as with_test_steps,
)
from ._images import (
    IMAGES as IMAGES,
    AnyWay as AnyWay,
    Folder as Folder,
    Glyphs as Glyphs,
    Omniglot as Omniglot,
    OneWay as OneWay,
    Parts as Parts,
    Pictures as Pictures,
)
from ._loops import (
    EVERY_CORE as EVERY_CORE,
    Adam as Adam,
    Budget as Budget,
    InnerLoop as InnerLoop,
    InnerSteps as InnerSteps,
)
from ._markers import HELD as HELD, Held as Held, InTest as InTest
from ._metric import (
    LONGER_ON_OMNIGLOT as LONGER_ON_OMNIGLOT,
    METRIC as METRIC,
    MORE_TASKS as MORE_TASKS,
    ON_FOLDER as ON_FOLDER,
    ON_OMNIGLOT as ON_OMNIGLOT,
    on_episodes as on_episodes,
)
from ._networks import embedding as embedding, published_norm as published_norm
from ._norms import NO_NORM as NO_NORM, Norm as Norm
from ._open import open_run as open_run, recalled as recalled, recipe_of as recipe_of
from ._option_error import (
    OptionError as OptionError,
    option as option,
    require_least as require_least,
    require_positive as require_positive,
)
from ._processes import CURVES as CURVES, neural_process_on_curves as neural_process_on_curves
from ._recall import Recall as Recall
from ._recipe import Option as Option, Recipe as Recipe, RecipeError as RecipeError, recipe as recipe
from ._refusals import as_options as as_options, in_options as in_options
from ._resume import resumed as resumed, seeds as seeds
from ._start import filled as filled, start_from as start_from
from ._two_players import against_a_generator as against_a_generator, two_players as two_players
