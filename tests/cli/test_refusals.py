"""What the command line refuses: in one sentence, with status 2, before any work."""

import re

import jax
import pytest

import metakit as mk
from metakit.cli import main


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


REFUSED = {
    "algorithm": (["train", "mamll"], r"'mamll' is not known\. Did you mean 'maml'"),
    "command": (["trian", "maml"], r"'trian' is no command\. Did you mean 'train'"),
    "no recipe": (["train"], r"which recipe\? Known: acnp, anil"),
    "data": (
        ["train", "maml", "--data", "omniglott"],
        r"maml does not train on --data omniglott\. Did you mean 'omniglot'",
    ),
    "option": (["train", "maml", "--stps", "3"], r"maml has no option --stps\. The nearest is --steps"),
    "a way of the test that the head has not": (
        ["train", "maml", "--test-way", "3"],
        r"maml has no option --test-way\. The nearest is --test-",
    ),
    "validation never": (["train", "maml", "--validate-every", "0"], "--validate-every must be at least 1, got 0"),
    "one validation task": (["train", "maml", "--validation-tasks", "1"], "--validation-tasks must be at least 2"),
    "negative rate": (["train", "maml", "--rate=-1"], "--rate must be above 0, got -1"),
    "negative scale": (["train", "matching", "--scale=-1"], "--scale must be above 0, got -1"),
    "an option of another algorithm": (["train", "maml", "--scale", "3"], "has no option --scale"),
    "an inner rate without an inner loop": (["train", "matching", "--inner-rate", "3"], "has no option --inner-rate"),
    "inner rate of a gate": (
        ["train", "meta-lstm", "--smoke", "--inner-rate", "1"],
        "--inner-rate must be below 1 for meta-lstm, whose input gate is a sigmoid; got 1.0",
    ),
    "a batch that is not drawn": (["train", "maml", "--inner-batch", "3"], "has no option --inner-batch"),
    "queries of a sequence": (["train", "mann", "--queries", "3"], "has no option --queries"),
    "a schedule of its own": (["train", "reptile", "--schedule", "cosine"], "has no option --schedule"),
    "a rate that a line search finds": (["train", "rl-maml", "--rate", "3"], "has no option --rate"),
    "shots without examples": (["train", "rl-squared", "--shot", "3"], "has no option --shot"),
    "classes without classes": (["train", "rl-maml", "--way", "3"], "has no option --way"),
    "curves for a sequence learner": (
        ["train", "mann", "--data", "linear"],
        "mann does not train on --data linear",
    ),
    "bandits for MAML": (["train", "maml", "--data", "bandits"], "maml does not train on --data bandits"),
    "curves for what acts": (
        ["train", "rl-squared", "--data", "sinusoid"],
        "rl-squared does not train on --data sinusoid",
    ),
    "unused path": (["train", "maml", "--path", "."], "has no option --path"),
    "unused split": (["train", "maml", "--split", "lake"], "has no option --split"),
    "trainval without it": (["train", "maml", "--trainval"], "has no option --trainval"),
    "mirrored lines": (["train", "maml", "--data", "linear", "--mirrored"], "has no option --mirrored"),
    "no run to start from": (
        ["train", "maml", "--start-from", "/nowhere/at/all"],
        "/nowhere/at/all is no run folder: it does not exist",
    ),
    "devices": (["train", "maml", "--devices", "3"], "--meta-batch 8 must be a multiple of --devices 3"),
    "more test steps than rates": (
        ["train", "mamlpp", "--test-inner-steps", "9"],
        "--test-inner-steps 9 was asked.*rates for 3 steps only",
    ),
    "folder without a path": (["train", "maml", "--data", "folder"], "needs --path"),
    "missing path": (
        ["train", "maml", "--data", "omniglot", "--path", "/nowhere/at/all"],
        r"/nowhere/at/all, as .* Give --path the folder that holds both archives, or add --download",
    ),
    "missing folder": (
        ["train", "maml", "--data", "folder", "--path", "/nowhere/at/all"],
        "--path must be a folder with one folder for each class, but /nowhere/at/all does not exist",
    ),
    "way": (["train", "maml", "--smoke", "--way", "5000"], r"--way must lie in 1\.\.1036, .* got 5000\.$"),
    "way of the test": (
        ["train", "matching", "--smoke", "--test-way", "300"],
        r"--test-way must lie in 1\.\.91, the number of validation classes, got 300\.$",
    ),
    "shot and queries": (
        ["train", "maml", "--smoke", "--shot", "30"],
        r"--shot \+ --queries must not exceed .* classes have too few\)\.$",
    ),
    "policy": (
        ["train", "meta-lstm", "--smoke", "--norm-policy", "joint"],
        "--norm-policy joint is none that this algorithm has; it has transductive, inductive.",
    ),
    "no tasks in a step": (["train", "maml", "--meta-batch", "0"], "--meta-batch must be at least 1, got 0"),
    "a path with an argument's name": (
        ["train", "maml", "--data", "folder", "--path", "/nowhere/way=5/shot=1"],
        "but /nowhere/way=5/shot=1 does not exist",
    ),
    "a prime number of steps": (
        ["train", "maml", "--data", "linear", "--steps", "10007"],
        "--validate-every 1500, the default, must divide --steps 10007, .* --steps 10500 would do",
    ),
    "one class": (["train", "prototypical", "--way", "1"], "--way must be at least 2, got 1: of one class every"),
    "capitals": (["train", "Maml"], r"Did you mean 'maml'\?"),
    "validation period": (["train", "maml", "--steps", "10", "--validate-every", "3"], "must divide --steps 10"),
    "steps below one": (["train", "maml", "--steps", "-7"], "--steps must be at least 1, got -7"),
    "one seed": (["train", "maml", "--data", "linear", "--seeds", "1"], "--seeds must be at least 2, got 1"),
    "several seeds of one start": (
        ["train", "maml", "--data", "linear", "--seeds", "2", "--start-from", "x"],
        "--start-from would not be used with --seeds",
    ),
    "no run": (["evaluate", "/nowhere/at/all"], "no run folder"),
    "one run to compare": (["compare", "/nowhere/at/all"], "a comparison needs at least two runs, got 1"),
    "no time to choose": (["choose", "--path", ".", "--minutes", "0"], "--minutes must be above 0, got 0"),
    "one recipe to choose from": (
        ["choose", "--path", ".", "--recipes", "maml"],
        "--recipes must name at least two, got 1",
    ),
    "predict without support": (["predict", "/nowhere/at/all"], "--support"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_are_explained_without_a_traceback(case, tmp_path, monkeypatch, capsys):
    """Catches a traceback for a typing mistake, and a run folder left behind by one."""
    monkeypatch.chdir(tmp_path)
    arguments, message = REFUSED[case]
    assert main(arguments) == 2
    said = capsys.readouterr()
    text = re.sub(r"[\s│─╭╮╰╯]+", " ", said.err + said.out).strip()
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-tasks", "1"], "--num-tasks must be at least 2, got 1"),
        (["--inner-steps", "-1"], "--inner-steps must be at least 0, got -1"),
        (["--shot", "0"], "--shot must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--way", "3"], "has no option --way"),
        (["--path", "."], "has no option --path"),
        (["--norm-policy", "joint"], "has no option --norm-policy"),
    ],
)
def test_an_evaluation_refuses_what_it_cannot_use(linear_run, words, message, capsys):
    """Catches a number that is refused after the work, an option taken without effect, or a result left behind."""
    before = sorted(linear_run.iterdir())
    assert main(["evaluate", str(linear_run), *words]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert sorted(linear_run.iterdir()) == before


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_test_is_tried_out_before_the_work(command, linear_run, tmp_path, monkeypatch, capsys):
    """Catches a command that tries nothing out, or leaves a folder or a result of what it refused."""

    def refuse(*_):
        raise ValueError("shot must be another.")

    monkeypatch.setattr(mk.experiments._run, "try_out", refuse)
    before = sorted(linear_run.iterdir())
    train = ["train", "maml", "--data", "linear", "--smoke", "--run", str(tmp_path / "run"), "--no-compilation-cache"]
    words = {"train": train, "evaluate": ["evaluate", str(linear_run)]}[command]
    assert main(words) == 2
    assert {"train": "--test-shot must be", "evaluate": "--shot must be"}[command] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert sorted(linear_run.iterdir()) == before


def test_a_broken_archive_is_no_wrong_option(tmp_path, capsys):
    """Catches status 2, which says that the options do not fit, for data that is damaged."""
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).write_bytes(b"no archive")
    assert main(["train", "maml", "--data", "omniglot", "--path", str(tmp_path)]) == 1
    assert "images_background.zip is not a complete zip" in capsys.readouterr().err


def test_an_existing_run_is_never_written_over(linear_run, capsys):
    """Catches losing yesterday's result to today's command."""
    assert main(["train", "maml", "--data", "linear", "--smoke", "--run", str(linear_run)]) == 2
    assert "exists and is not empty" in re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "0.5"], "rate: was 0.001, now 0.5"),
        (["--data", "sinusoid"], "data: was 'linear', now 'sinusoid'"),
        (["--steps", "15000"], "steps: was 4, now 15000"),
        (["--run", "elsewhere"], "--run elsewhere would not be used: --resume continues in"),
    ],
)
def test_resuming_with_other_options_names_them(linear_run, words, message, capsys):
    """Catches a resumed run that silently ignores an option, a default's own value among them."""
    assert main(["train", "maml", "--resume", str(linear_run), *words]) == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_resuming_as_another_recipe_names_it(linear_run, capsys):
    """Catches a run of MAML that goes on as first-order MAML."""
    assert main(["train", "fomaml", "--resume", str(linear_run)]) == 2
    assert "recipe: was 'maml', now 'fomaml'" in re.sub(r"\s+", " ", capsys.readouterr().err)
