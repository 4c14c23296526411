"""What one does with trained runs: predict, compare, sweep."""

import csv
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import metakit as mk
from metakit.cli import main


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


FEW = {"way": 3, "queries": 2, "test_queries": 2}


def image_run(name, folder, drawings, **more):
    recipe = mk.recipes.find(name)
    values = recipe.settle({"data": "folder", "path": drawings, **FEW, **more}, smoke=True)
    with jax.enable_x64(False):
        assert mk.experiments.run(recipe.build(values), folder, quiet=True).finished
    return folder


@pytest.fixture(scope="module")
def prototypes(tmp_path_factory, drawings):
    return image_run("prototypical", tmp_path_factory.mktemp("runs") / "prototypes", drawings, test_way=3)


@pytest.fixture(scope="module")
def fixed_way(tmp_path_factory, drawings):
    return image_run("fomaml", tmp_path_factory.mktemp("runs") / "maml", drawings)


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 30), colour).save(path)


@pytest.fixture
def pets(tmp_path):
    """Two classes of one picture each, and three to be labelled."""
    picture(tmp_path / "support" / "cat" / "1.png", 0)
    picture(tmp_path / "support" / "dog" / "1.png", 255)
    for i, colour in enumerate((10, 250, 5)):
        picture(tmp_path / "query" / f"{i}.png", colour)
    return tmp_path


def test_new_classes_are_one_command(prototypes, pets):
    """Catches probabilities under another class's name, a file left out, or a picture of nothing."""
    words = ["--support", str(pets / "support"), "--query", str(pets / "query"), "--out", str(pets / "p.csv")]
    assert main(["predict", str(prototypes), *words, "--no-compilation-cache"]) == 0
    with (pets / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(pets / "query" / f"{i}.png") for i in range(3)]
    assert [row["class"] for row in rows] == ["cat", "dog", "cat"]
    for row in rows:
        assert float(row["cat"]) + float(row["dog"]) == pytest.approx(1, abs=1e-5)
    with Image.open(pets / "p.png") as image:
        assert np.asarray(image.convert("L")).std() > 5


def test_new_classes_are_three_lines_of_python(prototypes, pets):
    """Catches another answer in Python than on the command line."""
    run = mk.open_run(prototypes)
    support, names = mk.experiments.read_support(run, pets / "support")
    images, files = mk.experiments.read_queries(run, [pets / "query"])
    found = mk.experiments.predict(run, support, images, names=names, queries=files)
    logits = run.algorithm.predict(run.algorithm.adapt(run.learner, support), images)
    np.testing.assert_allclose(found.outputs, jax.nn.softmax(logits, axis=-1), atol=1e-6)
    assert found.labels == ("cat", "dog", "cat")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty class", r"1 of the 3 class folders .* hold no image"),
        ("one class", "holds one class, 'cat': of one class every answer is right"),
        ("no query", r"--query .*query holds no image"),
        ("missing query", r"--query .*nowhere does not exist"),
        ("twice", "names a class twice, 'Cat' and 'cat'"),
        ("broken", "broken"),
        ("a curve", "was trained on images; give --support a folder"),
    ],
)
def test_pictures_that_do_not_fit_are_named(prototypes, pets, what, message, capsys):
    """Catches a traceback, or predictions from half of what was given."""
    query = pets / "query"
    if what == "empty class":
        (pets / "support" / "cow").mkdir()
    elif what == "one class":
        shutil.rmtree(pets / "support" / "dog")
    elif what == "no query":
        shutil.rmtree(query)
        query.mkdir()
    elif what == "missing query":
        query = pets / "nowhere"
    elif what == "twice":
        picture(pets / "support" / "Cat" / "1.png", 3)
    elif what == "broken":
        (query / "broken.png").write_bytes(b"no picture")
    support = pets / "support"
    if what == "a curve":
        support = pets / "s.csv"
        support.write_text("x,y\n0,1\n")
    words = ["--support", str(support), "--query", str(query), "--out", str(pets / "p.csv")]
    assert main(["predict", str(prototypes), *words, "--no-compilation-cache"]) in (1, 2)
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not (pets / "p.csv").exists()


