"""Section: what a report is made of: headings with paragraphs, tables and figures under them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Grid(NamedTuple):
    """A table: a head, and lines of as many cells."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    folded: bool = False
    """Whether it is for those who look for it: a page folds it away, and Markdown and papers do without."""


class Figure(NamedTuple):
    """A picture that is drawn when it is needed."""

    title: str
    draw: Callable[[Path], None]
    """Writes it as PNG, SVG or PDF, by the suffix. Raises `MissingExtra` without matplotlib."""
    shows: str = ""
    """What is to be seen on it, for its caption and for those who cannot see it."""

    def watched(self, each: Callable[[], None]) -> "Figure":
        """The same figure, which tells when it has been drawn."""

        def draw(path: Path) -> None:
            self.draw(path)
            each()

        return self._replace(draw=draw)


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    text: Sequence[str] = ()
    """Paragraphs."""
    grids: Sequence[Grid] = ()
    figures: Sequence[Figure] = ()
