"""Every preset gives what it gave before experiments and recipes were a library.

`recorded.json` was written by metakit 0.1 for all presets at --smoke: a hash of the learner's arrays, the losses, and
the test scores with their baselines. A preset that is changed on purpose is listed in `CHANGED` with the reason.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

import metakit as mk

HERE = pathlib.Path(__file__).parent
RECORDED = json.loads((HERE / "recorded.json").read_text())
# Where the last bits were made: another version of JAX, or another processor, rounds otherwise.
MADE_WITH = {"jax": "0.10.2", "processor": "AMD EPYC", "cores": 2}
CHANGED: dict[str, str] = {}


# All presets take half an hour of two cores: of most recipes the first data set is run, of MAML each. All of them with
# METAKIT_RECORD=all, which is for who changes what they stand on.
EVERYTHING = os.environ.get("METAKIT_RECORD") == "all"


PRESETS = [
    (name, data)
    for name in mk.recipes.names()
    for i, data in enumerate(mk.recipes.find(name).data)
    if EVERYTHING or name == "maml" or i == 0
]


def here():
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    model = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")), "")
    return {"jax": jax.__version__, "processor": model, "cores": len(os.sched_getaffinity(0))}


def test_all_presets_are_recorded():
    """Catches a preset that was lost in a redesign, or a new one that nothing holds."""
    assert {f"{name} {data}" for name in mk.recipes.names() for data in mk.recipes.find(name).data} == set(RECORDED)
    assert set(CHANGED) <= set(RECORDED)


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="the record was made on Linux")
@pytest.mark.parametrize(("name", "data"), PRESETS)
def test_a_preset_gives_what_it_gave(name, data, tmp_path):
    """Catches a redesign that draws other tasks, starts from other numbers, or tests another learner: bit for bit where
    the record was made, and to rounding elsewhere."""
    omniglot = pathlib.Path(os.environ.get("METAKIT_TEST_DATA", HERE.parents[2] / "shared" / "data")) / "omniglot"
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_PLATFORMS")}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        "METAKIT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    if data == "omniglot" and not (omniglot / "images_background.zip").exists():
        pytest.skip(f"needs Omniglot's zips in {omniglot}")
    environment["METAKIT_RECORD_OMNIGLOT"] = str(omniglot)
    command = [sys.executable, str(HERE / "record_presets.py"), str(tmp_path), name, data]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    now, preset = json.loads(done.stdout.splitlines()[-1]), f"{name} {data}"
    then = RECORDED[preset]
    if preset in CHANGED:
        return
    assert now["numbers"] == then["numbers"]
    if here() == MADE_WITH:
        kept = {row: score for row, score in now["scores"].items() if row in then["scores"]}
        assert {**now, "scores": kept} == then
    else:
        # Four steps of Adam at 1e-3 to 1e-2: where rounding turns the sign of a gradient that is 0 but for it, a weight
        # ends elsewhere by as much; the sum of all weights hardly.
        assert now["abs_sum"] == pytest.approx(then["abs_sum"], rel=2e-3)
        np.testing.assert_allclose(now["losses"][0], then["losses"][0], rtol=2e-2)
