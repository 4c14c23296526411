"""Which Omniglot character is for what."""

import hashlib
from importlib.resources import files

PARTS = {
    "vinyals": ("train", "val", "trainval", "test"),
    "lake": ("train", "test"),
    "seeded": ("train", "val", "trainval", "test"),
}
# How many of the 1623 characters: the sizes of Finn et al. 2017.
SEEDED_SIZES = {"train": 1100, "val": 100, "test": 423}


def characters(split: str, part: str, seed: int) -> list[str]:
    """Sorted names `Alphabet/characterNN` of a part of the `vinyals` or the `seeded` split."""
    lists = _vinyals()
    if split == "seeded":
        everything = [name for part in ("train", "val", "test") for name in lists[part]]
        # Sorted by a hash instead of shuffled by a generator: the same on every machine and in every version.
        order = sorted(everything, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        lists, start = {}, 0
        for name, length in SEEDED_SIZES.items():
            lists[name] = order[start : start + length]
            start += length
    return sorted(lists["train"] + lists["val"] if part == "trainval" else lists[part])


def split_sha256(names: list[str]) -> str:
    """The sha256 of a list of classes, one a line, sorted."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()


def _vinyals() -> dict[str, list[str]]:
    text = (files("metakit.tasks") / "_data" / "omniglot_vinyals.txt").read_text(encoding="utf-8")
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        part, alphabet, numbers = line.split(" ")
        first, last = numbers.split("-")
        lists[part] += [f"{alphabet}/character{i:02d}" for i in range(int(first), int(last) + 1)]
    return lists
