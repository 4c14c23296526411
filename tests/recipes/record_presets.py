"""Run a preset at --smoke as a user does, and print what came out.

    python record_presets.py FOLDER NAME DATA

In a process of its own, because the tests' own compiler settings give other last bits. With `METAKIT_TEST_DATA`, or the
data beside the checkout, Omniglot too.
"""

import hashlib
import json
import os
import pathlib
import sys

import jax
import numpy as np
from PIL import Image

import metakit as mk
from metakit._tree import is_key
from metakit.cli import main


def images(folder):
    """Glyphs as a user's folder: 60 classes of 12 images, dark on light."""
    pool = mk.tasks.glyphs("train")
    drawings = np.asarray(pool.images[:60, :12, 0])
    for i, examples in enumerate(drawings):
        (folder / f"class{i:03d}").mkdir(parents=True, exist_ok=True)
        for j, image in enumerate(examples):
            Image.fromarray(255 - image).save(folder / f"class{i:03d}" / f"{j:02d}.png")
    return folder


def digest(learner):
    """The hash of a learner's arrays, and two numbers that say how far off another machine's are."""
    sha, numbers, total = hashlib.sha256(), 0, 0.0
    for leaf in jax.tree.leaves(learner):
        if not hasattr(leaf, "dtype"):
            continue
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        sha.update(str((array.shape, str(array.dtype))).encode())
        sha.update(np.ascontiguousarray(array).tobytes())
        numbers += array.size
        total += float(np.sum(np.abs(array.astype(np.float64))))
    return {"sha256": sha.hexdigest(), "numbers": numbers, "abs_sum": total}


def record(name, data, folder):
    run = folder / f"{name}-{data}"
    where = {"omniglot": os.environ.get("METAKIT_RECORD_OMNIGLOT", ""), "folder": str(folder / "images")}
    path = ["--path", where[data]] if data in where else []
    status = main(["train", name, "--data", data, "--smoke", "--run", str(run), *path, "--quiet"])
    assert status == 0, f"{name} on {data} ended with status {status}"
    opened = mk.open_run(run, "best")
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    test = next(line for line in log if line["event"] == "test")
    scores = {row: ends["mean"] for row, ends in test["scores"].items()}
    losses = [line["loss"] for line in log if line["event"] == "progress"]
    return digest(opened.learner) | {
        "losses": losses,
        "scores": scores,
        "nll": test["nll"],
        "calibration_error": test["calibration_error"],
    }


if __name__ == "__main__":
    place, recipe, kind = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    # As the command line does, before anything is computed: JAX shows as many devices as were offered before it starts.
    mk.recipes.offer(mk.recipes.find(recipe).settle({"data": kind}, smoke=True)["devices"])
    if kind == "folder":
        images(place / "images")
    sys.stdout.write(json.dumps(record(recipe, kind, place)) + "\n")
