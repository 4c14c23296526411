"""The documentation is complete, and its code runs."""

import importlib
import inspect
import pathlib
import re

import jax
import pytest

import metakit as mk

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
NAMESPACES = [
    "metakit",
    "metakit.losses",
    "metakit.metrics",
    "metakit.random",
    "metakit.inner",
    "metakit.inner.select",
    "metakit.nn",
    "metakit.rl",
    "metakit.tasks",
    "metakit.sharding",
    "metakit.maml",
    "metakit.mann",
    "metakit.matching",
    "metakit.prototypical",
    "metakit.snail",
    "metakit.reptile",
    "metakit.meta_lstm",
    "metakit.metagan",
    "metakit.neural_process",
    "metakit.statistician",
    "metakit.relation",
    "metakit.ridge",
    "metakit.versa",
    "metakit.rl_maml",
    "metakit.rl_squared",
    "metakit.train",
    "metakit.evaluate",
    "metakit.experiments",
    "metakit.recipes",
    "metakit.testing",
    "metakit.evaluate.baselines.nearest_neighbour",
    "metakit.evaluate.baselines.gradient_histograms",
]

# Public names that are defined beside their namespace instead of in it.
ALSO = {
    "metakit.matching": {"metakit.learners._context"},
    "metakit.prototypical": {"metakit.learners._prototypes"},
    "metakit.ridge": {"metakit.learners._closed_form"},
    "metakit.versa": {"metakit.learners._head_posterior"},
}


def namespace(path):
    module = mk
    for part in path.split(".")[1:]:
        module = getattr(module, part)
    return module


def public_names():
    for path in NAMESPACES:
        module = namespace(path)
        for name, value in vars(module).items():
            if name.startswith("_") or inspect.ismodule(value):
                continue
            home = getattr(value, "__module__", None) or ""
            if home == module.__name__ or home.startswith(f"{module.__name__}.") or home in ALSO.get(path, ()):
                yield f"{path}.{name}", value


PUBLIC = dict(public_names())


def test_every_public_name_stands_on_an_api_page():
    """Catches a name that users can reach and the site does not explain."""
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    missing = sorted(set(PUBLIC) - documented)
    assert not missing, f"add to docs/api: {missing}"


def test_every_api_entry_exists():
    """Catches a page that documents a name which was renamed."""
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    for entry in re.findall(r"^::: (\S+)", pages, re.MULTILINE):
        parent, name = entry.rsplit(".", 1)
        assert hasattr(namespace(parent), name), entry


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_docstring_explains_and_shows(name):
    """Catches a one-line docstring: each names its arguments (or fields) and has an example, which doctest runs."""
    value = PUBLIC[name]
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    doc = inspect.getdoc(value) or ""
    assert len(doc.splitlines()) > 2, f"{name} needs more than a line"
    abstract = inspect.isclass(value) and (inspect.isabstract(value) or getattr(value, "_is_protocol", False))
    if not abstract and not (inspect.isclass(value) and issubclass(value, Exception)):
        assert ">>>" in doc, f"{name} needs a short example"


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


PAGES = ["README.md", "docs/quick-start.md", "docs/bilevel.md", "docs/experiments.md", "docs/export.md"]


@pytest.mark.parametrize("page", [*PAGES, pytest.param("docs/api/learners.md", marks=pytest.mark.slow)])
def test_code_on_the_page_runs(page, tmp_path, monkeypatch):
    """Catches a first example that does not work when pasted."""
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "page"}
    blocks = python_blocks(ROOT / page)
    assert blocks
    with jax.enable_x64(False):
        for block in blocks:
            exec(compile(block, page, "exec"), scope)


def test_the_page_on_writing_a_learner_runs(monkeypatch, tmp_path):
    """Catches a protocol that changed under the guide: the file there trains, evaluates and adapts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    own_learner = importlib.import_module("own_learner")
    lines = [x for x in (ROOT / "examples/own_learner.py").read_text().splitlines() if x.strip()]
    assert len(lines) - 8 <= 30, "the page promises 30 lines"
    assert isinstance(own_learner, mk.Algorithm)
    scope = {"__name__": "page"}
    with jax.enable_x64(False):
        shown, *blocks = python_blocks(DOCS / "own-learner.md")
        assert shown == (ROOT / "examples/own_learner.py").read_text(), "the page shows another file"
        for block in blocks:
            exec(compile(block, "own-learner.md", "exec"), scope)
    (experiment,) = (block for block in blocks if "mk.Experiment(" in block)
    assert len(experiment.splitlines()) <= 12, "report, pictures and resume are promised for 12 further lines"
    assert scope["run"].finished
    learnt, chance = mk.evaluate.student_t(scope["scores"]["accuracy"]), 0.2
    assert learnt.low > chance


@pytest.mark.slow
def test_the_learner_on_the_page_keeps_the_contract(monkeypatch, tmp_path):
    """Catches a page whose test fails when it is pasted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    scope = {"__name__": "page"}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in python_blocks(DOCS / "own-learner.md")[1:]:
            exec(compile(block, "own-learner.md", "exec"), scope)
            if "def test_it_keeps_the_contract" in block:  # what follows on the page is another learner
                break
        scope["test_it_keeps_the_contract"]()


def test_the_readme_holds_the_two_commands():
    """Catches a README whose install line drifts from what CI runs."""
    readme = (ROOT / "README.md").read_text()
    assert 'pip install -e ".[test]" && pytest' in readme
    assert 'pip install -q -e ".[test]" && pytest' in (ROOT / ".ci/run").read_text()
    assert "pip install . && metakit train maml" in readme
