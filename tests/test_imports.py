"""`import metakit` is quick and leaves heavy libraries alone; the package is typed and knows its version."""

import functools
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

import metakit as mk

PROGRAM = """
import sys, time, jax, jax.numpy
start = time.{clock}()
import metakit
print(time.{clock}() - start)
print(*sys.modules)
"""


@functools.cache
def imported_modules():
    return run("perf_counter")[1]


def run(clock):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", PROGRAM.format(clock=clock)]
    seconds, modules = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout.splitlines()
    return float(seconds), set(modules.split())


def test_import_takes_less_than_a_second_and_a_half_beyond_jax():
    """Catches a heavy import. Processor time, since tests share the machine; on an idle one both agree."""
    seconds = sorted(run("process_time")[0] for _ in range(3))
    assert seconds[1] < 1.5, f"import metakit took {seconds} s"


@pytest.mark.parametrize("heavy", ["matplotlib", "tyro", "rich", "orbax.checkpoint", "scipy.special", "scipy.stats"])
def test_libraries_that_only_some_users_need_wait(heavy):
    """Catches an import that everybody pays for: scipy.stats alone takes 1.7 s, matplotlib.pyplot 1.0 s."""
    assert heavy not in imported_modules()


def test_the_package_is_marked_as_typed():
    """Catches a wheel whose types no type checker reads."""
    assert (pathlib.Path(mk.__file__).parent / "py.typed").exists()


def test_the_version_is_the_distributions():
    """Catches a second version number that is left behind at a release."""
    assert mk.__version__ == importlib.metadata.version("metakit")
    assert mk.__version__.count(".") == 2
