"""Imports go down the layers only, private things stay private, files stay small: read from the source."""

import ast
import pathlib
from typing import NamedTuple

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "metakit"

LAYERS = {
    0: {"_types", "_typecheck", "_wording", "_tree", "_static", "_hyperparameter", "_errors", "_compile", "random"},
    1: {"_episode", "_environment", "_algorithm", "_normal", "losses", "metrics"},
    2: {"inner", "nn", "rl", "tasks", "sharding"},
    3: {"learners", "bilevel", "combinators"},
    4: {"train", "evaluate"},
    5: {"experiments", "testing"},
    6: {"recipes"},
    7: {"cli"},
    8: {"__main__", "_public"},
}
LAYER_OF = {unit: layer for layer, units in LAYERS.items() for unit in units}

# What the numbers alone would let through.
FORBIDDEN = {
    ("learners", "tasks"): "a learner knows no data set",
    ("learners", "sharding"): "a learner sees one task",
    ("train", "learners"): "training receives an algorithm",
    ("evaluate", "learners"): "evaluation receives an algorithm",
}

# Slow to import, and not for everybody: these may wait for the function that needs them.
LATE = {"orbax.checkpoint", "scipy.special", "tensorboardX", "wandb", "safetensors.numpy"}

# 300 lines is the aim, 500 never.
LINES_AIM, LINES_NEVER = 300, 500


class Import(NamedTuple):
    line: int
    target: str  # absolute; `from .x import y` is package.x.y
    inside_function: bool


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source, name, is_package):
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {child for function in functions for child in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, node in inside)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))
            for alias in node.names:
                yield Import(node.lineno, f"{base}.{alias.name}", node in inside)


def is_private(part):
    return part.startswith("_") and not part.startswith("__")


def violations(source, name, is_package=False):
    """What is wrong with the imports of one module, as sentences."""
    found = []
    unit = name.split(".")[1] if "." in name else None
    for line, target, inside in imports_of(source, name, is_package):
        if inside and target not in LATE:
            found.append(f"{name}:{line} imports {target} inside a function; move it to the top")
        parts = target.split(".")
        if parts[0] != "metakit" or unit is None:
            continue
        other = parts[1] if len(parts) > 1 else None
        if other is None or other not in LAYER_OF:
            found.append(f"{name}:{line} imports {target}, which is the whole package or in no layer")
            continue
        if other != unit:
            mine, theirs = LAYER_OF[unit], LAYER_OF[other]
            sibling_ok = mine == theirs and mine <= 1  # the two lowest layers are single files that build on each other
            if theirs > mine or (theirs == mine and not sibling_ok):
                found.append(f"{name}:{line} (layer {mine}) imports {target} (layer {theirs})")
            if (unit, other) in FORBIDDEN:
                found.append(f"{name}:{line} imports {target}: {FORBIDDEN[unit, other]}")
            if any(map(is_private, parts[2:])):
                found.append(f"{name}:{line} imports {target}, which is private to {other}")
        elif unit == "learners":
            # Learners share private files of the layer, never each other.
            mine, theirs = name.split(".")[2:3], parts[2:3]
            if mine and theirs and mine != theirs and not is_private(theirs[0]):
                found.append(f"{name}:{line} imports {target}: learners do not import each other")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_imports_of_a_file(path):
    """Catches a cycle in the making: a learner that knows a data set, training that knows a learner."""
    found = violations(path.read_text(), module_name(path), path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_every_unit_has_a_layer():
    """Catches a new package that the table forgets, which would then be free to import anything."""
    units = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert units <= set(LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_files_stay_small(path):
    """Catches a file that grows past reading in one go."""
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_NEVER, f"{path.name} has {lines} lines; {LINES_AIM} is the aim, {LINES_NEVER} never"


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("metakit.inner._x", "from ..learners import maml", "layer 3"),
        ("metakit.inner._x", "from .. import nn", "layer 2"),
        ("metakit.nn._x", "from metakit import inner", "layer 2"),
        ("metakit.learners.maml._x", "from ...tasks import Sinusoid", "no data set"),
        ("metakit.learners.maml._x", "from .. import matching", "each other"),
        ("metakit.learners.maml._x", "from ..prototypical import adapt", "each other"),
        ("metakit.train._x", "from ..learners import maml", "receives an algorithm"),
        ("metakit.train._x", "from ..evaluate import scores", "layer 4"),
        ("metakit.combinators._x", "from ..learners import maml", "layer 3"),
        ("metakit.testing._x", "from ..experiments import run", "layer 5"),
        ("metakit.train._x", "from ..testing import check", "layer 5"),
        ("metakit.train._x", "from ..sharding._mesh import task_mesh", "private to sharding"),
        ("metakit.losses", "from ._episode import _describe", "private to _episode"),
        ("metakit.train._x", "import metakit", "whole package"),
        ("metakit.cli._x", "def f():\n    import matplotlib", "inside a function"),
        ("metakit.losses", "from .inner import SGD", "layer 2"),
    ],
)
def test_the_rules_catch(module, source, message):
    """Catches a rule that never fires: each line above must be refused."""
    found = violations(source, module)
    assert len(found) >= 1
    assert any(message in sentence for sentence in found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("metakit.learners.maml._x", "from ...inner import SGD, select\nfrom ... import losses\nimport jax"),
        ("metakit.learners.matching", "from ._distances import cosine\nfrom .. import nn"),
        ("metakit.train._x", "from ..sharding import meta_gradient\nfrom .._tree import global_norm"),
        ("metakit.metrics", "from .losses import cross_entropy"),
        ("metakit.inner._x", "from ._solver import SGD"),
        (
            "metakit.cli._x",
            "from ..train import fit\nfrom ..learners import maml\nfrom ..tasks import Sinusoid",
        ),
    ],
)
def test_the_rules_allow(module, source):
    """Catches rules so strict that people switch them off."""
    assert violations(source, module) == []
