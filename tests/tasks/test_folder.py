"""A folder for each class, in one call."""

import jax
import numpy as np
import pytest
from PIL import Image

from metakit.tasks import DecodeError, Episodes, fingerprint, image_folder


def _save(path, value=0, *, mode="L", size=(6, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for i, name in enumerate(["dog", "cat", "eel"]):
        for j in range(3 + i):
            _save(root / name / f"{j}.png", 50 * i + j)
    return root


def test_classes_and_images_come_in_sorted_order(folder):
    """Bug: the order of the file system, which differs between machines."""
    pool = image_folder(folder, size=6)
    assert pool.names == ("cat", "dog", "eel")
    assert pool.counts.tolist() == [4, 3, 5]
    assert pool.images.shape == (3, 5, 1, 6, 6)
    assert np.asarray(pool.images)[1, :3, 0, 0, 0].tolist() == [0, 1, 2]
    assert fingerprint(pool) == fingerprint(image_folder(str(folder), size=6))


def test_a_pool_of_unequal_classes_gives_episodes(folder):
    """Bug: padding (black images) among the examples of a smaller class."""
    sampler = Episodes(image_folder(folder, size=(4, 8), channels=3, invert=True), 3, 1, 2)
    episode = sampler(jax.random.key(0))
    assert episode.query.x.shape == (6, 3, 4, 8)
    assert float(episode.query.x.max()) <= 1.0
    assert float(episode.query.x.min()) >= (255 - 104) / 255


def test_invert_makes_ink_one(folder):
    """Bug: dark ink on white paper left as 0 where the toolkit expects ink = 1."""
    plain, inverted = (image_folder(folder, size=6, invert=invert) for invert in (False, True))
    for i, count in enumerate(plain.counts.tolist()):
        np.testing.assert_array_equal(inverted.images[i, :count], 255 - plain.images[i, :count])


def test_hidden_files_and_other_endings_are_passed_over(folder):
    """Bug: Thumbs.db or macOS's ._ files decoded as images."""
    (folder / ".git").mkdir()
    (folder / "README.md").write_text("notes")
    (folder / "cat" / "._0.png").write_bytes(b"resource fork")
    (folder / "cat" / "Thumbs.db").write_bytes(b"thumbs")
    _save(folder / "cat" / "A.JPG", 200)
    assert image_folder(folder).counts.tolist() == [5, 3, 5]


def test_colour_transparency_palette_and_orientation(tmp_path):
    """Bugs: channels in the wrong order; ink on transparent paper read as all black; a photo on its side."""
    _save(tmp_path / "a" / "1.png", (255, 0, 0), mode="RGB")
    _save(tmp_path / "a" / "2.png", (0, 0, 0, 0), mode="RGBA")
    Image.new("RGB", (6, 6), (0, 255, 0)).convert("P").save(tmp_path / "a" / "3.png")
    lying = Image.new("RGB", (6, 6), (0, 0, 0))
    lying.paste((255, 255, 255), (0, 0, 6, 3))  # white above; orientation 6: turn clockwise to show
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a" / "4.png", exif=exif)
    red, clear, green, shown = np.asarray(image_folder(tmp_path, size=6, channels=3).images)[0]
    assert red[:, 0, 0].tolist() == [255, 0, 0]
    assert (clear == 255).all()
    assert green[:, 0, 0].tolist() == [0, 255, 0]
    assert (shown[:, :, 5] == 255).all()
    assert (shown[:, :, 0] == 0).all()


def _nothing(root):
    pass


def _a_file(root):
    root.write_bytes(b"")


def _no_class(root):
    root.mkdir()
    _save(root / "1.png")


def _empty_class(root):
    _save(root / "a" / "1.png")
    (root / "b").mkdir()


def _too_deep(root):
    _save(root / "alphabet" / "letter" / "1.png")


def _broken(root):
    _save(root / "a" / "1.png", size=(60, 60))
    data = (root / "a" / "1.png").read_bytes()
    (root / "a" / "1.png").write_bytes(data[: len(data) // 2])


def _sixteen_bits(root):
    _save(root / "a" / "1.png", 1000, mode="I;16")


def _large(root):
    _save(root / "a" / "1.png", size=(200, 200))


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (_nothing, {}, FileNotFoundError, r"root does not exist; the nearest that exists is .*"),
        (_a_file, {}, NotADirectoryError, "root is a file"),
        (_no_class, {}, ValueError, "holds no folder; one is needed for each class"),
        (
            _empty_class,
            {},
            ValueError,
            r"1 of the 2 class folders .* hold no image .*'b'\. Fill or remove it",
        ),
        (_too_deep, {}, ValueError, "'alphabet'.*point path one level deeper"),
        (_broken, {}, DecodeError, r"a.1\.png is a broken PNG image"),
        (_sixteen_bits, {}, DecodeError, r"a.1\.png has pixels of mode 'I;16', more than 8 bits"),
        (
            _large,
            {"max_pixels": 39_999},
            DecodeError,
            r"a.1\.png declares 200x200 pixels, more than the limit of 39999",
        ),
        (_large, {"size": 0}, ValueError, "size must be at least 1 pixel each way, got 0"),
        (_large, {"channels": 4}, ValueError, r"channels must be 1 \(grey\) or 3 \(RGB\), got 4"),
    ],
)
def test_what_is_wrong_is_said_and_where(tmp_path, make, options, error, message):
    """Bug: a user's folder that fails with Pillow's or NumPy's error, without the name of the file."""
    make(tmp_path / "root")
    with pytest.raises(error, match=message):
        image_folder(tmp_path / "root", **options)
