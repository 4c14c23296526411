"""The cores of a CPU as devices, so that each takes tasks of its own."""

import os

import jax


def offer(count: int) -> None:
    """Have JAX show a CPU as `count` devices; it listens only before its first computation.

    **Arguments:** `count` of devices.

    >>> offer(1)
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # too late: the devices are those that there are, and task_mesh says so if they are too few
        return


def every_core(meta_batch: int) -> int:
    """As many cores of this process as divide the tasks of a step; 1 where tasks run on no CPU.

    On two cores, a step of MAML's Omniglot network is 1.3 to 2.5 times as fast as with one device that both cores
    share: its convolutions are too small to be split well (docs/performance.md).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    count = max(n for n in range(1, min(cores, meta_batch) + 1) if meta_batch % n == 0)
    offer(count)
    return count if jax.default_backend() == "cpu" and jax.device_count() >= count else 1
