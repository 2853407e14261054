"""`errata testbed`: models that know real facts, trained from nothing, and what any model knows of such facts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from errata.cli.terminal import Device, Dtype, Json, emit, meter, say
from errata.errors import BadOption

if TYPE_CHECKING:
    from errata.testbed.training import Step

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Data = Annotated[
    Path, typer.Option(metavar="DIR", help="Where ZsRE, CounterFact, LRE, ParaRel, NQ and texts lie, at any depth.")
]


@app.callback()
def testbed() -> None:
    """Train a small model on real facts, so that edits of them can be scored; or measure what a model knows of them.

    Each command takes --json.

    \b
    Example:
      errata testbed train facts --data DIR --output testbeds/facts --minutes 30
      errata testbed evaluate testbeds/facts --data DIR
    """  # fmt: skip


@app.command()
def train(
    what: Annotated[Literal["facts"], typer.Argument(metavar="facts", help="What the model is to know.")],
    data: Data,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The model; one that was begun is continued.")],
    parameters: Annotated[str, typer.Option(metavar="N", help="Size of the model: 8M, 20M, 500K.")] = "8M",
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes, measuring included; 30 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimizer steps, instead of --minutes.")] = None,
    facts: Annotated[
        int | None, typer.Option(help="How many facts; by default, as many as size and budget have room for.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the weights, the order of the texts, and the wordings kept unseen.")
    ] = 0,
    threads: Annotated[int, typer.Option(help="Cores that share a step; another number gives other last bits.")] = 2,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Of the products; by default bfloat16 where the device multiplies in it by itself."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Of facts in a step, 1,280 by default; more for a GPU.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a Llama-architecture model from nothing on real facts and natural text.

    It learns the original answers of editing data, so that there is something to correct. After Ctrl-C or a kill, the
    same command goes on from the last checkpoint, to the same bits.

    \b
    Example:
      errata testbed train facts --data DIR --output testbeds/facts --parameters 8M --minutes 30
    """  # fmt: skip
    from errata.testbed import Budget, read
    from errata.testbed import train as carry_out
    from errata.testbed.recipe import number

    if minutes is None and steps is None:
        minutes = 30.0
    budget = Budget(number(parameters), minutes, steps, facts, seed, threads, precision, tokens)
    with meter(0, "training") as bar:

        def progress(step: "Step") -> None:
            bar.reach(step.step, step.steps, f"loss {step.losses.smooth:.3f}")
            if step.saved:
                loss, left = step.losses.smooth, step.minutes_left
                bar.note(f"step {step.step} of {step.steps}: loss {loss:.3f}, {left:.1f} minutes left")

        metrics = carry_out(read(data), output, budget, device=device, progress=progress)
    if as_json:
        emit(metrics)
    known, unseen = metrics["recall_trained_facts"], metrics["recall_unseen_wordings"]
    say(
        f"the testbed is in {output}: it says {known:.1%} of {metrics['facts']} facts"
        + ("" if unseen is None else f", {unseen:.1%} of {metrics['unseen_wordings']} in wordings it never saw")
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="atlas, a directory, or a name on the Hub.")],
    data: Data,
    limit: Annotated[
        int, typer.Option(min=0, help="Facts to ask for of each source, evenly spread; 0 for all.")
    ] = 1000,
    begin: Annotated[
        bool, typer.Option(help="Put <s> in front, where the tokenizer of the model does not do so itself.")
    ] = False,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Measure which facts a model says, greedily and exactly, and its perplexity on WikiText-2's validation text.

    \b
    Example:
      errata testbed evaluate testbeds/facts --data DIR --json
    """  # fmt: skip
    from errata import loading
    from errata.testbed import evaluate as measure
    from errata.testbed import read
    from errata.testbed.evaluate import beginning

    corpus = read(data)
    base, tokenizer = loading.load(model, dtype=dtype, device=device)
    if begin:
        if tokenizer.bos_token is None:
            raise BadOption(f"--begin: the tokenizer of {model} knows no token that begins a text")
        beginning(tokenizer)
    directory = Path(model) if Path(model).is_dir() else None
    measured: dict[str, Any] = {"model": model, "begin": begin}
    measured |= measure(base, tokenizer, corpus, directory=directory, limit=limit or None)
    if as_json:
        emit(measured)
    else:
        typer.echo(_table(measured))


def _table(measured: dict[str, Any]) -> str:
    """Recall by source, and what else was measured, as Markdown."""
    rows = ["| source | facts asked | recall | rephrased |", "|---|---|---|---|"]
    rows += [
        f"| {name} | {of['facts']} | {_percent(of['recall'])} | {_percent(of['recall_rephrased'])} |"
        for name, of in measured["sources"].items()
    ]
    if "recall_trained_facts" in measured:
        known, unseen = measured["recall_trained_facts"], measured["recall_unseen_wordings"]
        rows += ["", f"trained facts: {_percent(known)} of {measured['facts']}"]
        rows += [f"unseen wordings: {_percent(unseen)} of {measured['unseen_wordings']}"]
    read = measured["wikitext2_validation"]
    if read is not None:
        rows += ["", f"WikiText-2 validation: perplexity {read['perplexity_per_token']} a token"]
    return "\n".join(rows)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
