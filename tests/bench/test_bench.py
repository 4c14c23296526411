"""The benchmarks at a size that says nothing about speed: sides agree, a wrong one is caught, a missing one is said."""

import dataclasses
import functools
import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from bench import bilevel_exact, compare, flops, maps, measure, operations, report, scaling, targets, workers, workloads

HELLO = {
    "python": "3",
    "jax": "0",
    "equinox": "0",
    "optax": "0",
    "platform": "cpu",
    "device": "cpu",
    "devices": 1,
    "cores": 2,
}
ALONE = measure.Machine(HELLO)
WITH_TORCH = measure.Machine(HELLO | {"torch": "2"}, peer_python="python")


def silent(text):
    del text


def test_multiply_adds_of_the_published_networks():
    """A wrong size of a feature map would make every fraction of the machine's rate wrong."""
    # Conv4-64 on 28x28: 784*9*64 + 196*36864 + 49*36864 + 9*36864 multiply-adds, and a head of 64*5.
    assert flops.forward(workloads.WORKLOADS["conv4_heavy"]) == (2 * 451_584, 2 * (254 * 36_864 + 320))
    # Strides halve upwards: 14, 7, 4, 2.
    assert flops.forward(workloads.WORKLOADS["omniglot_paper"]) == (2 * 112_896, 2 * (69 * 36_864 + 320))


@pytest.mark.parametrize(
    ("name", "published"),
    [("omniglot_paper", 318e6), ("conv4_heavy", 5.3e9), ("proto60", 21e9), ("mini84", 25e9)],
)
def test_work_is_what_was_counted_before_less_what_the_first_layer_saves(name, published):
    """Forgetting the second order, or counting the data's gradient, would give another number."""
    workload = workloads.WORKLOADS[name]
    first, later = flops.forward(workload)
    inner, query = workload.inner_steps * workload.support, workload.query
    if workload.learner == "prototypical":
        inner, query = 0, workload.support + workload.query
    everywhere = (first + later) * (9 * inner + 3 * query)
    saved = first * (5 * inner + query)
    assert everywhere == pytest.approx(published, rel=0.02)
    assert flops.step(workload) == workload.tasks * (everywhere - saved)


def gradient(**changes):
    values = {
        "loss": np.float64(1.0),
        "gradient/conv0.weight": np.array([3.0, -4.0]),
        "gradient/conv0.bias": np.zeros(2),
    }
    return values | {f"gradient/{name}": np.array(value) for name, value in changes.items()}


def test_a_difference_is_relative_to_the_largest_number_of_its_leaf():
    """Relative to each number it would be huge where one is near zero; absolute, tiny in small leaves."""
    found = compare.difference(gradient(), gradient() | {"gradient/conv0.weight": np.array([3.0, -4.4])})
    assert found.where == "gradient/conv0.weight"
    assert found.relative == pytest.approx(0.4 / 4.4)


def test_rounding_in_a_gradient_that_vanishes_is_no_disagreement():
    """A bias before batch norm has gradient zero, so its own size is rounding too and relative to that all is wrong."""
    noisy = gradient() | {"gradient/conv0.bias": np.array([1e-15, -2e-15])}
    assert compare.require_same(gradient(), noisy, "two").relative < 1e-14


@pytest.mark.parametrize("value", [[3.0, -4.00001], [np.nan, -4.0]])
def test_a_wrong_leaf_is_named(value):
    """A comparison that NaN passes, or that only looks at the loss."""
    with pytest.raises(compare.Disagreement, match=r"ours and theirs: gradient/conv0\.weight differs"):
        compare.require_same(gradient(), gradient() | {"gradient/conv0.weight": np.array(value)}, "ours and theirs")


def test_a_missing_leaf_is_a_disagreement():
    """Comparing only the leaves in common would let a side forget a parameter."""
    theirs = gradient()
    del theirs["gradient/conv0.bias"]
    with pytest.raises(compare.Disagreement, match=r"conv0\.bias"):
        compare.difference(gradient(), theirs)


