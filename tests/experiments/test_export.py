"""A run exported, and used by a process that has JAX alone."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

import metakit as mk
from metakit.cli import main

SERVING = pathlib.Path(__file__).parents[2] / "examples" / "serving.py"


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


WITH_JAX_ALONE = """
import sys

class Never:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("metakit", "equinox", "optax", "safetensors", "lineax", "orbax", "jaxtyping"):
            raise ImportError(name + " must not be needed")

sys.meta_path.insert(0, Never())
import jax, numpy as np
given, found = np.load(sys.argv[1]), {}
sys.argv = sys.argv[2:]
source = open(sys.argv[0]).read()
exec(compile(source, sys.argv[0], "exec"))
"""

# In the names of the example: by its functions, so that nothing is rounded on the way.
CALLED = """
adapted = adapt(weights, given["x"], given["y"])
for count in (3, 5):
    found |= {f"{count} {i}": np.asarray(output) for i, output in enumerate(predict(adapted, given["q"][:count]))}
"""

# By its addresses: a first caller, and a second whose targets are others, before the first one asks.
ASKED = """
first, second = (ask("adapt", x=given["x"].tolist(), y=given[y].tolist())[0] for y in ("y", "z"))
for caller, who in ((first, "first"), (second, "second")):
    for name, output in ask("predict", x=given["q"].tolist(), **caller)[0].items():
        found[f"{who} {name}"] = np.asarray(output)
"""


def alone(code, exported, folder, **given):
    """Run the example without metakit, then some code in its names; returns what that found, and what was printed."""
    np.savez(folder / "given.npz", **given)
    program = f"{WITH_JAX_ALONE}{code}\nnp.savez({str(folder / 'found.npz')!r}, **found)"
    words = [str(folder / "given.npz"), str(SERVING), str(exported), "--measure", "2"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "found.npz"), done.stdout


def outputs_of(run, x, y, way, queries):
    key = jax.random.key(0)
    adapted = run.algorithm.adapt(run.learner, mk.Examples(jnp.asarray(x), jnp.asarray(y), way), key)
    return jax.tree.leaves(run.algorithm.predict(adapted, jnp.asarray(queries), key))


def trained(name, data, folder, drawings=None):
    recipe = mk.recipes.find(name)
    few = {"path": drawings, "way": 3, "queries": 2, "test_queries": 2} if data == "folder" else {}
    few |= {"test_way": 3} if "test_way" in recipe.options(data) else {}
    experiment = recipe.build(recipe.settle({"data": data, **few}, smoke=True))
    return mk.experiments.run(experiment, folder / "run", quiet=True)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    with jax.enable_x64(False):
        return trained("matching", "linear", tmp_path_factory.mktemp("lines"))


def check_alone(run, folder, *, shape, way=None):
    """Exported with two shots: the same outputs, of three queries and of five."""
    draw = np.random.default_rng(0)
    x = draw.random(((way or 1) * 2, *shape), np.float32)
    y = np.arange(len(x), dtype=np.int32) % way if way else draw.random((2, 1), np.float32)
    q = draw.random((5, *shape), np.float32)
    exported = mk.experiments.export(run, folder / "out", way=way, shot=2)
    found, _ = alone(CALLED, exported, folder, x=x, y=y, q=q)
    for count in (3, 5):
        for i, expected in enumerate(outputs_of(run, x, y, way, q[:count])):
            # Two compilations of one program in float32, through convolutions and an inner step.
            np.testing.assert_allclose(found[f"{count} {i}"], expected, rtol=2e-4, atol=2e-5)


def test_jax_alone_gives_the_same(lines, tmp_path):
    """Catches a fixed number of queries, weights in another order, or a library that is needed after all."""
    check_alone(lines, tmp_path, shape=(1,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"),
    [("maml", "linear"), ("np", "gp"), ("anp", "gp"), ("prototypical", "folder"), ("fomaml", "folder")],
)
def test_jax_alone_gives_the_same_for_other_learners(tmp_path, drawings, name, data):
    """Catches what one learner alone would not show: images, an inner loop, a key, two outputs."""
    run = trained(name, data, tmp_path, drawings)
    images = data == "folder"
    check_alone(run, tmp_path, shape=run.data.shape if images else (1,), way=3 if images else None)


def odd_adapt(learner, support, key=None):
    return learner, support.y.mean() + jax.random.normal(key, ())


def odd_predict(adapted, x, key=None):
    learner, shift = adapted
    outputs = x * learner["row"].astype(jnp.float32)[None] @ learner["turned"] + shift + learner["number"]
    return mk.Normal(outputs[:, :1], jnp.exp(outputs[:, 1:] + jax.random.normal(key, ())))


def test_weights_of_any_kind_arrive(lines, tmp_path):
    """Catches scalars that become vectors, bytes of another dtype or order, another key, and outputs mixed up."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    turned = jax.device_put(jnp.arange(6.0).reshape(3, 2), Format(Layout((1, 0)), here))
    assert not np.asarray(turned).flags.c_contiguous
    learner = {"row": jnp.arange(3, dtype=jnp.bfloat16), "turned": turned, "number": jnp.asarray(3, jnp.float32)}
    run = dataclasses.replace(lines, learner=learner, algorithm=mk.MetaLearner(odd_adapt, odd_predict, None))
    check_alone(run, tmp_path, shape=(1,))
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert [output["name"] for output in facts["outputs"]] == ["mean", "scale"]


