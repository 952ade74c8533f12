"""Stroke font, so that lettering does not depend on the fonts of an OpenCV version."""

# One string per glyph: strokes separated by blanks, each stroke a run of x-y digit
# pairs on a grid of 5 columns and 7 rows.
GLYPHS = {
    " ": "",
    "-": "1333",
    ".": "2526",
    "A": "062046 1434",
    "B": "060030414233 033344453606",
    "C": "4130100105163645",
    "D": "06003041453606",
    "E": "40000646 0333",
    "F": "400006 0333",
    "G": "41301001051636454323",
    "H": "0006 4046 0343",
    "I": "2026 1030 1636",
    "J": "4045361605",
    "K": "0006 400346",
    "L": "000646",
    "M": "0600234046",
    "N": "06004640",
    "O": "103041453616050110",
    "P": "06003041423303",
    "Q": "103041453616050110 2446",
    "R": "06003041423303 2346",
    "S": "413010010213334445361605",
    "T": "0040 2026",
    "U": "000516364540",
    "V": "002640",
    "W": "0016233640",
    "X": "0046 4006",
    "Y": "002340 2326",
    "Z": "00400646",
    "0": "103041453616050110",
    "1": "112026 1636",
    "2": "01103041420646",
    "3": "01103041423313 334445361605",
    "4": "36300444",
    "5": "400003334445361605",
    "6": "4130100105163645443303",
    "7": "004016",
    "8": "103041423313020110 1304051636454433",
    "9": "0516364541301001021343",
}
ADVANCE = 5.6
GRID_WIDTH = 4.0
GRID_HEIGHT = 6.0


def letter_strokes(words: str, corner: tuple[float, float], height: float) -> list[list[tuple[float, float]]]:
    """Lay out text as polylines.

    Args:
        words: Upper-case text.
        corner: Upper left corner of the first letter.
        height: Height of the letters.

    Returns:
        One list of vertices per pen stroke.
    """
    unit = height / GRID_HEIGHT
    strokes = []
    for index, letter in enumerate(words):
        left = corner[0] + index * ADVANCE * unit
        for run in GLYPHS[letter].split():
            pairs = zip(run[::2], run[1::2], strict=True)
            strokes.append([(left + int(x) * unit, corner[1] + int(y) * unit) for x, y in pairs])
    return strokes


def text_width(words: str, height: float) -> float:
    """Width of a line of text.

    Args:
        words: Text.
        height: Height of the letters.

    Returns:
        Width in the unit of the height.
    """
    return ((len(words) - 1) * ADVANCE + GRID_WIDTH) * height / GRID_HEIGHT
