"""Omniglot: the real archives where they are at hand, small forged ones for what can go wrong."""

import errno
import io
import os
import re
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from metakit.tasks import CacheWriteError, DecodeError, cache_directory, fingerprint, omniglot
from metakit.tasks._omniglot_splits import characters, split_sha256

# Number of characters and sha256 of their sorted names, one a line: results compare only within one of these.
SPLITS = {
    ("vinyals", "train"): (1028, "189c10b6479a07e808302b5f1ada00d995589557373e68ebe3e718780196ed0a"),
    ("vinyals", "val"): (172, "8b1baec8706cbc2c2f1d23874a30a50ac8f589502ea36e213c3c3cf14d30a189"),
    ("vinyals", "trainval"): (1200, "18dad46dff5b2ea072d964c1d58b365e8a04d7f413fc2459b4bdc93a8ea1de69"),
    ("vinyals", "test"): (423, "af119b10f318ddb7afdf5108b360887823cf06da68d846c7e5de7286492976d7"),
    ("lake", "train"): (964, "eff2099ff10509262dc1b517662d0842b07ae4bad9d427aeb1e5291f1fb761ef"),
    ("lake", "test"): (659, "d6766f41d9c8fea1d2aab9ec6fb357b2f0c84cc80aaf6c4ab5f12016c01f6fa3"),
    ("seeded", "train"): (1100, "2209472b64f1995227424b28cfc341ff55ab0c598c52a791ee978252a90f8018"),
    ("seeded", "val"): (100, "477028259d683ec3086a3599dbb5f70c4c6764c48e97aec4dd8d668a63dd8371"),
    ("seeded", "trainval"): (1200, "1b7a02bf1a59e40b4ca1b5e1adbd6072b479c7fd14c909c45c1e80ebc58443ad"),
    ("seeded", "test"): (423, "57da9afb59cad9c1882d58f387114955c11cc392198e8c28fcb8789067a5d43e"),
}


# The real data


@pytest.fixture(scope="session")
def decoded(omniglot_dir, tmp_path_factory):
    """A cache that the tests of the real data share: decoding takes seconds."""
    return tmp_path_factory.mktemp("omniglot_cache")


@pytest.mark.parametrize(("split", "part"), SPLITS)
def test_the_recorded_splits(omniglot_dir, decoded, split, part):
    """Bug: a split that differs by machine, file system or version, so that numbers cannot be compared."""
    pool = omniglot(omniglot_dir, split=split, part=part, cache=decoded)
    count, recorded = SPLITS[split, part]
    assert pool.images.shape == (count, 20, 1, 28, 28)
    assert list(pool.names) == sorted(set(pool.names))
    assert split_sha256(list(pool.names)) == recorded


def test_the_vinyals_lists_are_the_published_ones(omniglot_dir):
    """Bug: a slip in the compact list that travels with the package."""
    folder = omniglot_dir.parent / "splits" / "omniglot_vinyals"
    if not folder.exists():
        pytest.skip(f"needs the published lists in {folder}")
    for part in ("train", "val", "trainval", "test"):
        published = (folder / f"{part}.txt").read_text().split()
        ours = [f"{name}/rot{turn:03d}" for name in characters("vinyals", part, 0) for turn in (0, 90, 180, 270)]
        assert sorted(ours) == sorted(published)


def test_the_recorded_pixels(omniglot_dir, decoded):
    """Bugs: grey levels from a filtered resize (another data set), ink = 0, or a transposed image."""
    pool = omniglot(omniglot_dir, part="test", cache=decoded)
    assert np.unique(pool.images).tolist() == [0, 255]
    assert 0.05 < float(jnp.mean(pool.images > 0)) < 0.12
    assert fingerprint(pool) == "d93a4dd7dedc47bdb1809a232e1e34fe906d56daf567ff263c8528b8dc032ddf"


def test_rotated_characters_are_classes(omniglot_dir, decoded):
    """Bugs: other classes than published; turns the other way; turning after resizing that differs."""
    pool = omniglot(omniglot_dir, part="val", rotations=True, cache=decoded)
    assert pool.images.shape[0] == 688
    name = "Hebrew/character07"
    with zipfile.ZipFile(omniglot_dir / "images_background.zip") as archive:
        file = sorted(n for n in archive.namelist() if f"/{name}/" in n)[3]
        drawing = Image.open(io.BytesIO(archive.read(file)))
        for turn in (0, 90, 180, 270):
            published = np.asarray(drawing.rotate(turn).resize((28, 28)))
            ours = pool.images[pool.names.index(f"{name}/rot{turn:03d}"), 3, 0]
            np.testing.assert_array_equal(np.asarray(ours) == 255, ~published)


# Forged data


def _drawing(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (105, 105), dtype=np.uint8)
    Image.fromarray(noise).point(lambda v: 255 * (v > 127), "1").save(buffer, "PNG")
    return buffer.getvalue()


