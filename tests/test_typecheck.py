"""Type-check errors: one sentence that names the argument, what was given, what was expected, what to try."""

import importlib
import inspect
import pathlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

import metakit as mk
from metakit._wording import describe, public_name

MODEL = mk.nn.MLP(1, 1, width=4, depth=1, key=jax.random.key(0))
LEARNER = mk.maml.MAML(MODEL, inner=mk.inner.SGD(0.01), num_steps=1, loss=mk.losses.squared_error)
TASKS = mk.tasks.Sinusoid()
EPISODE = TASKS(jax.random.key(1))
ADAPTED = mk.maml.adapt(LEARNER, EPISODE.support)
POOL = mk.tasks.ImagePool(np.zeros((5, 4, 1, 4, 4), "uint8"))
SGD = optax.sgd(0.1)
COUNTS = {"num_steps": 1, "meta_batch": 1}

MISTAKES = {
    "an episode to adapt": (
        lambda: mk.maml.adapt(LEARNER, EPISODE),
        "mk.maml.adapt: support must be Examples, got an Episode. An episode holds both sets: give episode.support to "
        "adapt.",
    ),
    "the support to meta_loss": (
        lambda: mk.maml.meta_loss(LEARNER, EPISODE.support),
        "mk.maml.meta_loss: task must be Episode, got an Examples. Give the whole episode, support and query.",
    ),
    "a learner to predict": (
        lambda: mk.maml.predict(LEARNER, EPISODE.query.x),
        "mk.maml.predict: adapted must be Adapted, got a MAML. Give what adapt(learner, support) returned.",
    ),
    "another learner's adapted": (
        lambda: mk.matching.predict(ADAPTED, EPISODE.query.x),
        "mk.matching.predict: adapted must be mk.matching.Adapted, got mk.maml.Adapted. Take adapt and predict of one "
        "namespace.",
    ),
    "an adapted learner to a loss": (
        lambda: mk.losses.squared_error(ADAPTED, EPISODE.query.y, reduction="mean"),
        'mk.losses.squared_error: outputs must be Float[Array, "n *out"], got an Adapted.',
    ),
    "an adapted learner to meta_loss": (
        lambda: mk.maml.meta_loss(ADAPTED, EPISODE),
        "mk.maml.meta_loss: learner must be MAML, got an Adapted. Give the learner itself, not what adapt returned.",
    ),
    "a seed to a constructor": (
        lambda: mk.nn.MLP(1, 1, width=4, depth=1, key=0),
        "mk.nn.MLP: key must be a random key, got 0. Make one with jax.random.key(seed).",
    ),
    "an old key": (
        lambda: mk.train.init(LEARNER, SGD, key=jax.random.PRNGKey(0)),
        "mk.train.init: key must be a random key, got uint32[2]. That is a key of the old style: make it with "
        "jax.random.key(seed).",
    ),
    "a seed": (
        lambda: mk.train.init(LEARNER, SGD, key=0),
        "mk.train.init: key must be a random key, got 0. Make one with jax.random.key(seed).",
    ),
    "keys": (
        lambda: mk.maml.adapt(LEARNER, EPISODE.support, jax.random.split(jax.random.key(0), 3)),
        "mk.maml.adapt: key must be a random key or None, got key<fry>[3]. One call takes one key: a batch of keys "
        "goes through eqx.filter_vmap.",
    ),
    "a learner to run_steps": (
        lambda: mk.train.run_steps(mk.maml, SGD, LEARNER, TASKS, **COUNTS),
        "mk.train.run_steps: state must be TrainState, got a MAML. Give what mk.train.init(learner, optimiser, "
        "key=key) or the step before returned.",
    ),
    "an optimiser's name": (
        lambda: mk.train.init(LEARNER, "adam", key=jax.random.key(0)),
        "mk.train.init: optimiser must be GradientTransformation, got 'adam'. Give an optax optimiser, such as "
        "optax.adam(1e-3).",
    ),
    "a shape": (
        lambda: mk.losses.cross_entropy(jnp.zeros((3, 4)), jnp.arange(5, dtype="int32"), reduction="sum"),
        'mk.losses.cross_entropy: targets must be Int[Array, "n"] with n=3, got int32[5].',
    ),
    "numpy": (
        lambda: mk.maml.predict(ADAPTED, np.zeros((3, 1), "float32")),
        'mk.maml.predict: x must be Shaped[Array, "n *in"] or dict or tuple, got numpy float32[3,1]. Convert it with '
        "jnp.asarray(x).",
    ),
    "a call of a layer": (
        lambda: mk.nn.Linear(1, 1, key=jax.random.key(0))("x"),
        "mk.nn.Linear: x must be Float[Array, \"n *in\"], got 'x'.",
    ),
    "numpy of another type": (
        lambda: mk.losses.cross_entropy(jnp.zeros((2, 3)), np.zeros(2), reduction="sum"),
        'mk.losses.cross_entropy: targets must be Int[Array, "n"] with n=2, got numpy float64[2].',
    ),
    "a constructor": (
        lambda: mk.tasks.Episodes("images", 5, 1, 1),
        "mk.tasks.Episodes: pool must be ImagePool, got 'images'.",
    ),
    "an option": (
        lambda: mk.tasks.Episodes(POOL, 5, 1, 1, rotate="per-class"),
        "mk.tasks.Episodes: rotate must be 'none' or 'per_class', got 'per-class'. Did you mean 'per_class'? Known: "
        "none, per_class.",
    ),
    "a whole number of numpy's": (
        lambda: mk.maml.with_num_steps(LEARNER, np.int64(2)),
        "mk.maml.with_num_steps: num_steps must be int, got np.int64(2) of numpy. Convert it with int(num_steps).",
    ),
    "a fraction of a step": (
        lambda: mk.maml.with_num_steps(LEARNER, 2.5),
        "mk.maml.with_num_steps: num_steps must be int, got 2.5.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_sentence(name):
    """Catches an error that prints the whole learner, or leaves out which argument was wrong."""
    call, message = MISTAKES[name]
    with pytest.raises(TypeCheckError) as caught:
        call()
    assert str(caught.value) == message
    assert isinstance(caught.value, TypeError)


def test_the_innermost_call_speaks():
    """Catches an outer function that claims its callback's error for one of its own arguments."""
    bad = mk.MetaLearner(
        None, None, lambda learner, task, key=None: mk.losses.squared_error(learner, "x", reduction="mean")
    )
    state = mk.train.init(jnp.ones((2, 1)), SGD, key=jax.random.key(0))
    with pytest.raises(TypeCheckError, match=r"^mk\.losses\.squared_error: targets must be .*, got 'x'\.\n"):
        mk.train.run_steps(bad, SGD, state, jax.random.normal, **COUNTS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (jnp.zeros((2, 3), "float32"), "float32[2,3]"),
        ("x" * 100, "'" + "x" * 56 + "..."),
        (mk.maml, "the module metakit.learners.maml"),
        (mk.tasks.Sinusoid, "the class Sinusoid"),
        (len, "the function len"),
        (TASKS, "a Sinusoid"),
        (np.float32(1), "np.float32(1.0) of numpy"),
        (EPISODE, "an Episode"),
    ],
    ids=range(8),
)
def test_values_in_a_few_words(value, words):
    """Catches a value that is printed whole."""
    assert describe(value) == words


def test_the_learner_of_a_state_that_was_used_is_named():
    """Catches "Buffer has been deleted or donated" where a training's old state is used in place of the new one."""
    state = mk.train.init(LEARNER, SGD, key=jax.random.key(0))
    mk.train.run_steps(mk.maml, SGD, state, TASKS, **COUNTS)
    with pytest.raises(ValueError, match=r"an array among the arguments was given away.* Use the state that they"):
        mk.maml.adapt(state.learner, EPISODE.support)


def test_an_error_that_is_not_ours_keeps_its_cause():
    """Catches the cause of a user's own error, or of a wrong result, lost on the way through a checked function."""
    cause = KeyError("the user's")

    def sampler(key):
        raise TypeCheckError("the user's own") from cause

    state = mk.train.init(LEARNER, SGD, key=jax.random.key(0))
    with pytest.raises(TypeCheckError, match=r"^the user's own") as caught:
        mk.train.run_steps(mk.maml, SGD, state, sampler, **COUNTS)
    assert caught.value.__cause__ is cause


def _public():
    """Every function and class of the library whose name has no underscore, private modules' included."""
    root = pathlib.Path(mk.__file__).parent
    for module in pkgutil.walk_packages([str(root)], "metakit."):
        if "cli" in module.name or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == module.name:
                yield value


def _checked():
    """Every function, method and constructor whose types are checked, and how it is called."""
    for value in _public():
        inside = vars(value).items() if isinstance(value, type) else [("", value)]
        for method, function in inside:
            is_public = not method.startswith("_") or method in ("__init__", "__call__")
            if is_public and inspect.isfunction(function) and hasattr(function, "__wrapped__"):
                yield value if method in ("", "__init__", "__call__") else function, function


def test_names_in_errors_can_be_called():
    """Catches an error that speaks of `mk.maml._functions.adapt`, or of a name that is nowhere."""
    wrong, checked = [], list(_checked())
    for called, function in checked:
        found = mk
        for part in public_name(function).split(".")[1:]:
            found = getattr(found, part, None)
        if found is not called:
            wrong.append(f"{function.__module__}: {public_name(function)}")
    assert wrong == []
    assert len(checked) > 100


def test_every_constructor_that_takes_a_key_checks_it():
    """Catches a network whose first line fails inside JAX for a seed in place of a key."""
    unchecked, found = [], 0
    for kind in _public():
        if isinstance(kind, type) and "__init__" in vars(kind) and public_name(kind).startswith("mk."):
            parameter = inspect.signature(kind.__init__).parameters.get("key")
            if parameter is not None and parameter.kind is parameter.KEYWORD_ONLY:
                found += 1
                unchecked += [] if hasattr(kind.__init__, "__wrapped__") else [kind]
    assert unchecked == []
    assert found > 20
