"""Which characters Glyphs is made of, and which part of it each script belongs to."""

import unicodedata
from collections.abc import Iterator

# Blocks, not a query of Python's Unicode tables: the classes must not change with its version. Latin,
# Cyrillic, Coptic, Lisu and Old Italic share so many shapes that they stand on one side. What still looks
# alike on both sides is sorted out by its pixels (see `_lookalikes.py`).
SCRIPTS: dict[str, dict[str, tuple[tuple[int, int], ...]]] = {
    "train": {
        "Latin": (
            (0x0041, 0x005A),
            (0x0061, 0x007A),
            (0x00C6, 0x02AF),
            (0x1D00, 0x1D25),
            (0x1D6B, 0x1D9A),
            (0x1E00, 0x1EFF),
            (0x2C60, 0x2C7F),
            (0xA722, 0xA7FF),
        ),
        "Cyrillic": ((0x0400, 0x052F), (0xA640, 0xA69F)),
        "Coptic": ((0x03E2, 0x03EF),),
        "Canadian_Aboriginal": ((0x1401, 0x1676),),
        "Arabic": ((0x0621, 0x06D5),),
        "Lisu": ((0xA4D0, 0xA4F7),),
        "Old_Italic": ((0x10300, 0x1031E),),
        "Ogham": ((0x1681, 0x169A),),
    },
    "val": {
        "Greek": ((0x0370, 0x03E1), (0x03F0, 0x03FF)),
        "Tifinagh": ((0x2D30, 0x2D65),),
        "NKo": ((0x07C0, 0x07EA),),
    },
    "test": {
        "Armenian": ((0x0531, 0x0586),),
        "Georgian": ((0x10A0, 0x10FA), (0x2D00, 0x2D25)),
        "Hebrew": ((0x05D0, 0x05F2),),
        "Lao": ((0x0E81, 0x0EDB),),
    },
}
PARTS = tuple(SCRIPTS)


def letters(part: str) -> Iterator[tuple[str, str]]:
    """`(script, character)` of the letters and digits of a part.

    Characters that Unicode composes of others (accented letters, ligatures, Arabic's positional forms) are
    left out: they repeat shapes that are there already.
    """
    for script, blocks in SCRIPTS[part].items():
        for first, last in blocks:
            for code in range(first, last + 1):
                character = chr(code)
                kind = unicodedata.category(character)
                if kind in ("Lu", "Ll", "Lt", "Lo", "Nd") and not unicodedata.decomposition(character):
                    yield script, character
