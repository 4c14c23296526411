"""The examples of bilevel problems run, at a size that shows no figure, and one at its own."""

import importlib
import pathlib
import sys

import jax
import numpy as np
import pytest

import metakit as mk

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def example(name):
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(autouse=True)
def as_users_run_them():
    """optax's Adam takes a float to an integer power, which the strict promotion of the other tests refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def noise(monkeypatch):
    """Images of noise in place of Glyphs, whose drawing would take most of the time."""

    def glyphs(part, *, drawers=20, size=28):
        rng = np.random.default_rng({"train": 0, "test": 1}[part])
        return mk.tasks.ImagePool(rng.integers(0, 256, (20, drawers, 1, size, size), dtype=np.uint8))

    monkeypatch.setattr(mk.tasks, "glyphs", glyphs)


def test_data_cleaning_runs(noise, tmp_path):
    """Catches an example that an interface moved away from."""
    with jax.enable_x64(False):
        result = example("data_cleaning").main(tmp_path / "picture.png", way=3, steps=6, hyper_steps=2)
    assert all(0 <= value <= 1 for value in result.values())
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.optimised
def test_data_cleaning_finds_the_wrong_labels():
    """Catches weights that do not find what is wrong: the figure of the documentation, 0.88, with room for another
    CPU's rounding; one label in two is wrong, so calling all of them wrong would score 0.67."""
    with jax.enable_x64(False):
        result = example("data_cleaning").main(None)
    assert result["F1 of the wrong labels found"] > 0.85
    assert result["test accuracy, cleaned"] > result["trained on everything"] + 0.03


@pytest.mark.slow
def test_learned_schedule_runs(noise, tmp_path):
    """Catches an example that an interface moved away from, and one whose network is no longer float32."""
    result = example("learned_schedule").main(tmp_path / "picture.png", steps=4, hyper_steps=2, tests=1)
    assert all(np.isfinite(value) for value in result.values())
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.slow
def test_hyper_representation_runs(noise, tmp_path):
    """Catches an example that an interface moved away from."""
    with jax.enable_x64(False):
        result = example("hyper_representation").main(tmp_path / "picture.png", hyper_steps=20, width=4, num_tasks=4)
    assert all(0 <= interval.mean <= 1 for interval in result.values())
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.optimised
def test_long_loop_runs(tmp_path):
    """Catches an example that an interface moved away from, and memory that grows with the steps."""
    result = example("long_loop").main(tmp_path / "picture.png", steps=200, hyper_steps=1)
    assert result["Forward: MiB at 200 steps"] == result["Forward: MiB at 2 steps"]
    assert result["Reversible: MiB at 200 steps"] < 0.5 * result["Unrolled: MiB at 200 steps"]
    assert (tmp_path / "picture.png").stat().st_size > 1000
