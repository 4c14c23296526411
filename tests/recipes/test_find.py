"""Recipes of a user's own, in a file or a module."""

import textwrap

import jax
import pytest

import metakit as mk
from metakit.cli import main

OWN = """
import optax
import jax
import metakit as mk

def tiny(width: int = 4, rate: float = 1e-3, steps: int = 4, seed: int = 0) -> mk.Experiment:
    \"\"\"A tiny MAML of mine.\"\"\"
    lines = mk.tasks.LinearRegression(shot=5, queries=5)
    model = mk.nn.MLP(1, 1, width, 1, key=jax.random.key(seed))
    learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.01), num_steps=1, loss=mk.losses.squared_error)
    return mk.Experiment(mk.maml, learner, optax.adam(rate), lines, lines, mk.experiments.mean_squared_error(), steps,
                         seed=seed, test_tasks=4)

def nothing(width: int = 4):
    return width

def untyped(width=4):
    return None

def required(width: int):
    return None

def fails(width: int = 4):
    raise KeyError("lost")

number = 3
"""


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(textwrap.dedent(OWN))
    return tmp_path / "mine.py"


def test_a_recipe_of_one_s_own_gets_everything(file, capsys):
    """Catches a user's recipe without its own options, report, or a run that can be opened again."""
    command = ["train", "mine.py:tiny", "--width", "6", "--run", "run", "--smoke", "--no-compilation-cache"]
    assert main(command) == 0
    run = mk.open_run("run")
    assert (run.recipe, run.options["width"], run.finished) == ("mine.py:tiny", 6, True)
    assert run.learner.model.hidden[0].weight.shape[1] == 6
    assert "metakit train mine.py:tiny --width 6" in (file.parent / "run" / "report.md").read_text()
    assert main(["evaluate", "run", "--num-tasks", "3", "--no-compilation-cache"]) == 0
    capsys.readouterr()
    assert main(["train", "mine.py:tiny", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--width" in shown
    assert "--norm-policy" not in shown
    assert main(["train", "mine.py:tiny", "--way", "3"]) == 2


def test_a_recipe_that_has_changed_is_refused_by_name(file):
    """Catches a learner put together by other code than the code it was trained with."""
    recipe = mk.recipes.find("mine.py:tiny")
    mk.experiments.run(recipe(), "run", quiet=True)
    file.write_text(file.read_text() + "\n# a change\n")
    with pytest.raises(mk.experiments.RunFolderError, match=r"the recipe mine\.py:tiny has changed since run was made"):
        mk.open_run("run")
    assert mk.open_run("run", changed_recipe=True).finished
    file.unlink()
    with pytest.raises(mk.recipes.RecipeError, match=r"the recipe of run is gone: there is no file mine\.py"):
        mk.open_run("run")


def test_no_code_is_run_from_a_run_folder(file):
    """Catches a run folder, perhaps somebody else's, whose code is run by opening it."""
    mk.experiments.run(mk.recipes.find("mine.py:tiny")(), "run", quiet=True)
    (file.parent / "run" / "mine.py").write_text("raise SystemExit('run')")
    record = file.parent / "run" / "run.json"
    record.write_text(record.read_text().replace("mine.py:tiny", "run/mine.py:tiny"))
    with pytest.raises(mk.experiments.RunFolderError, match="from which no code is run"):
        mk.open_run("run")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:nothing", "the recipe mine.py:nothing must return an mk.Experiment, got"),
        ("mine.py:untyped", "the parameter 'width' of the recipe mine.py:untyped has no type"),
        ("mine.py:required", "the parameter 'width' of the recipe mine.py:required has no default"),
        ("mine.py:fails", "the recipe mine.py:fails raised KeyError: 'lost'"),
        ("mine.py:number", "mine.py:number is no function"),
        ("mine.py:tinny", "mine.py holds no 'tinny'. Did you mean 'tiny'"),
        ("mine.py", "mine.py names no function. Write mine.py:recipe"),
        ("other.py:tiny", "there is no file other.py"),
        ("no.such.module:tiny", "there is no module no.such.module"),
        ("broken.py:tiny", "broken.py cannot be imported: SyntaxError"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(file, name, message, capsys):
    """Catches a traceback of Python's insides for a mistake in a user's file, or a run folder left behind."""
    (file.parent / "broken.py").write_text("def tiny(:")
    before = sorted(file.parent.iterdir())
    assert main(["train", name]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said
    assert [p for p in sorted(file.parent.iterdir()) if p.name != "__pycache__"] == before
