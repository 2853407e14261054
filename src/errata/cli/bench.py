"""`errata bench`: methods side by side on one model and one data set."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from errata.cli.lists import names, numbers
from errata.cli.terminal import Chat, Device, Dtype, Irrelevant, Json, Options, emit, meter, say
from errata.errors import BadOption, ErrataError

if TYPE_CHECKING:
    from errata.bench import Plan, Row


def bench(
    ctx: typer.Context,
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN.toml]", help="A plan file, instead of --method and the like.")
    ] = None,
    model: Annotated[str, typer.Option(help="atlas, a directory, or a name on the Hub.")] = "atlas",
    data: Annotated[str, typer.Option(help="atlas, a .jsonl file, zsre:PATH, counterfact:PATH, ...")] = "atlas",
    method: Annotated[
        str, typer.Option(metavar="NAME,...", help="Methods; none is the unedited model. PLAN: these of its own alone.")
    ] = "memoir,wise,grace",
    edits: Annotated[str, typer.Option(metavar="T,...", help="After how many edits to score all of them.")] = "100",
    options: Options = None,
    settings: Annotated[
        Path | None, typer.Option(help="Tuned settings, from `errata tune`; --set goes before.")
    ] = None,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Methods as in their papers, without what errata has added to them.")
    ] = False,
    seed: int = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Edits made at once.")] = 1,
    chunks: Annotated[int, typer.Option(min=1, help="Average each T over so many disjoint streams.")] = 1,
    irrelevant: Irrelevant = None,
    chat: Chat = False,
    on_error: Annotated[Literal["stop", "skip"], typer.Option(help="What a bad record of the data does.")] = "stop",
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep rows and figures here, and resume from it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="PLAN: say how many runs and edits, how much memory and time; run none.")
    ] = False,
    timed: Annotated[
        bool, typer.Option("--timed", help="--dry-run: make and score two edits of each case, for how long they take.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="PLAN: run it in this process, or spread it over a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="ray: the head; by default RAY_ADDRESS, or this machine alone."),
    ] = None,
    cpus_each: Annotated[int, typer.Option(min=1, help="ray: CPUs, and threads, of each worker.")] = 1,
    gpus_each: Annotated[
        float | None, typer.Option(help="ray: GPUs of each worker, such as 0.5; by default 1, if there are any.")
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Compare methods: reliability, generalization and locality after T edits.

    With --output, the same command goes on where it was stopped. Options: --set lr=0.5 for every method, --set
    memoir.lr=0.5 for one; --as-published leaves out what errata has added to them. A plan file says all of this; --model,
    --data, --edits, --chunks, --seed, --irrelevant and --chat may be given in its place, and --method says which of its
    methods to run.

    \b
    Example:
      errata bench --model atlas --data atlas --method memoir,wise,grace,ft_l --edits 1,10,100 --output results
      errata bench --model CHATMODEL --chat --data facts.jsonl --method memoir,none --output chatting
      errata bench plans/wise-table-10.toml --dry-run --timed
      errata bench plans/wise-table-10.toml --model atlas --data atlas --as-published --output merging
      errata bench plans/atlas.toml --method memoir,wise --edits 10 --output atlas
      errata bench plans/atlas.toml --output atlas --engine ray --gpus-each 0.5
    """  # fmt: skip
    if plan is not None:
        bench_plan(ctx, plan)
        return
    for name, given in (("--dry-run", dry_run), ("--dry-run --timed", timed), ("--engine ray", engine == "ray")):
        if given:
            raise BadOption(f"{name} is for a plan file: errata bench PLAN.toml {name}")
    points = numbers(edits)
    asked = Request(
        model, data, tuple(names(method)), points, seed, batch_size, chunks, irrelevant, on_error, device, dtype, settings,
        chat, as_published,
    )  # fmt: skip
    rows = measured(asked.plans(options or []), output)
    show(rows, as_json=as_json)
    if output is not None:
        draw(rows, output)


