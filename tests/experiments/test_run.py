"""Experiments: any algorithm, learner and tasks from a first step to a report, and back from the folder."""

import dataclasses
import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk
from metakit.experiments import RunFolder, RunFolderError


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


# An algorithm of a user's: the learner is a point, pulled to each task's.
PULL = mk.MetaLearner(
    adapt=lambda learner, support, key=None: learner["at"],
    predict=lambda adapted, x, key=None: jnp.broadcast_to(adapted, (len(x), 1)),
    meta_loss=lambda learner, task, key=None: jnp.mean((task.query.y - learner["at"]) ** 2),
)
OPTIMISER = optax.sgd(0.1)


def points(key):
    """Tasks whose targets are all 1."""
    x = jax.random.normal(key, (4, 1))
    return mk.Episode(mk.Examples(x, jnp.ones((4, 1))), mk.Examples(x, jnp.ones((4, 1))))


def experiment(**more):
    fields = {"val": points, "steps": 6, "meta_batch": 2, "validate_every": 2, "validation_tasks": 2, "test_tasks": 4}
    fields |= {"scores": mk.experiments.mean_squared_error(), "train": points, "test": points}
    return mk.Experiment(PULL, {"at": jnp.zeros(())}, OPTIMISER, **{**fields, **more})


def test_an_algorithm_of_one_s_own_gets_everything(tmp_path):
    """Catches an experiment that only metakit's own learners can have."""
    run = mk.experiments.run(experiment(), tmp_path / "run", quiet=True)
    assert run.finished
    assert float(run.learner["at"]) == pytest.approx(1 - 0.8**6, rel=1e-5)  # the closed form of six steps at rate 0.1
    assert run.metrics["step"].tolist() == [2, 4, 6]
    assert run.metrics["validation"][-1] == pytest.approx(0.8**12, rel=1e-4)
    assert run.scores["meta-trained"].shape == (4,)
    assert {p.name for p in (tmp_path / "run").glob("*.png")} == {"learning-curve.png", "curves.png"}
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| not meta-trained | 1.0000 ± 0.0000 |" in report
    assert "an experiment made in Python" in report


def test_a_finished_run_is_never_written_over(tmp_path):
    """Catches a second call that tests again and overwrites the honest report."""
    mk.experiments.run(experiment(), tmp_path / "run", quiet=True)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    again = mk.experiments.run(experiment(), tmp_path / "run", quiet=True)
    assert again.finished
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()} == before


def test_another_experiment_is_refused_by_name(tmp_path):
    """Catches a folder in which two experiments are mixed."""
    mk.experiments.run(experiment(), tmp_path / "run", quiet=True)
    with pytest.raises(mk.train.ConfigChangedError, match="steps: was 6, now 8"):
        mk.experiments.run(experiment(steps=8), tmp_path / "run", quiet=True)


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    """Catches a resumed run that draws other tasks or begins again: against one that was never stopped."""
    whole = mk.experiments.run(experiment(), tmp_path / "whole", quiet=True)

    def stop(event):
        if isinstance(event, mk.train.Saved) and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mk.experiments.run(experiment(), tmp_path / "run", quiet=True, listeners=[stop])
    assert not (tmp_path / "run" / "report.md").exists()
    resumed = mk.experiments.run(experiment(), tmp_path / "run", quiet=True)
    assert np.array_equal(resumed.learner["at"], whole.learner["at"])
    assert resumed.metrics["step"].tolist() == whole.metrics["step"].tolist()
    assert np.array_equal(resumed.metrics["loss"], whole.metrics["loss"])
    assert np.array_equal(resumed.scores["meta-trained"], whole.scores["meta-trained"])


