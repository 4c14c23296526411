"""How many devices a CPU is shown as."""

import os

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
