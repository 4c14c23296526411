"""Settings that every test runs under, made before JAX starts."""

import getpass
import os
import pathlib
import re
import signal
import tempfile

# Two host devices, so that every sharded path really runs on more than one.
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import numpy as np
import pytest
from PIL import Image

import metakit as mk

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiled programs are most of the suite's time. They are kept for the other worker, for after a clearing (below), and
# for the next run, by what the program says; a folder of your own in JAX_COMPILATION_CACHE_DIR goes before.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update(
        "jax_compilation_cache_dir", str(pathlib.Path(tempfile.gettempdir()) / f"metakit-tests-{getpass.getuser()}")
    )
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so; the tests of Ctrl-C need one that arrives.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """The older of XLA's code generators compiles in half the time; `-m optimised` keeps the one that users have.

    Set before any program is compiled, when XLA reads its flags, which is once. JAX 0.12 has no such flag, and XLA ends
    the process at a flag that it does not know.
    """
    as_users_have_it = re.search(r"(?<!not )\boptimised\b", config.option.markexpr)
    if not as_users_have_it and jax.__version_info__ < (0, 11):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    # Now, with two devices: the command line asks for as many as its run needs, which JAX hears before it starts.
    assert jax.device_count() == 2


def pytest_runtest_setup(item):
    """Most programs here run once, and optimising them was most of the suite's time.

    Tests of what the optimised program is (its memory, its collectives, its rounding), and those that run one for
    long, are marked `optimised`.
    """
    optimised = item.get_closest_marker("optimised") is not None
    if jax.config.read("jax_disable_most_optimizations") == optimised:
        jax.clear_caches()  # which hold programs without regard to it
        jax.config.update("jax_disable_most_optimizations", not optimised)


def _test_data() -> pathlib.Path:
    named = os.environ.get("METAKIT_TEST_DATA")
    return pathlib.Path(named) if named else pathlib.Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def omniglot_dir() -> pathlib.Path:
    """The folder with Omniglot's two released zips; tests that need it are skipped, saying so, where it is absent."""
    folder = _test_data() / "omniglot"
    if not (folder / "images_background.zip").exists():
        pytest.skip(f"needs Omniglot's zips in {folder}; set METAKIT_TEST_DATA to the folder that holds omniglot/")
    return folder


@pytest.fixture(scope="session")
def linear_run(tmp_path_factory) -> pathlib.Path:
    """The folder of a finished run: MAML on lines, four steps, in 32 bits as users have them."""
    recipe, folder = mk.recipes.find("maml"), tmp_path_factory.mktemp("runs") / "linear"
    with jax.enable_x64(False):
        experiment = recipe.build(recipe.settle({"data": "linear"}, smoke=True))
        assert mk.experiments.run(experiment, folder, quiet=True).finished
    return folder


@pytest.fixture(scope="session")
def drawings(tmp_path_factory) -> pathlib.Path:
    """A folder for each of 20 classes, of noise around a picture of its own."""
    root, random = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    for name in range(20):
        (root / f"class{name:02d}").mkdir()
        picture = random.integers(0, 200, (28, 28))
        for number in range(4):
            noisy = (picture + random.integers(0, 50, picture.shape)).astype(np.uint8)
            Image.fromarray(noisy).save(root / f"class{name:02d}" / f"{number}.png")
    return root


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


_TESTS_BETWEEN_CLEARINGS = 25
_tests_run = 0


@pytest.fixture(autouse=True)
def _compiled_programs_are_dropped_now_and_then():
    """Each compiled program holds memory maps: 240 a contract test, and Linux kills a process with 65,530."""
    global _tests_run
    yield
    _tests_run += 1
    if _tests_run % _TESTS_BETWEEN_CLEARINGS == 0:
        jax.clear_caches()
