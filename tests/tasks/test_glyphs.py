"""Glyphs: which characters are classes of which part, that drawings never change, and the cache."""

import hashlib
import math
import socket

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font

from metakit.tasks import CacheWriteError, _cache, _faces, _glyphs, _lookalikes, fingerprint, glyphs
from metakit.tasks._scripts import PARTS, SCRIPTS, letters

# Number of classes and the first digits of the sha256 of their names: results compare only within one.
CLASSES = {
    "train": (1036, "47c0383747440c95"),
    "val": (91, "d18ea6bdb061acc0"),
    "test": (224, "8502b3649a42350d"),
}


@pytest.fixture(scope="module")
def faces():
    return _faces.Faces()


@pytest.fixture(scope="module")
def classes(faces):
    return {part: _lookalikes.classes(faces, part) for part in PARTS}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A cache that tests share."""
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def pool(directory):
    """The test part as users have it."""
    return glyphs("test", cache=directory)


@pytest.fixture
def three(monkeypatch):
    """Few classes, so that drawing them takes no time."""
    few = [("Latin", c, (c,)) for c in "AbQ"]
    monkeypatch.setattr(_glyphs, "classes", lambda faces, part: few)


# Classes


@pytest.mark.parametrize("part", PARTS)
def test_the_recorded_classes(classes, part):
    """Bug: classes that change with a version of Python or Pillow, so that numbers cannot be compared."""
    names = "".join(f"{script}/U+{ord(character):04X}\n" for script, character, _ in classes[part])
    count, recorded = CLASSES[part]
    assert len(classes[part]) == count
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == recorded


def test_parts_share_no_script_and_no_character(classes):
    """Bug: a test class that training has seen."""
    scripts = {part: {script for script, _, _ in classes[part]} for part in PARTS}
    members = {part: [c for _, _, group in classes[part] for c in group] for part in PARTS}
    for part in PARTS:
        assert scripts[part] == set(SCRIPTS[part])
        assert len(members[part]) == len(set(members[part]))
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not scripts[first] & scripts[second]
        assert not set(members[first]) & set(members[second])


@pytest.mark.parametrize(("earlier", "later"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_no_class_looks_like_one_of_an_earlier_part(faces, classes, earlier, later):
    """Bug: Greek Alpha among the unseen characters, though Latin A was trained on.

    Looked at anew, by correlation of the unblurred pictures, and with every character of the earlier part.
    """

    def pictures(characters):
        drawn = [faces.master(0, c) for c in characters]
        flat = np.stack([d for d in drawn if d is not None]).reshape(-1, _faces.SIDE**2).astype(np.float32)
        flat -= flat.mean(axis=1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    seen = pictures(character for _, character in letters(earlier))
    unseen = pictures(c for _, _, group in classes[later] for c in group)
    assert (unseen @ seen.T).max() < 0.93


@pytest.mark.parametrize(
    ("part", "alike"),
    [
        ("train", "A\u0410\ua4ee"),  # Latin, Cyrillic, Lisu
        ("train", "O\u041eo\u043e"),  # capital and small of Latin and Cyrillic
        ("train", "W\u051cw"),
        ("train", "P\u0420"),
    ],
)
def test_characters_that_look_alike_are_one_class(classes, part, alike):
    """Bug: an episode that asks to tell Latin A from Cyrillic A."""
    groups = [set(group) for _, _, group in classes[part]]
    assert any(set(alike) <= group for group in groups)


@pytest.mark.parametrize("pair", ["OQ", "EF", "bd", "ce", "\u0628\u062a", "\u1403\u1405", "\u0130i"])
def test_other_characters_are_not(classes, pair):
    """Bug: a tolerance so wide that classes swallow their neighbours."""
    groups = [set(group) for _, _, group in classes["train"]]
    assert not any(set(pair) <= group for group in groups)


@pytest.mark.parametrize("character", "\u0391\u0392\u039f\u03bf\u0570\u05c0\u05df")
def test_a_character_seen_in_training_is_in_no_later_part(classes, character):
    """Bug: Greek Alpha and Omicron, Armenian ho (Latin h) or final nun (a bar) taken for unseen."""
    later = [c for part in ("val", "test") for _, _, group in classes[part] for c in group]
    assert character not in later


def test_a_face_has_a_character_when_its_table_says_so(faces):
    """Bug: the box for missing characters drawn as if it were the character."""
    everything = [c for part in PARTS for _, c in letters(part)][::9]
    for face, name in enumerate(_faces.FILES):
        table = FT2Font(str(faces.folder / name)).get_charmap()
        has = [faces.master(face, c) is not None for c in everything]
        assert has == [ord(c) in table for c in everything], name


def test_fonts_are_found_where_matplotlib_keeps_them(faces):
    """Bug: a folder guessed without importing matplotlib that is not matplotlib's."""
    assert str(faces.folder).startswith(get_data_path())


