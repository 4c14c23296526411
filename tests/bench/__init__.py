"""Benchmarks: metakit against PyTorch and against plain JAX, on the same weights and the same data.

`python -m tests.bench` from the root of the repository runs everything, `python -m tests.bench.scaling` draws how time
and memory grow. A *side* (metakit, PyTorch's loop, ...) is one process that answers questions on its standard input;
the sides of a workload are timed in turns, so that whatever else the machine does falls on all of them.

| file | holds |
|---|---|
| `workloads.py` | what is measured: sizes, weights and data, the same numbers for every side |
| `flops.py` | the work that a step cannot do without |
| `serving.py`, `workers.py` | questions and answers between processes: the worker's end, and ours |
| `metakit_side.py`, `naive_side.py`, `jax_worker.py` | the JAX sides |
| `torch_worker.py` | the PyTorch sides; it runs in an environment without metakit |
| `measure.py`, `compare.py` | one workload: check the sides against each other, then time them |
| `targets.py`, `report.py` | the figures to reach; the table, for a terminal, as Markdown and as JSON |
| `scaling.py`, `pictures.py` | curves over tasks, inner steps, way and image size |
| `operations.py`, `maps.py` | where the time of a step goes, by kind of operation; both forms of a convolution |
| `bilevel.py`, `bilevel_*.py` | long inner loops: memory and time of every adjoint, beside PyTorch |
"""