def bench_plan(ctx: typer.Context, path: Path) -> None:
    """What a plan file says."""
    from errata.cli import plan

    file, given = plan.read(ctx, path), ctx.params
    if given["timed"] and not given["dry_run"]:
        raise BadOption("--timed is for a dry run: errata bench PLAN.toml --dry-run --timed")
    if given["dry_run"]:
        how = {name: given[name] for name in ("timed", "device", "dtype", "on_error")}
        estimate = plan.dry_run(file, given["output"], **how)
        if given["as_json"]:
            emit(estimate._asdict())
        else:
            typer.echo(plan.told(file, estimate))
        return
    output, how = given["output"], {name: given[name] for name in ("device", "dtype")}
    if given["engine"] == "ray":
        from errata.bench.cluster import Share

        share = Share(given["cpus_each"], given["gpus_each"], **how)
        rows, refused = plan.carry_out_on_ray(file, output, given["address"], share, on_error=given["on_error"])
    else:
        rows, refused = plan.carry_out(file, output, **how, on_error=given["on_error"])
    if given["as_json"]:
        show(rows, as_json=True)
    else:
        plan.show(file, rows)
    if refused:
        raise ErrataError(f"{len(refused)} runs of {path} could not be made; the first: {refused[0]}")


@dataclass(frozen=True)
class Request:
    """What to compare."""

    model: str
    data: str
    methods: tuple[str, ...]
    points: tuple[int, ...]
    seed: int = 0
    batch_size: int = 1
    chunks: int = 1
    irrelevant: str | None = None
    on_error: Literal["stop", "skip"] = "stop"
    device: str | None = None
    dtype: str = "auto"
    settings: Path | None = None
    chat: bool = False
    as_published: bool = False

    def plans(self, pairs: list[str]) -> "list[Plan]":
        """One plan a method. Everything cheap is checked before the model is loaded."""
        from errata import loading, methods
        from errata.bench import Plan
        from errata.bench.claims import as_published
        from errata.bench.plan import model_name
        from errata.bench.tune import Settings
        from errata.cli import settings
        from errata.data import load, read_irrelevant

        chosen = [name for name in self.methods if name != "none"]
        options = settings.for_each(pairs, chosen)
        tuned = None if self.settings is None else Settings.read(self.settings)
        if tuned is not None:
            options = {name: tuned.options(name) | own for name, own in options.items()}
        if self.as_published:
            options = {name: {**as_published(name), **own} for name, own in options.items()}
        dataset = load(self.data, on_error=self.on_error)
        for bad in dataset.skipped:
            say(f"skipped: {bad}")
        stream, irrelevant = dataset.stream(self._length(len(dataset.edits)))
        if tuned is not None:
            tuned.check_disjoint(stream, self.settings)
        if self.irrelevant is not None:
            irrelevant = read_irrelevant(self.irrelevant)
        base, tokenizer = loading.load(self.model, dtype=self.dtype, device=self.device)
        plan = Plan(
            base, tokenizer, None, model_name(self.model), dataset.name, stream, irrelevant, self.points,
            self.seed, self.batch_size, self.chunks, chat=self.chat,
        )  # fmt: skip
        editors = [methods.make(name, **options[name]) if name in options else None for name in self.methods]
        return [replace(plan, editor=editor) for editor in editors]

    def _length(self, available: int) -> int:
        """Edits to take from the data: the longest stream, or as many disjoint chunks of it as there are."""
        longest = max(self.points)
        return longest if self.chunks == 1 else max(longest, min(longest * self.chunks, available))


def measured(plans: "list[Plan]", output: Path | None) -> "list[Row]":
    """The rows of some plans on one base model, with a bar."""
    from errata.bench import run
    from errata.metrics import Reference

    rows, reference = [], Reference()
    for plan in plans:
        with meter(max(plan.checkpoints) * plan.chunks, plan.method) as bar:
            rows += run(plan, output, bar.follow, reference)
    return rows


def show(rows: "list[Row]", *, as_json: bool) -> None:
    """Rows as JSON lines, or as a table: in Markdown where stdout is no terminal."""
    from errata.bench import markdown, table

    if as_json:
        for row in rows:
            emit(row.to_record())
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(table(rows))
    else:
        typer.echo(markdown(rows))


def draw(rows: "list[Row]", output: Path) -> None:
    """The figures of the rows, as PNG and SVG, if they can be drawn here."""
    from errata.bench.plots import capacity, has_capacity, triangle
    from errata.errors import MissingExtra

    figures = {"triangle": triangle} | ({"capacity": capacity} if has_capacity(rows) else {})
    try:
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                figure(rows, output / f"{name}.{kind}")
            say(f"figure: {output / name}.png and .svg")
    except MissingExtra as error:
        say(f"no figure: {error}")
