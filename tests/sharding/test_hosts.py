"""Two processes on one machine, as two hosts would be."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
from small_maml import by_hand, make_keys, make_learner, make_tasks

HOST = """
import sys, jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import equinox as eqx
from small_maml import *
from metakit.sharding import meta_gradient, replicate, shard_tasks, task_mesh
assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
mesh = task_mesh()
learner = replicate(make_learner(), mesh)
tasks, keys = shard_tasks((make_tasks(8), make_keys(8)), mesh)
result = eqx.filter_jit(meta_gradient)(ALGORITHM, learner, tasks, keys, mesh=mesh)
assert len(result.losses.addressable_shards) == 2
print(result.loss.item().hex(), *[x.hex() for x in result.gradient["weights"].ravel().tolist()])
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_equal_one():
    """Catches a mesh that sees only local devices, and a mean over the tasks of one host."""
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(index)],
            cwd=pathlib.Path(__file__).parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [host.communicate(timeout=240) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    loss, gradient, _ = by_hand(make_learner(), make_tasks(8), make_keys(8))
    for host, (out, err) in zip(hosts, outputs, strict=True):
        assert host.returncode == 0, err
        numbers = [float.fromhex(number) for number in out.splitlines()[-1].split()]  # gloo prints above
        np.testing.assert_allclose(numbers, [loss, *gradient["weights"].ravel()], rtol=1e-12)