# Drawings


def test_a_pool_is_ink_on_nothing(pool):
    """Bugs: ink and paper swapped, binary edges, drawings cut off, or all of them the same."""
    images = np.asarray(pool.images)
    assert images.shape == (224, 20, 1, 28, 28)
    assert images.dtype == np.uint8
    assert pool.counts.tolist() == [20] * 224
    assert pool.names[0] == "Armenian/U+0532"
    assert (images.max(axis=(2, 3, 4)) > 200).all()
    assert 0.05 < images.mean() / 255 < 0.25
    assert len(np.unique(images)) > 8
    border = images.astype(float)
    border[..., 1:-1, 1:-1] = 0
    assert border.sum() < 1e-3 * images.sum()
    flat = images.reshape(224 * 20, -1)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_drawings_do_not_change_from_call_to_call(three):
    """Bug: a generator shared between classes or calls, so that nobody can repeat a result."""
    first, again = (glyphs("val", cache=False) for _ in range(2))
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(glyphs("val", seed=1, cache=False))


def test_a_drawing_depends_on_its_class_and_number_only(three, monkeypatch):
    """Bug: asking for fewer drawers, or adding a class, that changes all other images."""
    whole = glyphs("val", drawers=20, cache=False).images
    np.testing.assert_array_equal(glyphs("val", drawers=3, cache=False).images, whole[:, :3])
    monkeypatch.setattr(_glyphs, "classes", lambda faces, part: [("Latin", "Q", ("Q",))])
    np.testing.assert_array_equal(glyphs("val", drawers=20, cache=False).images, whole[2:])


@pytest.mark.parametrize("size", [8, 20, 112])
def test_another_size_is_the_same_drawing(three, size):
    """Bug: distortions in pixels, which make large images stiff and small ones unreadable."""
    images = np.asarray(glyphs("val", size=size, drawers=4, cache=False).images, dtype=np.float64)
    assert images.shape == (3, 4, 1, size, size)
    reference = np.asarray(glyphs("val", size=56, drawers=4, cache=False).images, dtype=np.float64)
    axis = (np.arange(size) + 0.5) / size
    fine = (np.arange(56) + 0.5) / 56

    def centre(images, axis):
        weights = images / images.sum(axis=(3, 4), keepdims=True)
        return np.stack([(weights.sum(axis=4) @ axis), (weights.sum(axis=3) @ axis)])

    np.testing.assert_allclose(centre(images, axis), centre(reference, fine), atol=0.01)


def test_a_nearest_neighbour_on_pixels_is_a_weak_baseline(pool):
    """Bug: distortions so small that pixels suffice, or so large that the data set teaches nothing."""
    images = np.asarray(pool.images).reshape(224, 20, -1).astype(np.float32) / 255
    rng, scores = np.random.default_rng(0), []
    for _ in range(400):
        chosen = rng.choice(224, 5, replace=False)
        drawn = np.stack([images[c][rng.permutation(20)[:6]] for c in chosen])
        support, query = drawn[:, 0], drawn[:, 1:].reshape(25, -1)
        distance = ((query[:, None] - support[None]) ** 2).sum(axis=-1)
        scores.append((distance.argmin(axis=1) == np.repeat(np.arange(5), 5)).mean())
    error = np.std(scores) / math.sqrt(len(scores))
    # 56.4 % over 2,000 episodes.
    assert abs(np.mean(scores) - 0.564) < 4 * error
    assert error < 0.01