def test_a_fixed_number_of_outputs_is_said(fixed_way, pets, capsys):
    """Catches two classes predicted by a network with three outputs."""
    words = ["--support", str(pets / "support"), "--query", str(pets / "query"), "--out", str(pets / "p.csv")]
    assert main(["predict", str(fixed_way), *words, "--no-compilation-cache"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the support set has 2 classes" in said
    assert "an output for each of 3. Give exactly 3 classes" in said


def test_a_curve_is_predicted_from_csv(linear_run, tmp_path):
    """Catches columns mixed up, and another answer than the learner's own."""
    (tmp_path / "s.csv").write_text("x,y\n0.0,1.0\n0.5,2.0\n")
    (tmp_path / "q.csv").write_text("x\n0.25\n-1\n")
    words = ["--support", str(tmp_path / "s.csv"), "--query", str(tmp_path / "q.csv"), "--out", str(tmp_path / "p.csv")]
    assert main(["predict", str(linear_run), *words, "--no-compilation-cache"]) == 0
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    run = mk.open_run(linear_run)
    support = mk.Examples(jnp.array([[0.0], [0.5]]), jnp.array([[1.0], [2.0]]))
    expected = run.algorithm.predict(run.algorithm.adapt(run.learner, support), jnp.array([[0.25], [-1.0]]))
    np.testing.assert_allclose([float(row["y"]) for row in rows], expected[:, 0], rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has no column 'x'"),
        ("x,y\n1,two\n", "line 2: .* holds no number"),
        ("x,y\n", "holds no row below its first line"),
        ("", "its first line is empty"),
    ],
)
def test_a_csv_that_holds_no_curve_says_where(tmp_path, text, message):
    """Catches NaN in place of a cell that is no number."""
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(mk.experiments.PredictError, match=message):
        mk.experiments.read_curve(tmp_path / "s.csv", with_targets=True)


# The classes that a run knows


def test_a_folder_that_grows_is_not_dealt_again(prototypes, drawings, tmp_path, capsys):
    """Catches one class more, for which all were dealt again: 85 of 138 "test" classes had then been trained on."""
    grown = tmp_path / "grown"
    shutil.copytree(drawings, grown)
    shutil.copytree(drawings / "class03", grown / "aaa")
    record = mk.open_run(prototypes).data
    evaluate = ["evaluate", str(prototypes), "--num-tasks", "4", "--no-compilation-cache"]
    assert main([*evaluate, "--path", str(grown)]) == 0
    (page,) = prototypes.glob("evaluation-*.md")
    assert "1 classes came after the run and are put aside: aaa" in page.read_text()
    experiment, _ = mk.recipes.evaluation(prototypes, {"path": grown})
    assert experiment.data.classes == record.classes
    assert not set(record.classes["train"]) & set(record.classes["test"])
    assert main([*evaluate, "--path", str(grown), "--classes", "new", "--way", "1"]) == 2
    assert "--way must be at least 2" in capsys.readouterr().err
    shutil.copytree(drawings / "class05", grown / "bbb")
    experiment, _ = mk.recipes.evaluation(prototypes, {"path": grown, "way": 2}, classes="new")
    assert experiment.test.pool.names == ("aaa", "bbb")
    page.unlink()


def test_classes_that_are_gone_are_named(prototypes, drawings, tmp_path):
    """Catches a test on fewer classes than the run was tested on."""
    fewer = tmp_path / "fewer"
    shutil.copytree(drawings, fewer)
    gone = mk.open_run(prototypes).data.classes["test"][0]
    shutil.rmtree(fewer / gone)
    message = f"lacks 1 of the 3 test classes that the run recorded, such as '{gone}'"
    with pytest.raises(mk.recipes.OptionError, match=message):
        mk.recipes.evaluation(prototypes, {"path": fewer})


def test_pictures_that_have_changed_are_said(prototypes, drawings, tmp_path):
    """Catches a comparison of two tests whose pictures differ."""
    changed = tmp_path / "changed"
    shutil.copytree(drawings, changed)
    test_class = mk.open_run(prototypes).data.classes["test"][0]
    picture(changed / test_class / "0.png", 77)
    experiment, _ = mk.recipes.evaluation(prototypes, {"path": changed})
    assert any("have changed since the run" in note for note in experiment.words.notes)


def test_a_start_keeps_the_deal_and_has_not_seen_the_test(prototypes, drawings, tmp_path):
    """Catches --start-from with another seed, which dealt the classes anew and tested on those trained on."""
    recipe = mk.recipes.find("prototypical")
    values = recipe.settle({"data": "folder", "path": drawings, **FEW, "test_way": 3, "seed": 5}, smoke=True)
    experiment = mk.recipes.start_from(recipe, values, prototypes)
    before = mk.open_run(prototypes).data
    assert experiment.data.classes == before.classes
    assert set(experiment.data.seen) == set(before.classes["train"])
    best = mk.open_run(prototypes, "best").learner
    for ours, theirs in zip(jax.tree.leaves(experiment.learner), jax.tree.leaves(best), strict=True):
        if isinstance(ours, jax.Array):
            assert np.array_equal(ours, theirs)
    # A later run on classes that a start had trained on is refused by name.
    record = json.loads((prototypes / "data.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(prototypes, other)
    record["seen"] = record["classes"]["test"][:1]
    (other / "data.json").write_text(json.dumps(record))
    with pytest.raises(mk.recipes.OptionError, match="was trained on 1 of this run's 3 test classes"):
        mk.recipes.start_from(recipe, values, other)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("fomaml", {}, "is a run of maml; this is one of fomaml"),
        ("maml", {"inner_rate": 0.5}, "has --inner-rate 0.01, this run 0.5: the learner holds it. Give it 0.01 too"),
    ],
)
def test_a_run_of_other_options_is_no_start(linear_run, name, given, message):
    """Catches an option that has no effect, since the learner that training starts from holds another value."""
    recipe = mk.recipes.find(name)
    with pytest.raises(mk.recipes.OptionError, match=message):
        mk.recipes.start_from(recipe, recipe.settle({"data": "linear", **given}), linear_run)


def test_a_run_of_another_network_is_no_start(fixed_way, drawings):
    """Catches weights of another shape that are met inside a compiled step."""
    recipe = mk.recipes.find("fomaml")
    values = recipe.settle({"data": "folder", "path": drawings, **FEW, "way": 2}, smoke=True)
    with pytest.raises(mk.recipes.OptionError, match="holds another network: it has"):
        mk.recipes.start_from(recipe, values, fixed_way)


def test_a_policy_of_its_own_in_the_test(prototypes):
    """Catches an evaluation that names another batch-norm policy and scores with the trained one."""
    found = {policy: mk.recipes.evaluation(prototypes, {"norm_policy": policy}) for policy in ("joint", "inductive")}
    assert found["inductive"][1].norm_policy == "inductive"
    assert found["inductive"][0].words.norm.startswith("inductive")
    task = found["joint"][0].test(jax.random.key(0))
    outputs = [
        mk.prototypical.predict(mk.prototypical.adapt(learner, task.support), task.query.x)
        for _, learner in found.values()
    ]
    assert not np.allclose(*outputs)


# Side by side


def test_runs_are_compared_on_the_tasks_they_share(linear_run, tmp_path):
    """Catches differences of other tasks taken for paired ones, or the worse run put first."""
    recipe = mk.recipes.find("fomaml")
    other = tmp_path / "fomaml"
    mk.experiments.run(recipe.build(recipe.settle({"data": "linear"}, smoke=True)), other, quiet=True)
    comparison = mk.experiments.compare([linear_run, other], tmp_path / "out")
    assert comparison.same_tasks
    first, second, *_ = comparison.rows
    assert first.score.mean <= second.score.mean, "the lower error comes first"
    ours, theirs = (np.load(folder / "scores.npz")["meta-trained"] for folder in (linear_run, other))
    best, worse = sorted((ours, theirs), key=np.mean)
    assert second.difference.mean == pytest.approx(np.mean(best - worse), rel=1e-6)
    assert any("oracle" in row.name for row in comparison.rows)
    with (tmp_path / "out" / "comparison.csv").open() as file:
        assert next(csv.reader(file))[:2] == ["name", "mean"]
    elsewhere = tmp_path / "seed"
    mk.experiments.run(recipe.build(recipe.settle({"data": "linear", "seed": 1}, smoke=True)), elsewhere, quiet=True)
    unpaired = mk.experiments.compare([linear_run, elsewhere])
    assert not unpaired.same_tasks
    assert unpaired.rows[1].difference is None


def test_runs_that_cannot_stand_in_one_table_say_why(linear_run, prototypes, tmp_path):
    """Catches errors and accuracies in one column, and a run that was never tested."""
    with pytest.raises(mk.experiments.CompareError, match=r"was scored by mean squared error, .* by accuracy"):
        mk.experiments.compare([linear_run, prototypes])
    unfinished = tmp_path / "unfinished"
    shutil.copytree(linear_run, unfinished)
    (unfinished / "test.json").unlink()
    with pytest.raises(mk.experiments.CompareError, match="is not finished"):
        mk.experiments.compare([linear_run, unfinished])
    with pytest.raises(mk.experiments.CompareError, match="at least two runs, got 2"):
        mk.experiments.compare([linear_run, linear_run])


def test_seeds_trained_together_are_those_trained_alone(tmp_path):
    """Catches a mapped training in which seeds share tasks or numbers: each is the single one, to float32 rounding."""
    recipe = mk.recipes.find("matching")
    built = {
        f"seed-{seed}": recipe.build(recipe.settle({"data": "linear", "seed": seed}, smoke=True)) for seed in (0, 1)
    }
    assert mk.experiments._sweep.trains_together(list(built.values()))
    done = mk.experiments.sweep(built, tmp_path / "together", quiet=True)
    for name, experiment in built.items():
        alone = mk.experiments.run(experiment, tmp_path / name, quiet=True)
        np.testing.assert_allclose(done.runs[name].metrics["loss"], alone.metrics["loss"], rtol=1e-4)
        for ours, theirs in zip(jax.tree.leaves(done.runs[name].learner), jax.tree.leaves(alone.learner), strict=True):
            if isinstance(ours, jax.Array):
                # Four Adam steps of 1e-3, whose direction rounding may turn only where a gradient is near 0.
                np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert done.between_runs.num_tasks == 2


def test_experiments_that_differ_are_trained_one_by_one(tmp_path):
    """Catches one optimiser for runs of different rates."""
    recipe = mk.recipes.find("matching")
    built = {
        str(rate): recipe.build(recipe.settle({"data": "linear", "rate": rate}, smoke=True)) for rate in (1e-3, 1e-2)
    }
    assert not mk.experiments._sweep.trains_together(list(built.values()))
