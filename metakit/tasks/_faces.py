"""Characters as pictures: the DejaVu faces that come with matplotlib."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

FILES = tuple(
    f"DejaVu{family}{style}.ttf"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)
# A master is a square picture whose ink's longer side is INK pixels, centred, with nothing around it.
INK, SIDE = 64, 72
# Drawn about twice as large as a master, so that shrinking it smooths the edges alike at every angle.
_EM = 128
# A noncharacter, so every face shows its box for missing characters.
_MISSING = "\uffff"


class Faces:
    """The faces, loaded; `master(face, character)` draws.

    Not `matplotlib.get_data_path`: importing matplotlib takes longer than everything else here does when the
    cache is warm, and only the files are needed.
    """

    def __init__(self):
        self.folder = _font_folder()
        missing = [name for name in FILES if not (self.folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"Glyphs needs the DejaVu fonts that matplotlib installs in {self.folder}, and {missing[0]} "
                "is not there. Install matplotlib from PyPI or conda-forge (some Linux distributions strip "
                "its fonts)."
            )
        # Basic layout: one character is one glyph, whether or not Raqm is there to shape Arabic.
        self._fonts = [
            ImageFont.truetype(self.folder / name, _EM, layout_engine=ImageFont.Layout.BASIC) for name in FILES
        ]
        self._boxes = [_ink(font, _MISSING) for font in self._fonts]

    def __len__(self) -> int:
        return len(self._fonts)

    def master(self, face: int, character: str) -> np.ndarray | None:
        """`[SIDE, SIDE]` uint8, ink 255; `None` where the face lacks the character."""
        ink, box = _ink(self._fonts[face], character), self._boxes[face]
        if ink is None or (box is not None and ink.size == box.size and ink.tobytes() == box.tobytes()):
            return None
        scale = INK / max(ink.size)
        width, height = (max(1, round(length * scale)) for length in ink.size)
        canvas = Image.new("L", (SIDE, SIDE))
        shrunk = ink.resize((width, height), Image.Resampling.BILINEAR)
        canvas.paste(shrunk, ((SIDE - width) // 2, (SIDE - height) // 2))
        return np.asarray(canvas)

    def masters(self, character: str) -> np.ndarray:
        """`[faces, SIDE, SIDE]` of the faces that have the character."""
        drawn = [self.master(face, character) for face in range(len(self))]
        return np.stack([picture for picture in drawn if picture is not None])


def fonts_identity() -> str:
    """The sha256 of everything that pixels come from: the font files and the rasteriser."""
    folder = _font_folder()
    digest = hashlib.sha256(f"{Image.__version__} {features.version('freetype2')}".encode())
    for name in FILES:
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"missing")
    return digest.hexdigest()


def _font_folder() -> Path:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "Glyphs is drawn with the fonts that matplotlib installs, and matplotlib is not installed: "
            "pip install matplotlib."
        )
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


def _ink(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    # A margin of two pixels, since the box may be short of the ink by a rounding.
    picture = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(picture).text((2 - left, 2 - top), character, fill=255, font=font)
    box = picture.getbbox()
    return None if box is None else picture.crop(box)