@pytest.mark.parametrize("tested", ["best", "last"])
def test_the_learner_that_is_tested(tmp_path, tested):
    """Catches a learner chosen by a validation that chooses nothing: here the first is the best, by a score of one's
    own."""
    away = mk.experiments.metric("distance", mk.metrics.mean_squared_error, best="highest")
    run = mk.experiments.run(experiment(scores=away, tested=tested), tmp_path / "run", quiet=True)
    assert float(run.learner["at"]) == pytest.approx(1 - 0.8 ** {"best": 2, "last": 6}[tested], rel=1e-5)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    """Catches a mismatch of learner and test tasks that shows after an hour, and a folder left behind by it."""

    def refuses(outputs, targets):
        raise ValueError("outputs must be others.")

    scores = mk.experiments.metric("never", refuses, best="highest")
    with pytest.raises(mk.experiments.UnfitError, match="outputs must be others"):
        mk.experiments.run(experiment(scores=scores), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_numbers_survive_a_picture_that_fails(tmp_path):
    """Catches a report that is written after its pictures and lost with them."""

    def fails(shown):
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        mk.experiments.run(experiment(pictures=(fails,)), tmp_path / "run", quiet=True)
    assert "| meta-trained |" in (tmp_path / "run" / "report.md").read_text()


def test_a_listener_that_raises_is_said_once(tmp_path, capsys):
    """Catches a training that ends with a listener's mistake, or a complaint at every step."""
    heard = []

    def broken(event):
        raise RuntimeError("no ears")

    run = mk.experiments.run(experiment(), tmp_path / "run", quiet=True, listeners=[broken, heard.append])
    assert run.finished
    said = capsys.readouterr()
    assert said.err.count("the listener broken raised RuntimeError: no ears") == 1
    assert said.out == ""
    kinds = [type(event).__name__ for event in heard]
    assert kinds[0] == "Started"
    assert kinds[-2:] == ["Tested", "Reported"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"test_tasks": 1}, ValueError, "test_tasks must be at least 2, got 1"),
        ({"validate_every": 4}, ValueError, "validate_every=4 must divide steps=6"),
        ({"devices": 3}, ValueError, "meta_batch=2 must be a multiple of devices=3"),
        ({"scores": mk.metrics.accuracy}, TypeError, "scores must be what a task is scored by"),
        ({"algorithm": 3}, TypeError, "algorithm must hold adapt, predict and meta_loss"),
        ({"train": mk.tasks.Sinusoid}, TypeError, "sampler must be a function"),
    ],
)
def test_an_experiment_names_what_is_wrong_with_it(change, error, message):
    """Catches a mistake that shows in the middle of a training."""
    with pytest.raises(error, match=message):
        dataclasses.replace(experiment(), **change)
    with pytest.raises(TypeError, match=r"experiment must be an mk\.Experiment"):
        mk.experiments.run(PULL, "nowhere")


# Back from the folder


def test_a_run_opens_without_its_data(linear_run):
    """Catches a learner that cannot be had again, or another one than was tested."""
    run = mk.open_run(linear_run)
    assert (run.recipe, run.finished, run.options["shot"]) == ("maml", True, 10)
    assert run.versions["metakit"] == mk.__version__
    task = mk.tasks.LinearRegression(shot=10, queries=10)(jax.random.key(5))
    outputs = run.algorithm.predict(run.algorithm.adapt(run.learner, task.support), task.query.x)
    assert outputs.shape == (10, 1)
    best, last = (mk.open_run(linear_run, which).learner for which in ("best", "last"))
    assert jax.tree.structure(best) == jax.tree.structure(last)
    assert run.learner.num_steps == 10, "the learner that was tested takes the steps of the test"
    assert best.num_steps == 1
    with pytest.raises(ValueError, match="has no tasks to draw"):
        run.experiment.test(jax.random.key(0))


def test_a_run_scores_as_it_did(linear_run):
    """Catches an opened learner whose test gives other numbers than its report."""
    run = mk.open_run(linear_run)
    again = mk.recipes.find(run.recipe).build(run.options)
    key = jax.random.fold_in(jax.random.key(again.seed), 3)
    scores = again.scores.of(run.algorithm, run.learner, again.test, key, num_tasks=again.test_tasks)["error"]
    np.testing.assert_array_equal(np.asarray(scores), run.scores["meta-trained"])


