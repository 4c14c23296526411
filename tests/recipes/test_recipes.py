"""Recipes: typed options with published defaults, from which an experiment is built."""

import pathlib
import re

import equinox as eqx
import jax
import numpy as np
import pytest

import metakit as mk
from metakit.recipes.parts import Omniglot, Recall, _devices

NAMES = mk.recipes.names()
ENVIRONMENTS = ("bandits", "navigation")


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


def blank(data, size):
    """What a run on so many black pictures would have recorded."""
    classes = {part: tuple(f"{part}{i}" for i in range(60)) for part in ("train", "val", "test")}
    shape, examples = (1, size, size), dict.fromkeys(classes, 20)
    return Recall(mk.experiments.DataRecord(classes, dict.fromkeys(classes, ""), shape, examples=examples), blank=True)


def built(name, data=None, **given):
    """An experiment of a recipe, its pictures all black."""
    recipe = mk.recipes.find(name)
    data = data or recipe.data[0]
    size = 20 if (name, data) == ("mann", "omniglot") else 28
    return recipe.build(recipe.settle({"data": data, **given}), recall=blank(data, size))


PRESETS = [(name, data) for name in NAMES for data in mk.recipes.find(name).data]


@pytest.mark.parametrize(("name", "data"), PRESETS)
def test_every_preset_builds_its_learner_as_tested(name, data):
    """Catches a preset whose parts do not fit (way, shots, key, labels), and one that trains for minutes and then
    cannot be tested: more test steps than there are rates. Traced, not compiled."""
    experiment = built(name, data)

    def train_and_test(key):
        state = mk.train.init(experiment.learner, experiment.optimiser, key=key)
        loss = experiment.algorithm.meta_loss(state.learner, experiment.train(key), key)
        tested = experiment.as_tested(experiment.learner)
        scores = experiment.scores.of(experiment.algorithm, tested, experiment.test, key, num_tasks=2)
        if data in ENVIRONMENTS:  # where adapting is a part of acting
            return loss, scores[experiment.scores.name][:, None]
        task = experiment.test(key)
        adapted = experiment.algorithm.adapt(tested, task.support, key)
        return loss, experiment.algorithm.predict(adapted, task.query.x, key)

    loss, outputs = eqx.filter_eval_shape(train_and_test, jax.random.key(0))
    assert loss.shape == ()
    classes = getattr(experiment.test, "way", None)
    assert outputs.shape[1:] == ((1,) if classes is None else (classes,))


ELSEWHERE = {"data", "path", "download", "devices", "split"}  # where it runs, and where its pictures come from
OTHERS = {"norm_policy": "inductive", "schedule": "constant", "clip_norm": 2.0, "inner_rate": 0.3}
OTHERS |= {"steps": 40, "validate_every": 10}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_no_option_that_is_ignored(name):
    """Catches an option in a group that the recipe never reads: each must change what is trained or tested."""
    recipe = mk.recipes.find(name)
    usual = described(built(name, steps=20))
    assert usual == described(built(name, steps=20)), "the same options must be the same experiment"
    for option in recipe.options().values():
        if option.name in ELSEWHERE:
            continue
        value = OTHERS.get(option.name, 2)
        if value == option.default:
            value = {"inductive": "transductive", "constant": "cosine", 10: 5, 2: 3}[value]
        elif isinstance(option.default, bool):
            value = not option.default
        elif option.name not in OTHERS and option.default is not None:
            # A learner with a rate for each step takes no more of them in the test.
            value = option.default + (-1 if option.name == "test_inner_steps" and option.default > 1 else 1)
        assert described(built(name, **{"steps": 20, option.name: value})) != usual, f"{name} ignores {option.name}"


def described(experiment):
    """What decides an experiment, with arrays by value and the optimiser by what it does."""
    # The Neural Statistician's learner is tested with numbers of training sets, of which blank pictures have none.
    learner = experiment.learner if "frozen" in experiment.words.norm else experiment.as_tested(experiment.learner)
    numbers, static = eqx.partition(learner, eqx.is_array)
    counts = [
        getattr(experiment, n) for n in ("steps", "meta_batch", "validate_every", "validation_tasks", "test_tasks")
    ]
    samplers = [
        [getattr(getattr(experiment, part), n, None) for n in ("way", "shot", "queries", "presentations", "points")]
        for part in ("train", "test")
    ]
    words = (experiment.seed, experiment.words.task, experiment.words.norm, experiment.origin.options.get("mirrored"))
    trained = str(eqx.filter(experiment.learner, eqx.is_array, inverse=True))
    return _bytes(numbers), trained, str(static), counts, str(samplers), words, _bytes(updates(experiment))


