"""What a person sees of long work: a bar on a terminal, a line a minute in a log."""

import io
import sys

import pytest

from errata.cli import terminal
from errata.cli.terminal import duration, meter


def test_durations_are_told_in_words() -> None:
    assert [duration(seconds) for seconds in (40.2, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]


def test_a_log_says_once_a_minute_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with meter(100, "wise") as told:
        for _ in range(100):
            now[0] += 2.0
            told.step()
        told.step("scoring", 0)
    assert capsys.readouterr().err.splitlines() == [
        "wise: 30 of 100; about 2 min left",
        "wise: 60 of 100; about 80 s left",
        "wise: 90 of 100; about 20 s left",
    ]


def test_short_work_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with meter(3, "wise") as told:
        told.step(count=3)
        told.note("not made: one of them")
    assert capsys.readouterr().err == "not made: one of them\n"


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with meter(4, "editing") as told:
        told.step(count=2)
        told.note("beside the bar")
        told.reach(4, 4, "done")
    assert "editing" in screen.getvalue()
    assert "4/4" in screen.getvalue()
    assert "beside the bar" in screen.getvalue()
