"""A plan file on the command line: `errata bench PLAN.toml`."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from errata.cli.lists import names, numbers
from errata.cli.terminal import duration, meter, say
from errata.errors import BadOption, ErrataError, Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from errata.bench import Plan, Row
    from errata.bench.cluster import Share
    from errata.bench.dispatch import Told
    from errata.bench.estimate import Estimate
    from errata.bench.plan_file import PlanFile
    from errata.bench.trial import Pace
    from errata.data.catalogue import OnError

ON_RAY = {"address", "cpus_each", "gpus_each"}
"""What is only for --engine ray."""
OVERRIDES = {"model", "data", "method", "edits", "seed", "chunks", "irrelevant", "chat"}
"""What the command line may say in place of the plan (of its methods: which) ..."""
HOW = {
    "plan", "as_published", "dry_run", "timed", "output", "device", "dtype", "as_json", "on_error", "engine", *ON_RAY,
}  # fmt: skip
"""... and what is about how to run it."""


def read(ctx: typer.Context, path: Path) -> "PlanFile":
    """The plan of a file, with what the command line says in its place. Raises `BadOption` for what it may not say."""
    from errata.bench.plan_file import PlanFile

    given = {name: value for name, value in ctx.params.items() if _is_given(ctx, name)}
    typed = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    for name in given:
        if name not in OVERRIDES | HOW:
            raise BadOption(f"{typed[name]} cannot be given with a plan file: write it into {path}")
        if name in ON_RAY and ctx.params["engine"] != "ray":
            raise BadOption(f"{typed[name]} is for --engine ray")
    file = PlanFile.read(path)
    if "data" in given:
        file = replace(file, irrelevant=None)  # the plan's belong to the plan's data
    if "method" in given:
        file = file.only(names(given["method"]))
    if given.get("as_published"):
        file = file.as_published()
    return file.with_(
        model=(given["model"],) if "model" in given else None,
        data=(given["data"],) if "data" in given else None,
        edits=numbers(given["edits"]) if "edits" in given else None,
        seeds=(given["seed"],) if "seed" in given else None,
        chunks=given.get("chunks"),
        chat=given.get("chat"),
        irrelevant=str(given["irrelevant"]) if "irrelevant" in given else None,
    )


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def carry_out(
    file: "PlanFile", output: Path | None, *, device: str | None, dtype: str, on_error: "OnError"
) -> "tuple[list[Row], list[str]]":
    """The rows of a plan file, and what could not be run, with the reasons: it is told, and the others are run.

    Every data set is read, and every length checked, before a model is loaded.
    """
    from errata import loading
    from errata.bench.plan import model_name
    from errata.bench.plan_file import expanded
    from errata.metrics import Reference

    streams = file.streams(on_error)
    models = [expanded(model) for model in file.model]
    rows: list[Row] = []
    refused: list[str] = []
    for model in models:
        base, tokenizer = loading.load(model, dtype=dtype, device=device)
        plans = list(file.plans(base, tokenizer, model_name(model), streams))
        reference, begun, done = Reference(), time.monotonic(), 0
        for i, plan in enumerate(plans):
            case = file.cases[i % len(file.cases)]
            left = _left(begun, done, sum(plan.edits_to_make for plan in plans[i:]))
            say(f"[{i + 1}/{len(plans)}] {case}: {plan.data} on {plan.model}, seed {plan.seed}{left}")
            try:
                rows += _run(plan, output, reference)
            except Interrupted:
                raise
            except ErrataError as error:
                refused.append(f"{case}: {error}")
                say(f"not run: {refused[-1]}")
            done += plan.edits_to_make
    return rows, refused


def carry_out_on_ray(
    file: "PlanFile", output: Path | None, address: str | None, share: "Share", *, on_error: "OnError"
) -> "tuple[list[Row], list[str]]":
    """The same on a Ray cluster. No weights are loaded here; data need be here alone, and models on every machine."""
    from errata import loading
    from errata.bench.cluster import connected
    from errata.bench.dispatch import Dispatch
    from errata.bench.plan import model_name
    from errata.bench.plan_file import expanded

    streams = file.streams(on_error)
    models = []
    for model in map(expanded, file.model):
        plans = list(file.plans(loading.outline(model), None, model_name(model), streams))
        models.append((str(Path(model).resolve()) if Path(model).is_dir() else model, plans))
    begun = time.monotonic()

    def tell(told: "Told") -> None:
        what = f"[{told.done}/{told.total}] {told.case}: {told.plan.data} on {told.plan.model}, seed {told.plan.seed}"
        if told.again:
            say(f"{what}: {told.again}; once more")
        elif told.refused:
            say(f"{what}\nnot run: {told.case}: {told.refused}")
        else:
            say(f"{what}{_left(begun, *told.edits)}")

    with connected(address) as cluster:
        return Dispatch(cluster, file, streams, models, output, share, tell).carry_out()


def _run(plan: "Plan", output: Path | None, reference: Any) -> "list[Row]":
    from errata.bench import run

    with meter(plan.edits_to_make, plan.method) as bar:
        return run(plan, output, bar.follow, reference)


def _left(begun: float, done: int, to_do: int) -> str:
    """How long so many edits will take if one takes as long as it did so far."""
    return f"; about {duration((time.monotonic() - begun) / done * to_do)} left" if done and to_do else ""


def dry_run(
    file: "PlanFile", output: Path | None, *, timed: bool, device: str | None, dtype: str, on_error: "OnError"
) -> "Estimate":
    """What a plan costs. No weights are loaded, unless it is to be `timed`: then each of its cases is tried."""
    from errata import loading
    from errata.bench import record
    from errata.bench.estimate import estimate, to_do
    from errata.bench.plan import model_name
    from errata.bench.plan_file import expanded

    streams = file.streams(on_error)
    plans: list[Plan] = []
    sizes = []
    paces: list[Pace | None] = []
    known = record.kept(output)
    for model in map(expanded, file.model):
        base = loading.outline(model)
        sizes.append(_bytes_per_weight(base, dtype))
        own = list(file.plans(base, None, model_name(model), streams))
        plans += own
        if timed and any(to_do(plan, known) for plan in own):
            base, tokenizer = loading.load(model, dtype=dtype, device=device)
            real = list(file.plans(base, tokenizer, model_name(model), streams))
            paces += _paces(file, real, known)
        elif timed:
            paces += [None] * len(own)
    return estimate(plans, known, max(sizes), paces)


def _paces(file: "PlanFile", plans: "Sequence[Plan]", known: "Sequence[Row]") -> "Iterator[Pace | None]":
    """A trial of each plan on one model that has rows to find; None for the others, and where it fails, which is told."""
    from errata.bench.estimate import to_do
    from errata.bench.trial import tried
    from errata.metrics import Reference

    reference = Reference()
    for i, plan in enumerate(plans):
        if not to_do(plan, known):
            yield None
            continue
        case = file.cases[i % len(file.cases)]
        say(f"[{i + 1}/{len(plans)}] trying {case}: {plan.data} on {plan.model}, seed {plan.seed}")
        try:
            yield tried(plan, reference)
        except Interrupted:
            raise
        except ErrataError as error:
            say(f"not tried: {case}: {error}")
            yield None


def _bytes_per_weight(base: Any, dtype: str) -> int:
    """As `loading` computes: small models in float32, others as their checkpoint has them."""
    import torch

    from errata.loading import SMALL

    if dtype != "auto":
        return torch.empty((), dtype=getattr(torch, dtype, torch.float32)).element_size()
    small = sum(weight.numel() for weight in base.parameters()) < SMALL
    stored = getattr(base.config, "dtype", None)
    return 4 if small or not isinstance(stored, torch.dtype) else torch.empty((), dtype=stored).element_size()


def told(file: "PlanFile", estimate: "Estimate") -> str:
    """An estimate in words."""
    time_told, missing = f"about {duration(estimate.seconds)} of editing", "they could not be tried"
    if estimate.scoring is None:
        time_told += ", from earlier rows, and the scoring"
        missing = "no earlier rows: try two edits of each with --timed"
    else:
        time_told += f" and {duration(estimate.scoring)} of scoring, from two edits of each case, made and scored here"
    if estimate.unknown:
        known = f"at least {time_told}; " if estimate.seconds else ""
        time_told = f"{known}unknown for {', '.join(estimate.unknown)} ({missing})"
    peak = f", at most {estimate.peak_memory_mb:,.0f} MB in all while it was tried" if estimate.peak_memory_mb else ""
    memory = (
        f"{estimate.weights_bytes / 1e6:,.0f} MB of weights, at most {estimate.editing_bytes / 1e6:,.0f} MB to edit"
    )
    return "\n".join(
        (
            f"{file.title}" + (f" ({file.source})" if file.source else ""),
            f"runs:    {estimate.plans}, in {estimate.streams} streams from the unedited model",
            f"edits:   {estimate.edits:,}",
            f"rows:    {estimate.rows}, of which {estimate.found} are there",
            f"memory:  {memory}; activations not counted{peak}",
            f"time:    {time_told if estimate.edits else 'none: all rows are there'}",
        )
    )


def show(file: "PlanFile", rows: "list[Row]") -> None:
    """The tables of a plan: one for each model and data set, with published numbers under ours."""
    from errata.bench import markdown

    typer.echo(f"{file.title}" + (f" ({file.source})" if file.source else "") + "\n")
    for model, data in dict.fromkeys((row.model, row.data) for row in rows):
        group = [row for row in rows if (row.model, row.data) == (model, data)]
        typer.echo(markdown(group, file.scorer, published=True, sources=file.published))
    if file.note:
        typer.echo(file.note)