def test_a_side_with_other_data_is_caught(tmp_path, monkeypatch):
    """Through real processes: one side's images are changed by one part in a thousand of one pixel."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    workload = workloads.smoke(workloads.WORKLOADS["proto60"])
    right, wrong = tmp_path / "right.npz", tmp_path / "wrong.npz"
    workloads.write(workload, right)
    arrays = dict(np.load(right))
    arrays["data/query_x"][0, 0, 0, 3, 3] *= 1.001
    np.savez(wrong, **arrays)
    ours, theirs = measure.Side("metakit", "metakit"), measure.Side("JAX", "naive")
    with pytest.raises(compare.Disagreement, match=r"metakit and JAX: .* differs by"):
        measure.check([ours, theirs], ALONE, tmp_path, silent, lambda side: wrong if side is theirs else right)


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_tasks_are_spread_where_they_can_be(name):
    """Twenty-five tasks on two devices would stop the whole run in its first workload."""
    workload = workloads.WORKLOADS[name]
    spread = any(side.devices > 1 for side in measure.sides(workload, WITH_TORCH))
    assert spread == (name in {"omniglot_paper", "conv4_heavy", "mini84", "meta_test"})


def test_a_worker_reports_what_went_wrong():
    """An error inside a worker must not look like an answer, and must not leave us waiting."""
    with workers.jax_worker("metakit") as worker, pytest.raises(workers.WorkerError, match="FileNotFoundError"):
        worker.ask("load", path="/nowhere.npz")


def test_shared_weights_come_back_as_they_went():
    """A head whose features are ordered otherwise, or a kernel mirrored once, agrees in shape and nothing else."""
    side = pytest.importorskip("bench.metakit_side")
    for name in ("omniglot_paper", "mini84"):
        workload = workloads.smoke(workloads.WORKLOADS[name])
        for leaf, value in workloads.weights(workload, np.random.default_rng(0)).items():
            there = side.to_metakit(workload, leaf, value)
            assert np.array_equal(side.from_metakit(workload, leaf, there), value)


def measured(*, torch: bool, ours: float = 50.0, theirs: float = 100.0):
    """A record as `measure` makes it, with invented times."""
    workload = workloads.WORKLOADS["conv4_heavy"]
    rows = measure.sides(workload, WITH_TORCH if torch else ALONE)
    peak = {"process": 2**28, "device": None}
    facts = {
        row.worker: {"cold": {"first": 5.0, "second": 1.0}, "start_bytes": peak, "peak_bytes": peak} for row in rows
    }
    facts["metakit 1"] |= {
        "cached": {"first": 2.0, "second": 1.0},
        "temporary_bytes": 2**20,
        "temporary_bytes_8x_tasks": 2**20,
    }
    times = {row.name: [ours if row.kind == "metakit" else theirs] * 3 for row in rows}
    one = {
        "workload": dataclasses.asdict(workload),
        "flop": 10**9,
        "sides": {row.name: dataclasses.asdict(row) | {"worker": row.worker} for row in rows},
        "times": {"milliseconds": times, "workers": facts, "matmul_flop_per_second": 1e11},
    }
    hello = HELLO | ({"torch": "2"} if torch else {})
    return {"machine": hello, "smoke": False, "workloads": {workload.name: one}}


def test_a_missing_peer_is_said():
    """A table without its peer's rows, and without a word, reads as if there were nothing to compare with."""
    text = report.markdown(measured(torch=False))
    assert "No PyTorch here" in text
    assert "no PyTorch" in text.splitlines()[0]
    assert "no peer" in text
    assert "| not measured | 1.5x | 2.3x |" in text


@pytest.mark.parametrize("width", [80, 170])
def test_a_terminal_of_any_width_shows_every_side(width):
    """In 80 columns a table of nine columns cuts "PyTorch loop" to "PyTor..."."""
    console = Console(width=width, record=True, file=io.StringIO())
    report.show(measured(torch=True), console)
    text = console.export_text()
    assert "PyTorch loop" in text
    assert "process peak" in text
    assert "…" not in text


def test_a_named_peer_that_is_none_is_refused():
    """Whoever names a Python wants its figures; going on without would lose an hour."""
    with pytest.raises(ValueError, match="cannot import torch"):
        workers.find_torch("/nowhere/python")


def test_figures_are_held_to_their_targets():
    """A ratio upside down turns the slower side into the winner."""
    text = report.markdown(measured(torch=True))
    assert "| 2x | 1.5x | 2.3x | met | metakit : PyTorch loop |" in text
    text = report.markdown(measured(torch=True, ours=200.0))
    assert "| 0.5x | 1.5x | 2.3x | NOT MET | metakit : PyTorch loop |" in text


def test_every_target_names_a_side_that_exists():
    """A renamed side would leave its target unmeasured for ever."""
    for target in targets.TARGETS:
        rows = {row.name for row in measure.sides(workloads.WORKLOADS[target.workload], WITH_TORCH)}
        assert set(target.peers) <= rows, target


