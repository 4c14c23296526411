"""Keep pytest from importing the worker whose imports this environment need not have."""

collect_ignore = ["torch_worker.py", "bilevel_torch.py"]
