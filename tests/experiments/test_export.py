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

import metakit as mk
from metakit.cli import main

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


# Reads the artefacts as the example does, with everything of metakit's kept out.
ALONE = """
import json, pathlib, sys

class Never:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("metakit", "equinox", "optax", "safetensors", "lineax", "orbax"):
            raise ImportError(name + " must not be needed")

sys.meta_path.insert(0, Never())
import jax, jax.export, numpy as np
folder = pathlib.Path(sys.argv[1])
facts = json.loads((folder / "export.json").read_text())
raw = (folder / "weights.safetensors").read_bytes()
start = 8 + int.from_bytes(raw[:8], "little")
header = json.loads(raw[8:start])
kinds = {"F32": np.float32, "I32": np.int32, "U32": np.uint32, "BOOL": np.bool_}
weights = []
for name in facts["weights"]:
    first, last = (start + offset for offset in header[name]["data_offsets"])
    weights.append(np.frombuffer(raw[first:last], kinds[header[name]["dtype"]]).reshape(header[name]["shape"]))
given = np.load(sys.argv[2])
adapt, predict = (jax.export.deserialize((folder / (n + ".bin")).read_bytes()) for n in ("adapt", "predict"))
adapted = adapt.call(weights, given["x"], given["y"])
found = {f"o{n}_{i}": np.asarray(o) for n in (3, 5) for i, o in enumerate(predict.call(adapted, given["q"][:n]))}
np.savez(sys.argv[3], **found)
"""


def exported(name, data, folder, drawings, **options):
    recipe = mk.recipes.find(name)
    few = {"path": drawings, "way": 3, "queries": 2, "test_queries": 2} if data == "folder" else {}
    few |= {"test_way": 3} if "test_way" in recipe.options(data) else {}
    run = mk.experiments.run(recipe.build(recipe.settle({"data": data, **few}, smoke=True)), folder / "run", quiet=True)
    mk.experiments.export(run, folder / "out", **options)
    return run


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("matching", "linear"),
        pytest.param("maml", "linear", marks=pytest.mark.slow),
        pytest.param("cnp", "gp", marks=pytest.mark.slow),
        pytest.param("prototypical", "folder", marks=pytest.mark.slow),
        pytest.param("fomaml", "folder", marks=pytest.mark.slow),
    ],
)
def test_jax_alone_gives_the_same(tmp_path, drawings, name, data):
    """Catches a fixed number of queries, weights in another order, or a library that is needed after all."""
    images = data == "folder"
    run = exported(name, data, tmp_path, drawings, **({"way": 3} if images else {}), shot=2)
    draw = np.random.default_rng(0)
    shape = run.data.shape if images else (1,)
    x = draw.random((6 if images else 2, *shape), np.float32)
    y = np.arange(6, dtype=np.int32) % 3 if images else draw.random((2, 1), np.float32)
    q = draw.random((5, *shape), np.float32)
    np.savez(tmp_path / "given.npz", x=x, y=y, q=q)
    command = [sys.executable, "-c", ALONE, *(str(tmp_path / f) for f in ("out", "given.npz", "found.npz"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    key = jax.random.key(0)
    adapted = run.algorithm.adapt(run.learner, mk.Examples(jnp.asarray(x), jnp.asarray(y), 3 if images else None), key)
    for count in (3, 5):
        outputs = jax.tree.leaves(run.algorithm.predict(adapted, jnp.asarray(q[:count]), key))
        for i, expected in enumerate(outputs):
            # Two compilations of one program in float32, through convolutions and an inner step.
            np.testing.assert_allclose(found[f"o{count}_{i}"], expected, rtol=2e-4, atol=2e-5)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    with jax.enable_x64(False):
        return exported("matching", "linear", folder, None, shot=3), folder


def test_the_command_exports_and_the_example_serves(lines, tmp_path):
    """Catches a command that writes another artefact, and an example that no longer serves it."""
    run, _ = lines
    assert main(["export", str(run.folder), "--shot", "2", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["support"]["x"]["shape"] == [2, 1]
    command = [sys.executable, str(EXAMPLES / "serving.py"), str(tmp_path / "out"), "--measure", "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["adapt", "predict"]
    assert done.stdout.count("p99") == 2


def calls_back(adapted, x, key=None):
    return jax.pure_callback(lambda q: q, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"shot": 0}, "--shot must be at least 1, got 0"),
        ({}, {"shot": 1, "way": 3}, "--way would not be used"),
        ({"finished": False}, {"shot": 1}, "is not finished"),
        ({"options": {"data": "bandits"}}, {"shot": 1}, "was trained in environments: it learns by acting"),
        (
            {"algorithm": mk.MetaLearner(mk.matching.adapt, calls_back, None)},
            {"shot": 1},
            "the learner Matching of .* cannot be exported: it calls back into Python",
        ),
    ],
)
def test_what_cannot_be_exported_says_why(lines, tmp_path, change, options, message):
    """Catches a page of jax.export's, or half an artefact left behind."""
    run, _ = lines
    with pytest.raises(mk.experiments.ExportError, match=message):
        mk.experiments.export(dataclasses.replace(run, **change), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_export_is_never_written_over(lines):
    """Catches yesterday's artefact lost to today's."""
    run, folder = lines
    with pytest.raises(mk.experiments.ExportError, match="exists and is not empty"):
        mk.experiments.export(run, folder / "out", shot=1)


def test_a_missing_extra_is_one_sentence(lines, tmp_path, monkeypatch):
    """Catches a traceback for a package that only exports need."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(
        ImportError, match=r'safetensors is not installed\. Install it with pip install "metakit\[export\]"'
    ):
        mk.experiments.export(lines[0], tmp_path / "out", shot=1)