def test_nothing_asks_the_network(three, monkeypatch):
    """Bug: a data set that promises to work offline and then reaches out."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert glyphs("val", drawers=1, cache=False).images.shape == (3, 1, 1, 28, 28)


# The cache


def never(*arguments):
    raise AssertionError("drawn again although the cache was good")


def test_the_second_call_reads(pool, directory, monkeypatch):
    """Bug: a cache that is written and never read, or read as something else."""
    monkeypatch.setattr(_glyphs, "_draw", never)
    again = glyphs("test", cache=directory)
    assert fingerprint(again) == fingerprint(pool)
    assert again.names == pool.names
    assert again.images.dtype == jnp.uint8


def test_everything_that_pixels_depend_on_is_in_the_key(three, tmp_path, monkeypatch):
    """Bug: other arguments, fonts or a newer rasteriser served from a cache of the old ones."""
    calls = [
        {},
        {"part": "test"},
        {"size": 20},
        {"drawers": 2},
        {"seed": 1},
    ]
    for number, arguments in enumerate(calls, start=1):
        glyphs(**{"part": "val", "drawers": 1, "cache": tmp_path, **arguments})
        assert len(list(tmp_path.iterdir())) == number
    monkeypatch.setattr(_glyphs, "fonts_identity", lambda: "others")
    glyphs("val", drawers=1, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(calls) + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data[:-40] + bytes([data[-40] ^ 128]) + data[-39:],
        lambda data: b"<html>404</html>" * 100,
    ],
    ids=["empty", "stub", "half", "a byte short", "a bit of a pixel", "a bit of a name", "something else"],
)
def test_a_damaged_cache_is_drawn_again(three, tmp_path, damage):
    """Bug: wrong pixels, or an obscure error at every start, after a full disk or a killed process."""
    good = glyphs("val", drawers=2, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    file.write_bytes(damage(data))
    assert fingerprint(glyphs("val", drawers=2, cache=tmp_path)) == fingerprint(good)
    assert file.read_bytes() == data


def test_an_interrupted_write_leaves_nothing(three, tmp_path, monkeypatch):
    """Bug: half a file under the final name, or temporary files that pile up."""

    def full(arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(_cache, "_packed", full)
    with pytest.raises(KeyboardInterrupt):
        glyphs("val", drawers=1, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(three, tmp_path, monkeypatch):
    """Bug: a read-only home that stops a training run; or a named cache that is silently not made."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CacheWriteError, match=r"Glyphs could not be cached in .*cache=False"):
        glyphs("val", drawers=1, cache=blocked)
    monkeypatch.setenv("METAKIT_CACHE", str(blocked))
    assert len(glyphs("val", drawers=1).names) == 3


def test_the_default_cache_is_the_users(three, tmp_path, monkeypatch):
    """Bug: METAKIT_CACHE ignored, so that a shared machine fills a home directory."""
    monkeypatch.setenv("METAKIT_CACHE", str(tmp_path / "new"))
    glyphs("val", drawers=1)
    (file,) = (tmp_path / "new").iterdir()
    assert file.name.startswith("glyphs-val-")


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, r"size must lie in 8\.\.112 pixels, got 7"),
        ({"size": 113}, "got 113"),
        ({"drawers": 0}, "drawers .* at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    """Bug: an error from deep inside NumPy after seconds of drawing."""
    with pytest.raises(ValueError, match=message):
        glyphs("val", cache=False, **arguments)


def test_missing_fonts_are_named(monkeypatch, tmp_path):
    """Bug: "cannot open resource" from a matplotlib whose fonts a distribution has taken out."""
    monkeypatch.setattr(_faces, "_font_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"DejaVuSans\.ttf is not there\. Install matplotlib"):
        glyphs("val", cache=False)
