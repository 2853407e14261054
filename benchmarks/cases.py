"""Cases: which of a benchmark's are run, told as `--cases "one;another"`."""

import argparse
from collections.abc import Collection

ALL = "all"


def add_cases(parser: argparse.ArgumentParser, cases: Collection[str], more: Collection[str] | None = None) -> None:
    """The option `--cases`: by default these, of these or `more`."""
    parser.add_argument("--cases", default=";".join(cases), help=f"{ALL}, or some of: " + ";".join(more or cases))


def cases_of(parser: argparse.ArgumentParser, told: argparse.Namespace, cases: Collection[str]) -> list[str]:
    """Those that were told, if there are such; else the parser's one line."""
    asked: list[str] = list(cases) if told.cases == ALL else told.cases.split(";")
    if unknown := sorted(set(asked) - set(cases)):
        parser.error(f"no case is called {', '.join(unknown)}; there are {'; '.join(cases)}")
    return asked
