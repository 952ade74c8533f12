"""What was guessed, repaired or doubtful about the images of a set, to be said once for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from refusion_edge.images.ranges import Remark


@dataclass(slots=True)
class Findings:
    """Counts equal remarks.

    Attributes:
        images: Remark to the names of the images that it applies to, in order of appearance.
        pixels: Remark to the number of pixels that it concerns, over all images.
    """

    images: dict[str, list[str]] = field(default_factory=dict)
    pixels: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, remarks: Iterable[Remark]) -> None:
        """Add the remarks on one image or pair."""
        for remark in remarks:
            self.images.setdefault(remark.text, []).append(name)
            self.pixels[remark.text] = self.pixels.get(remark.text, 0) + remark.pixels

    def lines(self) -> list[str]:
        """One line for each remark, with the number of images and pixels."""
        return [self._line(text, names) for text, names in self.images.items()]

    def to_json(self) -> list[dict[str, object]]:
        """The same as a document: text, images, pixels."""
        return [{"text": text, "images": names, "pixels": self.pixels[text]} for text, names in self.images.items()]

    def _line(self, text: str, names: list[str]) -> str:
        pixels = f"{self.pixels[text]} pixels" if self.pixels[text] else ""
        images = f"{len(names)} images, the first is {names[0]}" if len(names) > 1 else ""
        counts = " in ".join(filter(None, (pixels, images)))
        return f"{text} ({counts})" if counts else text
