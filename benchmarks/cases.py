"""Cases: which of a benchmark's are run, told as `--cases "one;another"`."""

import argparse
from collections.abc import Collection


def add_cases(parser: argparse.ArgumentParser, cases: Collection[str]) -> None:
    """The option `--cases`, which by default are all."""
    parser.add_argument("--cases", default=";".join(cases), help="some of: " + ";".join(cases))


def cases_of(parser: argparse.ArgumentParser, told: argparse.Namespace, cases: Collection[str]) -> list[str]:
    """Those that were told, if there are such; else the parser's one line."""
    asked: list[str] = told.cases.split(";")
    if unknown := sorted(set(asked) - set(cases)):
        parser.error(f"no case is called {', '.join(unknown)}; there are {'; '.join(cases)}")
    return asked