def test_an_error_that_is_no_number_is_beyond_its_limit():
    """Python's max(0.0, nan) is 0.0: a leaf of NaN would be reported as exact."""
    ones, wrong = {"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2), "b": np.full(2, np.nan)}
    error = bilevel_exact._relative(wrong, ones)
    assert np.isnan(error)
    for bad in (error, 2e-8):
        with pytest.raises(AssertionError, match=r"agreement, jvp: .*at most 1e-08"):
            bilevel_exact.require({"agreement": {"jvp": bad}}, {"agreement": {"jvp": 1e-8}})


def test_growth_in_units_of_the_parameters():
    """Dividing by steps instead of by the steps added would hide a constant."""
    points = [{"line": "a", "x": 5, "bytes": 1000}, {"line": "a", "x": 10, "bytes": 1000 + 5 * 40}]
    assert scaling.growth(points, parameters=10) == {"a": 1.0}


def run(*arguments):
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=workers.ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_the_command_runs_workloads(name, tmp_path):
    """What CI holds: every side that is here answers, and agrees with metakit in float64."""
    options = ["--smoke", "--repeat", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    done = run("tests.bench", *options, "--workloads", name)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "bench.json").read_text())
    assert list(record["workloads"]) == [name]
    one = record["workloads"][name]
    assert all(one["times"]["milliseconds"].values())
    assert {"metakit", *one["differences"]["float64"]} <= set(one["sides"])
    expected = set() if name == "proto60" else {"metakit, 2 host devices"}
    expected |= {"JAX, vmap(lax.conv)"} if name in {"omniglot_paper", "conv4_heavy", "proto60", "mini84"} else set()
    assert expected <= set(one["differences"]["float64"])
    assert all(found["relative"] < compare.TOLERANCE for found in one["differences"]["float64"].values())
    assert ("No PyTorch here" in (tmp_path / "bench.md").read_text()) == ("torch" not in record["machine"])


@pytest.mark.parametrize("name", ["output", "input_gradient", "weight_gradient"])
def test_both_forms_of_a_map_are_timed(name):
    """A form that is not put in the place of the choice would time the same program twice."""
    layer = maps.Layer(2, 8, 3, 4)
    assert all(rate > 0 for rate in maps.rates(layer, name, rounds=1, tasks=2).values())
    texts = []
    for use_xla in maps.FORMS.values():
        with maps.form(use_xla):
            one = [operand[0] for operand in maps.operands(layer, name, 1)]
            function = functools.partial(getattr(maps.maps, name), geometry=layer.geometry, platform="cpu")
            texts.append(jax.jit(function).lower(*one).as_text())
    assert ["convolution" in text for text in texts] == [True, False]


def test_a_peak_is_held_to_the_peers():
    """Dividing theirs by ours would call the larger one reached."""
    record = measured(torch=True)
    facts = record["workloads"]["conv4_heavy"]["times"]["workers"]
    facts["metakit 1"] = facts["metakit 1"] | {"peak_bytes": {"process": 2**27, "device": None}}
    assert "| process peak, in PyTorch loop's | 0.5 |  | 1 | stretch | metakit |" in report.markdown(record)
    facts["metakit 1"] = facts["metakit 1"] | {"peak_bytes": {"process": 2**29, "device": 2**20}}
    assert "| process peak, in PyTorch loop's | 2 |  | 1 | reported | metakit |" in report.markdown(record)
    assert "; device 1" in report.markdown(record)


def test_operations_of_one_kind_are_one_row():
    """A name that keeps its number would give each operation a row of its own."""
    kinds = [operations.kind(name) for name in ("add_select_fusion.12", "dot", "dot.3.clone.1", "ynn_fusion_4")]
    assert kinds == ["add_select_fusion", "dot", "dot.3.clone", "ynn_fusion"]


@pytest.mark.slow
@pytest.mark.optimised
def test_the_time_of_a_step_is_told_by_operation():
    """An event that lost its name, or counted a loop beside what runs in it, would leave an empty or doubled table."""
    found = operations.of_workload("sinusoid", operations.Options(smoke=True))
    assert found.step > 0
    # One inner step through three layers: six products at least, there and back, in every step.
    products = [name for name in found.milliseconds if name.startswith(("ynn", "dot"))]
    assert sum(found.count[name] for name in products) >= 6
    assert not {"while", "call"} & set(found.milliseconds)


@pytest.mark.slow
def test_scaling_curves_are_drawn(tmp_path):
    """A curve whose programs all fail draws an empty picture without complaint."""
    done = run(
        "tests.bench.scaling", "--smoke", "--curves", "image", "--pictures", str(tmp_path), "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "scaling.json").read_text())
    assert 1000 < (tmp_path / "scaling-image.png").stat().st_size < 60_000
    assert all("ms" in point for point in record["image"]["points"])


@pytest.mark.slow
def test_the_bilevel_figures_are_measured(tmp_path):
    """A part that a renamed adjoint or worker breaks would only be noticed when figures are next asked for."""
    done = run("tests.bench.bilevel", "--smoke", "--repeat", "1", "--pictures", str(tmp_path), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "bilevel.json").read_text())
    assert (tmp_path / "bilevel-growth.png").stat().st_size > 1000
    assert {point["line"] for point in record["growth"]} == {"MixedMode", "Checkpointed"}
    assert all(point["ms"] > 0 and point["bytes"] > 0 for point in record["growth"])
    assert all(point["ms"] > 0 and point["temporary"] > 0 for point in record["speed"])
    assert max(record["exact"]["agreement"].values()) < 1e-8
    assert record["exact"]["reversible"]["restored"] == 1.0