def updates(experiment):
    """What the optimiser makes of three gradients, of which the second is large."""
    if isinstance(experiment.rule, mk.train.TrustRegion):
        return ()
    params = eqx.filter(experiment.learner, mk.trainable(experiment.learner))
    state, found = experiment.optimiser.init(params), []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for size in (1.0, 100.0, 1.0):
            gradient = jax.tree.map(lambda leaf, size=size: jax.numpy.full_like(leaf, size), params)
            update, state = experiment.optimiser.update(gradient, state, params)
            found.append(update)
    return found


def _bytes(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_the_options_of_a_recipe_are_those_of_its_data():
    """Catches MAML on lines that has a way, or on built-in images that asks for a path."""
    maml = mk.recipes.find("maml")
    assert {"way", "norm_policy", "mirrored"} <= maml.options("glyphs").keys()
    assert not {"way", "norm_policy", "path", "mirrored"} & maml.options("linear").keys()
    assert {"path", "split", "trainval"} <= maml.options("omniglot").keys()
    assert not {"path", "split", "trainval"} & maml.options("glyphs").keys()


def test_published_defaults_follow_the_data():
    """Catches Glyphs' schedule of minutes taken for Omniglot."""
    steps = {data: mk.recipes.find("maml").settle({"data": data})["steps"] for data in ("glyphs", "omniglot", "linear")}
    assert steps == {"glyphs": 1200, "omniglot": 70_000, "linear": 15_000}


@pytest.mark.parametrize(("steps", "expected"), [(15_000, 1500), (1000, 1000), (5, 5), (9000, 1500), (20_000, 1250)])
def test_validations_follow_the_steps(steps, expected):
    """Catches `--steps 5` refused for a period that the user never gave."""
    assert mk.recipes.find("maml").settle({"data": "linear", "steps": steps})["validate_every"] == expected


def test_a_recipe_is_called_with_any_options():
    """Catches a recipe that Python cannot call as the command line does."""
    experiment = mk.recipes.rl_squared(steps=10, seed=3)
    assert (experiment.steps, experiment.seed, experiment.origin.name) == (10, 3, "rl-squared")
    with pytest.raises(mk.recipes.OptionError, match=r"has no option --stps\. Did you mean 'steps'"):
        mk.recipes.rl_squared(stps=10)
    with pytest.raises(AttributeError, match="has no recipe 'mamll'"):
        mk.recipes.mamll  # noqa: B018


def test_the_command_makes_the_run_again():
    """Catches a report whose command leaves out an option, or names one that is usual."""
    recipe = mk.recipes.find("maml")
    values = recipe.settle({"data": "linear", "shot": 7, "rate": 0.25})
    assert recipe.command(values) == "metakit train maml --data linear --shot 7 --rate 0.25"
    values = mk.recipes.find("reptile").settle({"data": "omniglot", "trainval": True, "mirrored": True, "devices": 1})
    words = mk.recipes.find("reptile").command(values)
    assert words == "metakit train reptile --data omniglot --mirrored --trainval"


@pytest.mark.parametrize(
    ("cores", "meta_batch", "platform", "expected"),
    [(2, 8, "cpu", 2), (2, 7, "cpu", 1), (1, 8, "cpu", 1), (16, 7, "cpu", 1), (2, 8, "gpu", 1)],
)
def test_as_many_devices_as_divide_the_tasks(monkeypatch, cores, meta_batch, platform, expected):
    """Catches devices that cannot share the tasks evenly, more of them than JAX shows, and cores counted on a GPU."""
    offered = []
    monkeypatch.setattr(_devices.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(_devices, "offer", offered.append)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert _devices.every_core(meta_batch) == expected
    assert len(offered) == 1
    assert meta_batch % offered[0] == 0


# What some recipes promise beyond their options


@pytest.mark.parametrize(("data", "moves"), [("omniglot", True), ("glyphs", False)])
def test_classes_are_moved_in_training_alone(data, moves):
    """Catches a memory network that is validated or tested on moved images, or trained on Omniglot without."""
    experiment = built("mann", data)
    assert isinstance(experiment.train.augment_class, mk.tasks.TurnAndShift) == moves
    assert experiment.val.augment_class is experiment.test.augment_class is None


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_input_gate_starts_about_the_inner_rate(rate):
    """Catches an --inner-rate of meta-lstm that is ignored, or taken for the gate before its sigmoid."""
    biases = [built("meta-lstm", inner_rate=rate, seed=seed).learner.update.input.bias for seed in range(30)]
    middle = np.log(rate / (1 - rate))
    assert np.abs(np.asarray(biases) - middle).max() < 0.5
    assert np.ptp(biases) > 0.5  # a range, uniform: 30 draws lie within half of it with probability 3e-8


@pytest.mark.parametrize(("trained", "expected"), [(1, (0.5, 0.25, 0.125)), (2, (0.5, 0.5, 0.25))])
def test_updates_beyond_those_of_training_go_half_as_far(trained, expected):
    """Catches rates of the test that reach into training, or that do not fall from update to update."""
    rates = built("rl-maml", inner_steps=trained).learner.inner.rates
    for rate in jax.tree.leaves(rates):
        np.testing.assert_allclose(rate, expected)


def test_metagan_over_maml_is_tested_as_maml_is():
    """Catches inner steps of the test, or an untrained network's long adaptation, that the base never hears of."""
    experiment = built("metagan-maml")
    assert experiment.learner.adapt_to_fakes
    assert experiment.learner.base.num_steps == 1
    assert experiment.as_tested(experiment.learner).base.num_steps == 3
    what, untrained = experiment.untrained
    assert (what, untrained.base.num_steps) == ("not meta-trained, adapted for 50 steps, without fakes", 50)
    assert untrained.num_fakes == 0
    assert float(untrained.loss.unlabelled_weight.value) == 0
    assert float(untrained.base.inner.rate.value) == pytest.approx(0.1)


def test_reptile_s_network_pools():
    """Strides, with which five times the steps reached two points less (docs/results.md)."""
    blocks = built("reptile", "omniglot").learner.model.blocks
    assert [(block.conv.stride, block.pool) for block in blocks] == [((1, 1), 2)] * 4


def test_omniglot_s_training_classes(monkeypatch):
    """Catches test or validation images that are mirrored, training without the classes that were asked for, and a
    report that does not say so."""

    def omniglot(path, *, split, part, size, rotations, download):
        count = {"train": 40, "val": 8, "trainval": 48, "test": 12}[part]
        return mk.tasks.ImagePool(np.zeros((count, 20, 1, 28, 28), "uint8"), names=[f"{part}{i}" for i in range(count)])

    monkeypatch.setattr(mk.tasks, "omniglot", omniglot)
    experiment = mk.recipes.reptile(data="omniglot", trainval=True, mirrored=True)
    counts = {part: len(names) for part, names in experiment.data.classes.items()}
    assert counts == {"train": 96, "val": 8, "test": 12}
    assert experiment.data.classes["train"][:2] == ("trainval0", "trainval0/mirrored")
    assert "those of val and mirror images among those of train" in experiment.words.data
    assert experiment.tested == "last"
    assert "Learner: the last one" in " ".join(experiment.words.notes)
    plain = mk.recipes.reptile(data="omniglot")
    assert len(plain.data.classes["train"]) == 40
    assert "among" not in plain.words.data
    assert plain.tested == "best"


@pytest.mark.parametrize(("trainval", "expected"), [(False, 64), (True, 72)])
def test_lake_s_training_classes(monkeypatch, trainval, expected):
    """Catches validation characters that are trained on unasked, or left out though they were asked for."""

    def omniglot(path, *, split, part, size, rotations, download):
        return mk.tasks.ImagePool(np.zeros((18, 20, 1, 28, 28), "uint8"))

    monkeypatch.setattr(mk.tasks, "omniglot", omniglot)
    pools = Omniglot(split="lake", trainval=trainval).pools(28)
    assert (len(pools["train"].names), len(pools["val"].names)) == (expected, 8)


ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = sorted(
    {
        found.strip()
        for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
        for found in re.findall(r"metakit train [a-z][a-z0-9-]*[^`#&|\n]*", page.read_text())
        if ".py:" not in found and "module:" not in found
    }
)
GENERAL = {"--run", "--resume", "--start-from", "--seeds", "--smoke", "--help", "--tensorboard", "--wandb", "--quiet"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_docs_are_commands(command):
    """Catches a figure whose command no longer exists, or asks for what its algorithm would not use."""
    words = command.replace("--seed S", "--seed 0").split()[2:]
    recipe = mk.recipes.find(words[0])
    data = words[words.index("--data") + 1] if "--data" in words else None
    known = {f"--{name.replace('_', '-')}" for name in recipe.options(data)} | GENERAL
    assert {word for word in words if word.startswith("--")} <= known
