"""A worker of the PyTorch sides: `python -m tests.bench.torch_worker loop|vmap|vmap_exact|plain|channels_last`.

It runs in an environment with torch and numpy and without metakit, so the workloads are written out here once more:
the code that PyTorch's users write, with `torch.autograd.grad(..., create_graph=True)` in a loop over tasks, or with
`torch.func`'s `vmap` and `grad` over all of them.
"""

import json
import math
import platform
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from .serving import peak_bytes, serve, timed_calls

RATE = 1e-3


class Task:
    """A workload's numbers by attribute, as the file has them."""

    def __init__(self, values):
        self.__dict__.update(values)


def written_norm(x, scale, bias):
    """Batch norm from primitives.

    Under `vmap`, `F.batch_norm` loses a term of its second derivative: the batching rule of its backward
    (https://github.com/pytorch/functorch/issues/534) takes the statistics for constants. In PyTorch 2.13 the
    meta-gradient of `omniglot_paper` is 0.6 % off, in float64.
    """
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * scale[None, :, None, None] + bias[None, :, None, None]


def fused_norm(x, scale, bias):
    return F.batch_norm(x, None, None, scale, bias, training=True)


def network(task, w, x, norm):
    if task.network == "mlp":
        for i in range(3):
            x = x @ w[f"linear{i}.weight"] + w[f"linear{i}.bias"]
            x = F.relu(x) if i < 2 else x
        return x
    for i in range(4):
        x = F.conv2d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"], stride=task.stride, padding=1)
        x = F.relu(norm(x, w[f"norm{i}.scale"], w[f"norm{i}.bias"]))
        if task.stride == 1:
            x = F.max_pool2d(x, 2)
    x = x.mean((2, 3)) if task.spatial_mean else x.flatten(1)
    return x @ w["head.weight"] + w["head.bias"]


class Maml:
    """MAML, by a loop over tasks or by `vmap`."""

    def __init__(self, task, weights, data, mode, device):
        self.task, self.vmap = task, mode.startswith("vmap")
        self.norm = written_norm if mode == "vmap_exact" else fused_norm
        self.names = list(weights)
        self.leaves = [w.requires_grad_() for w in weights.values()]
        self.data = tuple(data[k] for k in ("support_x", "support_y", "query_x", "query_y"))
        self.optimiser = torch.optim.Adam(self.leaves, RATE)
        self.device = device
        self.inner_loss = F.mse_loss if task.network == "mlp" else F.cross_entropy

    def loss(self, w, x, y):
        return self.inner_loss(network(self.task, w, x, self.norm), y)

    def task_loss(self, w, support_x, support_y, query_x, query_y):
        for _ in range(self.task.inner_steps):
            g = grad(self.loss)(w, support_x, support_y)
            w = {k: w[k] - self.task.inner_rate * g[k] for k in w}
        return self.loss(w, query_x, query_y)

    def adapted_query_loss(self, support_x, support_y, query_x, query_y):
        phi = dict(zip(self.names, self.leaves, strict=True))
        for _ in range(self.task.inner_steps):
            loss = self.loss(phi, support_x, support_y)
            gradient = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {k: v - self.task.inner_rate * g for (k, v), g in zip(phi.items(), gradient, strict=True)}
        return self.loss(phi, query_x, query_y)

    def sample(self):
        count, points, kind = self.task.tasks, self.task.shot + self.task.queries, {"device": self.device}
        amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, **kind)
        phase = math.pi * torch.rand(count, 1, 1, **kind)
        x = 10 * torch.rand(count, points, 1, **kind) - 5
        y = amplitude * torch.sin(x - phase)
        n = self.task.shot
        return x[:, :n], y[:, :n], x[:, n:], y[:, n:]

    def accumulate(self, data):
        self.optimiser.zero_grad()
        if self.vmap:
            detached = {k: v.detach() for k, v in zip(self.names, self.leaves, strict=True)}
            gradient = grad(lambda w: vmap(self.task_loss, (None, 0, 0, 0, 0))(w, *data).mean())(detached)
            for k, v in zip(self.names, self.leaves, strict=True):
                v.grad = gradient[k]
        else:
            for t in range(self.task.tasks):
                (self.adapted_query_loss(*(part[t] for part in data)) / self.task.tasks).backward()

    def step(self):
        self.accumulate(self.sample() if self.task.sampled else self.data)
        self.optimiser.step()
        return 1

    def check(self):
        self.accumulate(self.data)
        losses = [self.adapted_query_loss(*(part[t] for part in self.data)).item() for t in range(self.task.tasks)]
        return sum(losses) / len(losses), {k: v.grad for k, v in zip(self.names, self.leaves, strict=True)}


