"""The command line in the tests' own process: what a command printed, and how it was refused."""

import json
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from errata.cli import app


def run(*arguments: object, code: int = 0) -> Result:
    """A command that must end with this exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*arguments: object, code: int = 2, silent: bool = True) -> str:
    """The one line that a refused command writes; it prints nothing, unless it is not `silent`."""
    result = run(*arguments, code=code)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.count("error: ") == len(errors) == 1
    assert "Traceback" not in result.stderr
    assert not (silent and result.stdout)
    return errors[0]


def lines(result: Result) -> list[Any]:
    """What a command with --json printed."""
    return [json.loads(line) for line in result.stdout.splitlines()]