def test_the_command_exports_and_the_example_serves(lines, tmp_path):
    """Catches a command that writes another artefact, and callers who are given one another's adaptation."""
    assert main(["export", str(lines.folder), "--shot", "2", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["support"]["x"]["shape"] == [2, 1]
    draw = np.random.default_rng(0)
    x, y, z, q = (draw.random((n, 1), np.float32) for n in (2, 2, 2, 4))
    found, printed = alone(ASKED, tmp_path / "out", tmp_path, x=x, y=y, z=z, q=q)
    for who, targets in (("first", y), ("second", z)):
        np.testing.assert_allclose(found[f"{who} y"], outputs_of(lines, x, targets, None, q)[0], rtol=2e-4, atol=2e-5)
    assert not np.allclose(found["first y"], found["second y"])
    assert [line.split(":")[0] for line in printed.splitlines()] == ["adapt", "predict"]
    assert printed.count("p50") == printed.count("p99") == 2


class OfImages(mk.experiments.Run):
    """A run on images without their training."""

    data = mk.experiments.DataRecord({"test": ("a", "b", "c")}, {}, (2, 1, 1))


def of_images(run, algorithm, learner=None, **options):
    return OfImages(run.folder, algorithm, learner, None, "mine", options, {}, True)


def test_the_example_gives_probabilities_of_classes(lines, tmp_path):
    """Catches logits that are sold as probabilities."""
    run = of_images(lines, mk.prototypical, mk.prototypical.Prototypical(lambda x: x.reshape(-1, 2)))
    exported = mk.experiments.export(run, tmp_path / "out", way=3, shot=1)
    x = np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1) / 6
    y, z, q = np.array([0, 1, 2]), np.array([2, 0, 1]), x[:2] + 0.01
    found, _ = alone(ASKED, exported, tmp_path, x=x, y=y, z=z, q=q)
    for who, labels in (("first", y), ("second", z)):
        (logits,) = outputs_of(run, x, labels, 3, q)
        np.testing.assert_allclose(found[f"{who} probabilities"], jax.nn.softmax(logits), rtol=1e-5, atol=1e-7)


def test_the_example_stays_short():
    """Catches an example that grows into a server: 40 lines of code beside its imports."""
    _, *code = SERVING.read_text().split('"""', 2)[2].split("import numpy as np\n")
    lines = [line for line in code[0].splitlines() if line.strip()]
    assert len(lines) <= 40


def test_platforms_are_those_asked_for(lines, tmp_path):
    """Catches an option that is not passed on; the default is the platform at hand."""
    for platforms, expected in ((("cpu", "cuda"), ["cpu", "cuda"]), (None, ["cpu"])):
        out = mk.experiments.export(lines, tmp_path / "-".join(expected), shot=1, platforms=platforms)
        assert json.loads((out / "export.json").read_text())["platforms"] == expected
        for name in ("adapt", "predict"):
            artefact = jax.export.deserialize(bytearray((out / f"{name}.bin").read_bytes()))
            assert list(artefact.platforms) == expected


@jax.jit
def callback(x):
    return x


def named_callback(adapted, x, key=None):
    return callback(mk.matching.predict(adapted, x, key))


def test_a_function_may_be_named_callback(lines, tmp_path):
    """Catches a learner that is refused for a name."""
    run = dataclasses.replace(lines, algorithm=mk.MetaLearner(mk.matching.adapt, named_callback, None))
    assert (mk.experiments.export(run, tmp_path / "out", shot=1) / "export.json").exists()


def calls_back(adapted, x, key=None):
    return jax.lax.map(lambda q: jax.pure_callback(lambda at: at, jax.ShapeDtypeStruct(q.shape, q.dtype), q), x)


def prints(adapted, x, key=None):
    jax.debug.print("{x}", x=x)
    return x


def counts_queries(adapted, x, key=None):
    return x if x.shape[0] > 3 else 2 * x


def sizes_queries(adapted, x, key=None):
    return x + np.zeros(x.shape, np.float32)


def fails(adapted, x, key=None):
    raise ValueError("no such luck")


def adapts_with_python(learner, support, key=None):
    return jax.pure_callback(lambda at: at, jax.ShapeDtypeStruct(support.x.shape, support.x.dtype), support.x)


def by(adapt, predict):
    return {"algorithm": mk.MetaLearner(adapt, predict, None)}


COUNTS = "the learner Matching of .* asks how many queries there are, which an artefact leaves open"
CALLS_BACK = "the learner Matching of .* cannot be exported: its {} calls back into Python"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"shot": 0}, "--shot must be at least 1, got 0"),
        ({}, {"shot": 1, "way": 3}, "--way would not be used"),
        ({}, {"shot": 1, "platforms": ("cdua",)}, "--platforms cdua is not known. Did you mean 'cuda'"),
        ({"finished": False}, {"shot": 1}, "is not finished"),
        ({"options": {"data": "bandits"}}, {"shot": 1}, "was trained in environments: it learns by acting"),
        ({"learner": {"key": jax.random.key(0)}}, {"shot": 1}, "holds random keys"),
        (by(mk.matching.adapt, calls_back), {"shot": 1}, CALLS_BACK.format("predict")),
        (by(mk.matching.adapt, prints), {"shot": 1}, CALLS_BACK.format("predict")),
        (by(adapts_with_python, calls_back), {"shot": 1}, CALLS_BACK.format("adapt")),
        (by(mk.matching.adapt, counts_queries), {"shot": 1}, COUNTS),
        (by(mk.matching.adapt, sizes_queries), {"shot": 1}, COUNTS),
        (by(mk.matching.adapt, fails), {"shot": 1}, "the learner Matching of .* cannot be exported: no such luck"),
    ],
)
def test_what_cannot_be_exported_says_why(lines, tmp_path, change, options, message):
    """Catches a page of jax.export's, or half an artefact left behind."""
    with pytest.raises(mk.experiments.ExportError, match=message) as refused:
        mk.experiments.export(dataclasses.replace(lines, **change), tmp_path / "out", **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def of_five_classes(learner, support, key=None):
    if learner == "checks" and support.way != 5:
        raise ValueError("build the model with another out_size")
    return support.x


def five_outputs(adapted, x, key=None):
    return jnp.zeros((x.shape[0], 5))


@pytest.mark.parametrize(
    ("learner", "options", "way", "message"),
    [
        ("checks", {"way": 5}, 3, "has an output for each of 5 classes, not 3. Give --way 5"),  # the recipe says so
        ("trusts", {}, 3, "has an output for each of 5 classes, not 3. Give --way 5"),  # its outputs do
        ("trusts", {}, None, "--way must be at least 2 for a run on images, got None"),
        ("trusts", {}, 1, "--way must be at least 2 for a run on images, got 1"),
    ],
)
def test_a_way_that_the_network_has_not_is_refused(lines, tmp_path, learner, options, way, message):
    """Catches an artefact that answers three classes with five logits, and advice to build another model."""
    run = of_images(lines, mk.MetaLearner(of_five_classes, five_outputs, None), learner, **options)
    with pytest.raises(mk.experiments.ExportError, match=message):
        mk.experiments.export(run, tmp_path / "out", way=way, shot=1)
    assert not (tmp_path / "out").exists()


def test_an_export_is_never_written_over(lines, tmp_path):
    """Catches yesterday's artefact lost to today's."""
    (tmp_path / "yesterday").touch()
    with pytest.raises(mk.experiments.ExportError, match="exists and is not empty"):
        mk.experiments.export(lines, tmp_path, shot=1)
    with pytest.raises(mk.experiments.ExportError, match="exists and is not empty"):
        mk.experiments.export(lines, tmp_path / "yesterday", shot=1)


@pytest.mark.parametrize("package", ["safetensors", "flatbuffers"])
def test_a_missing_extra_is_one_sentence(lines, tmp_path, monkeypatch, package):
    """Catches a traceback for a package that only exports need."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf'{package} is not installed\. Install it with pip install "metakit\[export\]"'
    ):
        mk.experiments.export(lines, tmp_path / "out", shot=1)
    assert not (tmp_path / "out").exists()
