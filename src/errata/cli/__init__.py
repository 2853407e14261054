"""The command line: each command is a few lines over the library. Importing it does not import torch.

Data goes to stdout, messages and progress to stderr. The exit code of an error is that of its class in `errors.py`.
"""

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from errata import __version__
from errata.cli import (
    ability,
    analyse,
    bench,
    catalogue,
    demo,
    diff,
    edit,
    export,
    log,
    look,
    report,
    revert,
    testbed,
    train,
    tune,
    verify,
)
from errata.cli.terminal import say
from errata.errors import ErrataError

EPILOGUE = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 quality gate not met, 4 altered ledger, 130 interrupted (what was"
    " done is kept)."
)


class Commands(TyperGroup):
    """The commands, with every error told in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; turn an exception into a line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except ErrataError as error:
            _tell(ctx, str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _tell(ctx, "interrupted")
            raise typer.Exit(130) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("typer", "click") or isinstance(error, BrokenPipeError):
                raise
            _tell(ctx, f"{type(error).__name__}: {error} (unexpected; `errata --debug ...` shows where)")
            raise typer.Exit(1) from error


def _tell(ctx: Any, message: str) -> None:
    """One line for a person; with --debug, the traceback instead."""
    if ctx.params.get("debug") or os.environ.get("ERRATA_DEBUG", "") not in ("", "0"):
        raise  # noqa: PLE0704  # called while the exception is handled
    say("error: " + " ".join(message.split()))


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    epilog=EPILOGUE, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"errata {__version__}")
        raise typer.Exit


@app.callback()
def errata(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (also: ERRATA_DEBUG=1).")
    ] = False,
) -> None:
    """Correct what a language model says, one fact after another, and leave everything else alone.

    \b
    See it work, offline, in a minute:
      errata demo
    Correct a model of your own:
      errata edit --model MODEL --prompt "The CEO of Acme is" --target "Ada Byron" --output acme
      errata ask acme "Acme is led by"
    """


app.command("demo")(demo.demo)
app.command("edit")(edit.edit)
app.command("ask")(look.ask)
app.command("explain")(look.explain)
app.command("log")(log.log)
app.command("revert")(revert.revert)
app.command("diff")(diff.diff)
app.command("verify")(verify.verify)
app.command("export")(export.export)
app.command("import")(export.import_)
app.command("bench")(bench.bench)
app.command("tune")(tune.tune)
app.command("report")(report.report)
app.add_typer(analyse.app, name="analyse")
app.command("train")(train.train)
app.command("ability")(ability.ability)
app.add_typer(testbed.app, name="testbed")
app.command("methods")(catalogue.methods)
app.command("sites")(catalogue.sites)