ENTRIES = {
    f"images_background/{name}/{i:04d}_{j + 1:02d}.png": _drawing(20 * i + j)
    for i, name in enumerate(["Beta/character01", "Alpha/character02", "Alpha/character01"])
    for j in range(20)
}


def _zip(root: Path, entries: dict[str, bytes]) -> Path:
    root.mkdir(exist_ok=True, parents=True)
    with zipfile.ZipFile(root / "images_background.zip", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return root


def _lake(root, **options):
    return omniglot(root, split="lake", **{"cache": False} | options)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("METAKIT_CACHE", str(tmp_path / "cache"))
    return _zip(tmp_path / "data", ENTRIES)


def test_ink_is_255_and_resizing_is_nearest(root):
    """Bug: white paper as 1, or grey levels."""
    pool = _lake(root, size=20)
    assert pool.names == ("Alpha/character01", "Alpha/character02", "Beta/character01")
    whole = np.asarray(Image.open(io.BytesIO(ENTRIES["images_background/Alpha/character02/0001_05.png"])))
    centres = np.floor((np.arange(20) + 0.5) * 105 / 20).astype(int)
    np.testing.assert_array_equal(pool.images[1, 4, 0], 255 * ~whole[np.ix_(centres, centres)])


def test_folder_zip_and_cache_give_the_same_pool(root, tmp_path):
    """Bug: a result that depends on how the data is stored or whether it was loaded before."""
    with zipfile.ZipFile(root / "images_background.zip") as archive:
        archive.extractall(tmp_path / "extracted")
    cache = tmp_path / "named"
    pools = [
        _lake(root),
        _lake(root, cache=cache),
        _lake(root, cache=cache),
        _lake(tmp_path / "extracted", cache=cache),
        _lake(tmp_path / "extracted", cache=cache),
    ]
    assert len({fingerprint(pool) for pool in pools}) == 1
    assert len(list(cache.iterdir())) == 2


def test_a_second_load_decodes_nothing(root, monkeypatch):
    """Bug: a cache that is written and never read."""
    first = _lake(root, cache=True)
    monkeypatch.setattr("metakit.tasks._omniglot.decode_image", None)
    assert fingerprint(_lake(root, cache=True)) == fingerprint(first)
    with pytest.raises(TypeError):
        _lake(root, cache=True, size=20)


@pytest.mark.parametrize("change", ["a.zip", "a folder"])
def test_changed_data_is_decoded_again(root, tmp_path, change):
    """Bug: a stale cache that outlives its data."""
    changed = dict(ENTRIES) | {"images_background/Beta/character01/0000_01.png": _drawing(999)}
    if change == "a folder":
        with zipfile.ZipFile(root / "images_background.zip") as archive:
            archive.extractall(tmp_path / "extracted")
        root = tmp_path / "extracted"
    first = _lake(root, cache=True)
    if change == "a folder":
        (name, data), *_ = [(n, d) for n, d in changed.items() if d != ENTRIES[n]]
        (root / name).write_bytes(data)
    else:
        _zip(root, changed)
    assert fingerprint(_lake(root, cache=True)) != fingerprint(first)


@pytest.mark.parametrize("damage", [b"", b"PK", b"\x93NUMPY"])
def test_a_damaged_cache_is_made_again(root, damage):
    """Bug: one bad cache file that makes every later run fail."""
    first = _lake(root, cache=True)
    (file,) = cache_directory().iterdir()
    whole = file.read_bytes()
    for data in (damage, whole[: len(whole) // 2], whole[:2000] + b"????" + whole[2004:]):
        file.write_bytes(data)
        assert fingerprint(_lake(root, cache=True)) == fingerprint(first)
        assert len(file.read_bytes()) == len(whole)


def _full_disk(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_cache_only(root, tmp_path, monkeypatch):
    """Bug: half a cache left behind, images lost, or a cache that was asked for by name silently missing."""
    monkeypatch.setattr(os, "fsync", _full_disk)
    assert fingerprint(_lake(root, cache=True)) == fingerprint(_lake(root))
    with pytest.raises(CacheWriteError, match=r"not be cached in .*named: .*No space left.*cache=False"):
        _lake(root, cache=tmp_path / "named")
    assert [*cache_directory().iterdir(), *(tmp_path / "named").iterdir()] == []


def test_a_cache_below_a_file_is_an_error_if_asked_for(root, tmp_path):
    """Bug: NotADirectoryError from the depths, without the word cache."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheWriteError, match="could not be cached in"):
        _lake(root, cache=tmp_path / "file" / "cache")


def test_the_default_place(root, tmp_path, monkeypatch):
    """Bug: METAKIT_DATA ignored, or the cache directory of another user."""
    (tmp_path / "shelf").mkdir()
    root.rename(tmp_path / "shelf" / "omniglot")
    monkeypatch.setenv("METAKIT_DATA", str(tmp_path / "shelf"))
    assert len(_lake(None).names) == 3
    monkeypatch.delenv("METAKIT_DATA")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "cache" / "omniglot"))):
        _lake(None)


def test_where_nothing_is_the_error_says_what_was_looked_for(tmp_path):
    """Bug: a bare "file not found" for a directory one level off."""
    message = (
        r"looked for in .*data.omniglot, as the folder images_background or the file images_background\.zip.*"
        rf"nearest folder that exists is {tmp_path}\. .*METAKIT_DATA.*download=True"
    )
    with pytest.raises(FileNotFoundError, match=message):
        omniglot(tmp_path / "data" / "omniglot")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"size must lie in 1\.\.105"),
        ({"size": 106}, r"size must lie in 1\.\.105.*got 106"),
        ({"split": "lake", "part": "val"}, "split='lake' has no part 'val'; it has train, test"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(tmp_path, options, message):
    """Bug: a minute of decoding before the typing error is found."""
    with pytest.raises(ValueError, match=message):
        omniglot(tmp_path / "nowhere", **options)


def test_incomplete_data_is_not_a_smaller_split(root):
    """Bug: an accuracy on the few test characters that happened to be extracted."""
    with zipfile.ZipFile(root / "images_evaluation.zip", "w") as archive:
        for name, data in ENTRIES.items():
            archive.writestr(name.replace("images_background/", "images_evaluation/x"), data)
    with pytest.raises(ValueError, match="lacks 423 of the 423 characters of part 'test' of split 'vinyals'"):
        omniglot(root, part="test", cache=False)


def _without_a_drawing(entries):
    return dict(list(entries.items())[1:])


def _with_a_broken_drawing(entries):
    name, data = next(iter(entries.items()))
    return dict(entries) | {name: data[:100]}


def _with_a_grey_drawing(entries):
    buffer = io.BytesIO()
    Image.new("L", (105, 105)).save(buffer, "PNG")
    return dict(entries) | {next(iter(entries)): buffer.getvalue()}


def _with_a_stray_drawing(entries):
    return dict(entries) | {"images_background/stray.png": _drawing(0)}


def _with_a_climbing_entry(entries):
    return dict(entries) | {"images_background/../../x.png": _drawing(0)}


def _with_nothing(entries):
    return {"images_background/README.txt": b""}


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (_without_a_drawing, "character 'Beta/character01' has 19 drawings instead of 20"),
        (
            _with_a_broken_drawing,
            r"images_background\.zip: images_background/Beta/character01/0000_01\.png is a broken",
        ),
        (
            _with_a_grey_drawing,
            r"0000_01\.png is a 105x105 image of mode 'L'; Omniglot's drawings are 105x105, 1 bit",
        ),
        (_with_a_stray_drawing, r"stray\.png is not at images_background/Alphabet/characterNN/"),
        (_with_a_climbing_entry, "whose path leaves the archive's own folder"),
        (_with_nothing, "holds no drawing"),
    ],
)
def test_bad_archives_are_refused_by_name(tmp_path, forge, message):
    """Bug: a damaged drawing that trains as a blank image, or an error that does not say which one it is."""
    with pytest.raises(DecodeError, match=message):
        _lake(_zip(tmp_path, forge(ENTRIES)))


def test_a_truncated_archive_is_named(root):
    """Bug: "File is not a zip file" after an interrupted copy."""
    file = root / "images_background.zip"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DecodeError, match=r"images_background\.zip is not a complete zip archive"):
        _lake(root)


def test_macos_resource_forks_are_passed_over(tmp_path):
    """Bug: an archive made on a Mac refused for files that its user cannot see."""
    forks = {"__MACOSX/images_background/Beta/character01/._0000_01.png": b"fork"}
    assert len(_lake(_zip(tmp_path, ENTRIES | forks)).names) == 3


def test_what_is_missing_is_fetched_once_and_checked(root, tmp_path, monkeypatch):
    """Bug: a download that is not verified, goes elsewhere than path, or repeats without need."""
    calls = []

    def fetch(url, path, *, checksum):
        calls.append((url, path, checksum))
        path.parent.mkdir(parents=True)
        path.write_bytes((root / "images_background.zip").read_bytes())

    monkeypatch.setattr("metakit.tasks._omniglot.fetch", fetch)
    target = tmp_path / "new"
    for _ in range(2):
        assert len(_lake(target, download=True).names) == 3
    ((url, path, checksum),) = calls
    assert url.endswith("/brendenlake/omniglot/master/python/images_background.zip")
    assert path == target / "images_background.zip"
    assert checksum == "md5:68d2efa1b9178cc56df9314c21c6e718"


def test_the_seed_chooses_the_seeded_split_only():
    """Bug: a seed without effect, or one that changes a published split."""
    assert characters("seeded", "test", 0) != characters("seeded", "test", 1)
    assert characters("vinyals", "test", 0) == characters("vinyals", "test", 1)
    parts = [set(characters("seeded", part, 1)) for part in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1623
