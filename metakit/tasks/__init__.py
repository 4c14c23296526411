from ._augment import TurnAndShift as TurnAndShift
from ._cache import CacheWriteError as CacheWriteError, cache_directory as cache_directory
from ._decode import DecodeError as DecodeError
from ._download import DownloadError as DownloadError, download as download
from ._episodes import Episodes as Episodes
from ._folder import image_folder as image_folder, is_image_file as is_image_file, read_image as read_image
from ._gaussian_process import (
    GaussianProcess as GaussianProcess,
    GaussianProcessCurves as GaussianProcessCurves,
    gp_kernel as gp_kernel,
    gp_posterior as gp_posterior,
)
from ._glyphs import glyphs as glyphs
from ._linear import (
    LinearPosterior as LinearPosterior,
    LinearRegression as LinearRegression,
    linear_bayes_excess as linear_bayes_excess,
    linear_one_step_excess as linear_one_step_excess,
    linear_one_step_rate as linear_one_step_rate,
    linear_posterior as linear_posterior,
)
from ._omniglot import omniglot as omniglot
from ._pool import (
    ImagePool as ImagePool,
    fingerprint as fingerprint,
    mirrored as mirrored,
    rotated as rotated,
    subset as subset,
)
from ._sequences import Sequences as Sequences
from ._sinusoid import (
    Sinusoid as Sinusoid,
    sinusoid_nonadaptive as sinusoid_nonadaptive,
    sinusoid_nonadaptive_mse as sinusoid_nonadaptive_mse,
    sinusoid_zero_mse as sinusoid_zero_mse,
)
from .environments import (
    Bandit as Bandit,
    Bandits as Bandits,
    GridWorld as GridWorld,
    GridWorlds as GridWorlds,
    GymnaxEnvironment as GymnaxEnvironment,
    GymnaxEnvironments as GymnaxEnvironments,
    Navigation as Navigation,
    Navigations as Navigations,
    TabularMDP as TabularMDP,
    TabularMDPs as TabularMDPs,
    bandit_optimal_value as bandit_optimal_value,
    navigation_greedy as navigation_greedy,
    optimal_values as optimal_values,
)
