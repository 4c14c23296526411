"""Tasks over devices and hosts: one mesh, one meta-gradient, one all-reduce.

Past one machine, call `jax.distributed.initialize()` on every host before anything else (it finds Slurm and
Kubernetes by itself); `task_mesh()` then spans the devices of all hosts, and nothing else changes.
"""

from ._equivalents import (
    meta_gradient_named as meta_gradient_named,
    meta_gradient_pmap as meta_gradient_pmap,
)
from ._gradient import MetaGradient as MetaGradient, meta_gradient as meta_gradient
from ._map import map_tasks as map_tasks
from ._mesh import (
    num_tasks as num_tasks,
    replicate as replicate,
    shard_tasks as shard_tasks,
    task_mesh as task_mesh,
)
