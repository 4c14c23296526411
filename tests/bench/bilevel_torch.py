"""The PyTorch side of the bilevel figures: `python -m tests.bench.bilevel_torch`, the loop that users write.

It runs in an environment with torch and numpy and without metakit.
"""

import numpy as np
import torch

from .bilevel_problem import FULL, SMALL, numbers
from .serving import peak_bytes, serve, timed_calls


class Answers:
    def load(self, small, num_steps, dtype):
        self.size = SMALL if small else FULL
        self.num_steps = num_steps
        values = {name: torch.from_numpy(value) for name, value in numbers(self.size, dtype).items()}
        self.weights = [v.requires_grad_() for name, v in values.items() if name[0] in "wb"]
        self.data = {name: v for name, v in values.items() if name[0] not in "wb"}
        self.decay = torch.tensor(self.size.decay, dtype=self.weights[0].dtype, requires_grad=True)

    def network(self, weights, x):
        for i in range(0, len(weights), 2):
            x = x @ weights[i] + weights[i + 1]
            x = torch.tanh(x) if i + 2 < len(weights) else x
        return x

    def error(self, weights, part):
        return ((self.network(weights, self.data[f"{part}_x"]) - self.data[f"{part}_y"]) ** 2).mean()

    def gradient(self):
        weights = self.weights
        for _ in range(self.num_steps):
            loss = self.error(weights, "train") + self.decay * sum((w**2).sum() for w in weights)
            slopes = torch.autograd.grad(loss, weights, create_graph=True)
            weights = [w - self.size.rate * g for w, g in zip(weights, slopes, strict=True)]
        return torch.autograd.grad(self.error(weights, "valid"), [*self.weights, self.decay])

    def check(self, into):
        np.savez(into, *(g.numpy() for g in self.gradient()))

    def call(self):
        self.gradient()
        return 1

    def time(self, seconds, most):
        return timed_calls(self.call, seconds=seconds, most=most)

    def memory(self):
        before = peak_bytes()
        self.call()
        return {"before": before, "peak": peak_bytes()}

    def hello(self):
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    answers = Answers()
    serve({name: getattr(answers, name) for name in ("load", "check", "time", "memory", "hello")})