def test_a_run_of_no_recipe_needs_its_experiment(tmp_path):
    """Catches a learner that is built from nothing."""
    mk.experiments.run(experiment(), tmp_path / "run", quiet=True)
    with pytest.raises(RunFolderError, match="was made by no recipe"):
        mk.open_run(tmp_path / "run")
    opened = mk.open_run(tmp_path / "run", experiment=experiment())
    assert float(opened.learner["at"]) > 0


def damaged(folder, what):
    place = RunFolder(folder)
    if what == "empty":
        folder.mkdir()
    elif what == "half written":
        folder.mkdir()
        place.record.write_text('{"format": 2, "rec')
    elif what == "of a newer version":
        folder.mkdir()
        place.record.write_text(json.dumps({"format": 99, "versions": {"metakit": "9.9"}}))
    elif what == "of metakit 0.1":
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"algorithm": "maml", "data": "glyphs", "seed": 0}))
    elif what == "a file":
        folder.write_text("no folder")
    elif what == "gone recipe":
        folder.mkdir()
        place.record.write_text(
            json.dumps({"format": 2, "recipe": "gone.py:mine", "options": {}, "digest": "00", "versions": {}})
        )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "is no run folder: it does not exist"),
        ("empty", r"is no run folder: it holds no run\.json"),
        ("half written", r"run\.json is damaged"),
        ("of a newer version", "was written by metakit 9.9, in format 99; this one reads 2"),
        ("of metakit 0.1", r"was written by metakit 0\.1\. .* train again .*: metakit train maml --data glyphs"),
        ("a file", "is a file. Give the run folder that holds it"),
        ("gone recipe", "the recipe of .* is gone: there is no file gone.py"),
    ],
)
def test_a_folder_that_is_no_run_says_so(tmp_path, what, message):
    """Catches a traceback of JSON's or of orbax's for a folder that is damaged or old."""
    damaged(tmp_path / "run", what)
    with pytest.raises((RunFolderError, mk.recipes.RecipeError), match=message):
        mk.open_run(tmp_path / "run")


def test_arrays_of_another_learner_are_refused(linear_run, tmp_path):
    """Catches numbers that are put into a network of another shape."""
    run = mk.recipes.find("maml")
    other = run.build(run.settle({"data": "linear", "test_inner_steps": 3}))
    wider = eqx.tree_at(lambda e: e.model.hidden[0].weight, other.learner, jnp.zeros((7, 1)))
    with pytest.raises(
        RunFolderError, match=r"holds another network: it has .*\[1, 40\] where this one has .*\[7, 1\]"
    ):
        mk.experiments._loaded.load_arrays(RunFolder(linear_run).learner, wider)
    broken = tmp_path / "learner.npz"
    broken.write_bytes(RunFolder(linear_run).learner.read_bytes()[:100])
    with pytest.raises(RunFolderError, match=r"learner\.npz is damaged"):
        mk.experiments._loaded.load_arrays(broken, wider)


def test_a_cut_line_in_the_log_is_logged_again(tmp_path, linear_run):
    """Catches a run that cannot be resumed after a full disk or a killed process, and a record read half."""
    whole = RunFolder(linear_run)
    folder = RunFolder(tmp_path)
    folder.metrics.write_text(whole.metrics.read_text()[:-10])
    assert folder.records() == whole.records()[:-1]
    folder.rewind(2)
    assert {record["event"] for record in folder.records()} == {"progress", "validated"}
    assert max(record["step"] for record in folder.records()) == 2


def test_numbers_of_any_dtype_come_back(tmp_path):
    """Catches bfloat16, which NumPy cannot name, and random keys, which have no bytes of their own."""
    tree = {"b": jnp.arange(3, dtype=jnp.bfloat16), "k": jax.random.key(3), "f": jnp.ones((2, 2))}
    path = pathlib.Path(tmp_path) / "learner.npz"
    mk.experiments._loaded.save_arrays(path, tree)
    back = mk.experiments._loaded.load_arrays(path, tree)
    assert back["b"].dtype == jnp.bfloat16
    assert np.array_equal(back["b"].astype(np.float32), [0, 1, 2])
    assert np.array_equal(jax.random.key_data(back["k"]), jax.random.key_data(tree["k"]))