class Prototypical:
    """Prototypical Networks: a training step, or testing on episodes drawn from a pool."""

    def __init__(self, task, weights, data, mode, device):
        self.task, self.device = task, device
        channels, blocks = task.channels, []
        for _ in range(4):
            conv = torch.nn.Conv2d(channels, task.width, 3, padding=1)
            blocks.append(
                torch.nn.Sequential(conv, torch.nn.BatchNorm2d(task.width), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
            )
            channels = task.width
        self.net = torch.nn.Sequential(*blocks, torch.nn.Flatten()).to(device, weights["conv0.weight"].dtype)
        self.parameters = {}
        for i, block in enumerate(blocks):
            self.parameters |= {f"conv{i}.weight": block[0].weight, f"conv{i}.bias": block[0].bias}
            self.parameters |= {f"norm{i}.scale": block[1].weight, f"norm{i}.bias": block[1].bias}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        if mode == "channels_last":
            self.net = self.net.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.Adam(self.net.parameters(), RATE)
        self.x = torch.cat([data["support_x"][0], data["query_x"][0]])
        self.y = data["query_y"][0]
        self.pool = data.get("pool")

    def logits(self, x):
        z, task = self.net(x), self.task
        n = task.way * task.shot
        prototypes = z[:n].view(task.way, task.shot, -1).mean(1)
        return -((z[n:, None] - prototypes) ** 2).sum(-1)

    def step(self):
        if self.task.learner == "meta_test":
            return self.test()
        logits = self.logits(self.x)
        self.optimiser.zero_grad()
        F.cross_entropy(logits, self.y).backward()
        self.optimiser.step()
        return 1

    def test(self, episodes=20):
        """Accuracy of some episodes, one after another: draw, embed support and query together, compare."""
        task = self.task
        accuracies = []
        with torch.no_grad():
            for _ in range(min(episodes, task.steps_per_call)):
                classes = torch.randperm(len(self.pool), device=self.device)[: task.way]
                order = torch.rand(task.way, self.pool.shape[1], device=self.device).argsort(1)
                images = self.pool[classes[:, None], order[:, : task.shot + task.queries]].to(torch.float32) / 255
                x = torch.cat([images[:, : task.shot].flatten(0, 1), images[:, task.shot :].flatten(0, 1)])
                accuracies.append((self.logits(x).argmax(1) == self.y).float().mean())
            torch.stack(accuracies).tolist()
        return len(accuracies)

    def check(self):
        self.optimiser.zero_grad()
        loss = F.cross_entropy(self.logits(self.x), self.y)
        loss.backward()
        return loss.item(), {name: parameter.grad for name, parameter in self.parameters.items()}


class Answers:
    def __init__(self, mode):
        self.mode, self.side, self.path, self.device = mode, None, None, "cpu"

    def hello(self):
        return {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}

    def build(self, dtype):
        with np.load(self.path) as file:
            task = Task(json.loads(str(file["workload"])))
            groups = {"weights": {}, "data": {}}
            for name in file.files:
                if "/" in name:
                    group, leaf = name.split("/", 1)
                    value = torch.from_numpy(file[name])
                    value = value.to(dtype) if value.is_floating_point() else value
                    value = value.long() if value.dtype == torch.int32 else value  # labels
                    groups[group][leaf] = value.to(self.device)
        make = Maml if task.learner == "maml" else Prototypical
        return make(task, groups["weights"], groups["data"], self.mode, self.device)

    def load(self, path, device="cpu"):
        self.path, self.device = path, device
        torch.manual_seed(0)
        self.side = self.build(torch.float32)

    def call(self):
        steps = self.side.step()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return steps

    def first(self):
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            steps = self.call()
            seconds.append(time.perf_counter() - start)
        return {"first": seconds[0], "second": seconds[1], "per_step": seconds[1] / steps}

    def time(self, variant, seconds, most, warm=True):
        del variant  # several steps in one call are several calls here
        return timed_calls(self.call, seconds=seconds, most=most, warm=warm)

    def check(self, into, float64=False):
        side = self.build(torch.float64 if float64 else torch.float32)
        loss, gradient = side.check()
        np.savez(into, loss=loss, **{f"gradient/{name}": value.numpy(force=True) for name, value in gradient.items()})

    def peak_bytes(self):
        device = torch.cuda.max_memory_allocated() if self.device != "cpu" else None
        return {"process": peak_bytes(), "device": device}


def main():
    torch.backends.cudnn.allow_tf32 = False  # its convolutions' default; products are float32 by default
    answers = Answers(sys.argv[1])
    names = ("hello", "load", "first", "time", "check", "peak_bytes")
    serve({name: getattr(answers, name) for name in names})


if __name__ == "__main__":
    main()
