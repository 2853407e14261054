"""Album: pictures lose what they say twice, and nothing that they show."""

import re
from pathlib import Path

from errata.bench.album import Album
from errata.bench.section import Figure

DRAWN = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 10.12345 20" version="1.1">
 <metadata>made by hand</metadata>
 <g id="unused">
  <path d="M 1.23456 2.5 L 3.99999 -0.01 z" style="fill: none; stroke: #000000"/>
 </g>
 <defs><path id="marker" d="M 0.12345 1 L 2 3" style="stroke: #ff0000"/></defs>
 <g id="line"><use xlink:href="#marker" x="4.0404" y="5"/></g>
 <text style="font-family: 'DejaVu Sans', 'Arial', sans-serif" transform="rotate(-0 1 2)">wise</text>
</svg>
"""


def picture(album: Album) -> str:
    return album.svg(Figure("Scores", lambda path: Path(path).write_text(DRAWN, encoding="utf-8")), "Scores of wise")


def test_a_picture_says_what_it_shows_and_no_more() -> None:
    found = picture(Album())
    assert 'role="img"' in found
    assert 'aria-label="Scores of wise"' in found
    assert ">wise</text>" in found
    assert 'd="M1.2 2.5L4 0z"' in found, "a tenth of a point, and no more spaces than it takes"
    assert not re.search(r"metadata|xmlns|unused|rotate|style=|version", found)


def test_what_pictures_have_in_common_is_written_once() -> None:
    album = Album()
    one, other = picture(album), picture(album)
    (shape,) = re.findall(r'<path [^>]*\bid="(\w+)"', one)
    assert 'd="M0.12 1L2 3"' in one, "a shape that is used many times has a hundredth"
    assert "<defs" not in other, "the page has it already"
    assert f'href="#{shape}"' in one
    assert f'href="#{shape}"' in other
    rules = album.rules()
    assert rules.count("\n") == 3, "of three styles, in two pictures"
    assert "stroke:#ff0000" in rules
    assert "font-family:'DejaVu Sans', sans-serif}" in rules, "the first, and any"
    assert set(re.findall(r'class="(\w+)"', one)) == set(re.findall(r"\.(\w+)\{", rules))
