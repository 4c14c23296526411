"""Our end of a worker: start it, ask it, end it."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


class WorkerError(RuntimeError):
    """A worker could not answer; the message holds what it said."""


class Worker:
    """One process that answers questions. Use it in a `with` statement."""

    def __init__(self, python: str, module: str, environment: Mapping[str, str], *arguments: str):
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [python, "-m", f"tests.bench.{module}", *arguments],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def ask(self, ask: str, **request: Any) -> Any:
        """The answer to a question; whatever the worker raised, as a `WorkerError`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"ask": ask, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._stderr.seek(0)
            raise WorkerError(f"a worker ended with status {status}: {self._stderr.read()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        # communicate closes the input, which ends the worker's loop.
        try:
            self._process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def jax_worker(side: str, *, devices: int = 1, float64: bool = False, cache: pathlib.Path | None = None) -> Worker:
    """A worker of this environment.

    **Arguments:** `side`, "metakit" or "naive"; `devices`, host devices to make out of a CPU, and to spread tasks over;
    `cache`, a folder for compiled programs, as the command line of metakit keeps one.
    """
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    flags = [f for f in environment.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
    if devices > 1:  # without effect on other platforms, which have the devices that they have
        flags.append(f"--xla_force_host_platform_device_count={devices}")
    environment |= {
        "XLA_FLAGS": " ".join(flags),
        "JAX_ENABLE_X64": str(int(float64)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several workers share an accelerator
    }
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    return Worker(sys.executable, "jax_worker", environment, side, str(devices))


def torch_worker(python: str, mode: str, *, threads: int | None = None) -> Worker:
    """A worker of the peer's environment.

    **Arguments:** `mode`, see `torch_worker.py`; `threads`, `None` for PyTorch's own choice, which is what is timed.
    """
    environment = dict(os.environ) if threads is None else os.environ | {"OMP_NUM_THREADS": str(threads)}
    return Worker(python, "torch_worker", environment, mode)


def bilevel_worker(kind: str, *, python: str | None = None, x64: bool = False) -> Worker:
    """A worker of `tests.bench.bilevel`.

    **Arguments:** `kind`, "jax" or "torch"; `python`, the one for it; `x64`, whether JAX may have numbers of 64 bits.
    """
    environment = os.environ | {"JAX_ENABLE_X64": str(int(x64))}
    return Worker(python or sys.executable, f"bilevel_{kind}", environment)


def find_torch(python: str | None) -> str | None:
    """The Python for the peer, or `None` where there is no torch.

    **Arguments:** `python`, one that must have torch; `None` tries this one.

    **Raises:** `ValueError` where the Python that was named cannot import torch.
    """
    try:
        found = subprocess.run([python or sys.executable, "-c", "import torch"], capture_output=True, text=True)
        problem = found.stderr.strip().splitlines()[-1:] if found.returncode else []
    except OSError as error:
        problem = [str(error)]
    if not problem:
        return python or sys.executable
    if python is not None:
        raise ValueError(f"--peer-python {python} cannot import torch ({problem[0]}). Leave it out to run without.")
    return None
