"""Album: the pictures of a page as SVG, small enough that a page of many can be sent by mail."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree.ElementTree import Element, parse, tostring

from errata.bench.section import Figure

COORDINATES = ("d", "x", "y", "width", "height", "viewBox")
"""Attributes whose numbers are written with a tenth of a point, or in shapes that are used many times a hundredth."""
FONTS = re.compile(r"(font-family: '[^']+')(?:, '[^']+')+")
"""The fonts to try; after the first, a browser has one of its own."""
REFERENCE = re.compile(r"(?<=^#)[\w-]+|(?<=url\(#)[\w-]+")
"""The id that an attribute names."""


@dataclass
class Album:
    """The pictures of a page. What they have in common, how lines look and the shapes of markers, is written once."""

    styles: dict[str, str] = field(default_factory=dict)
    """What a style says -> the class that stands for it."""
    shapes: dict[str, str] = field(default_factory=dict)
    """A shape that others refer to -> its id."""

    def svg(self, figure: Figure, label: str) -> str:
        """A picture with `label` in its place for those who cannot see it, without what says no more than it shows."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "figure.svg"
            figure.draw(path)
            root = parse(path).getroot()  # noqa: S314  it has just been written by ourselves
        named = {name for part in root.iter() for value in part.attrib.values() for name in REFERENCE.findall(value)}
        ids: dict[str, str] = {}
        self._shorten(root, named, ids, decimals=1)
        for part in root.iter():
            for name, value in part.attrib.items():
                part.set(name, REFERENCE.sub(lambda old: ids.get(old[0], old[0]), value))
        root.attrib.update({"role": "img", "aria-label": label})
        return tostring(root, encoding="unicode").replace(" />", "/>")

    def rules(self) -> str:
        """The styles of the pictures so far."""
        return "".join(f".{name}{{{style}}}\n" for style, name in self.styles.items())

    def _shorten(self, part: Element, named: set[str], ids: dict[str, str], decimals: int) -> None:
        """Leave out of an element and what is in it what is not needed; `ids` tells what became of those that are."""
        part.tag = part.tag.rpartition("}")[2]
        part.attrib = self._attributes(part, decimals)
        part.text, part.tail = (text if text and text.strip() else None for text in (part.text, part.tail))
        kept: list[Element] = []
        for inner in part:
            name = inner.get("id")
            self._shorten(inner, named, ids, 2 if name in named else decimals)
            if name in named:
                drawn = tostring(inner, encoding="unicode")
                known = drawn in self.shapes
                ids[name] = self.shapes.setdefault(drawn, f"s{len(self.shapes)}")
                inner.set("id", ids[name])
                kept += [] if known else [inner]
            elif inner.tag == "g" and not inner.attrib:
                kept += inner
            elif inner.tag not in ("metadata", "style") and (inner.tag != "defs" or len(inner)):
                kept.append(inner)
        part[:] = kept

    def _attributes(self, part: Element, decimals: int) -> dict[str, str]:
        told = {name.rpartition("}")[2]: value for name, value in part.attrib.items()}
        if told.get("transform", "").startswith("rotate(-0 "):
            del told["transform"]
        if style := FONTS.sub(r"\1", told.pop("style", "")):
            short = style.replace(": ", ":").replace("; ", ";")
            told["class"] = self.styles.setdefault(short, f"p{len(self.styles)}")
        for name in COORDINATES:
            if name in told:
                told[name] = _rounded(told[name], decimals)
        return {name: value for name, value in told.items() if name not in ("id", "version", "type")}


def _rounded(numbers: str, decimals: int) -> str:
    """Numbers of a path with so many decimals at most, and no more spaces than it takes to tell them apart."""
    short = re.sub(r"-?\d+\.\d+", lambda number: f"{round(float(number[0]), decimals) + 0.0:g}", numbers)
    return re.sub(r" ?([A-Za-z]) ?", r"\1", " ".join(short.split()))
