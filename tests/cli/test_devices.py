"""What the command asks of JAX: devices for the cores of a CPU, and a cache of compiled programs."""

import os
import subprocess
import sys

import jax
import pytest

from metakit.cli import _devices


@pytest.mark.parametrize(
    ("cores", "meta_batch", "platform", "expected"),
    [(2, 8, "cpu", 2), (2, 7, "cpu", 1), (1, 8, "cpu", 1), (16, 7, "cpu", 1), (2, 8, "gpu", 1)],
)
def test_as_many_as_divide_the_tasks(monkeypatch, cores, meta_batch, platform, expected):
    """Catches devices that cannot share the tasks evenly, more of them than JAX shows, and cores counted on a GPU."""
    offered = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(_devices, "offer", offered.append)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert _devices.every_core(meta_batch) == expected
    assert len(offered) == 1
    assert meta_batch % offered[0] == 0


def test_the_command_leaves_the_number_of_devices_open():
    """Catches a module of the command that computes when it is imported: JAX shows a CPU as one device ever after."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    program = "import metakit.cli as cli, jax; cli._train.offer(3); print(jax.device_count())"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("switch", [[], ["--no-compilation-cache"]])
def test_compiled_programs_are_kept_unless_told_otherwise(tmp_path, switch):
    """Catches a second run of a command that compiles everything again, and a switch without effect."""
    command = ["train", "maml", "--data", "linear", "--smoke", "--run", str(tmp_path / "run"), *switch]
    environment = os.environ | {"METAKIT_CACHE": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    program = f"import sys; from metakit.cli import main; sys.exit(main({command}))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = list((tmp_path / "cache").glob("compiled/*"))
    assert bool(kept) == (not switch)
