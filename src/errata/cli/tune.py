"""`errata tune`: the same search budget for every method, on edits that no test scores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.lists import numbers
from errata.cli.terminal import Chat, Device, Dtype, Irrelevant, Json, emit, meter, say
from errata.errors import BadOption

if TYPE_CHECKING:
    from errata.bench.tune import Trial


def tune(
    method: Annotated[str, typer.Argument(metavar="METHOD,...", help="Methods, one after another.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The log and settings.json; resumed if it exists.")],
    model: Annotated[str, typer.Option(help="atlas, a directory, or a name on the Hub.")] = "atlas",
    data: Annotated[
        str, typer.Option(help="atlas (its validation edits), or a file, whose last edits are set aside.")
    ] = "atlas",
    edits: Annotated[str, typer.Option(metavar="T,...", help="After how many edits to score all of them.")] = "50",
    budget: Annotated[int, typer.Option(min=1, help="Settings to try for each method, the defaults included.")] = 8,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,...", help="Values to try for an option, in place of the method's own; repeatable."
        ),
    ] = None,
    irrelevant: Irrelevant = None,
    chat: Chat = False,
    seed: int = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Edits made at once.")] = 1,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Search for the settings of methods on a validation split, the same number of trials for each.

    DIR gets every trial as a row of results.jsonl, and the best settings in settings.json, for `errata bench --settings`.

    \b
    Example:
      errata tune memoir,ft_l --model atlas --edits 10,50 --budget 8 --output tuned
      errata bench --model atlas --data atlas --method memoir,ft_l --settings tuned/settings.json
    """  # fmt: skip
    from errata import loading
    from errata.bench import Plan
    from errata.bench import tune as tuning
    from errata.bench.plan import model_name
    from errata.data import load, read_irrelevant

    points = numbers(edits)
    names = [name.strip() for name in method.split(",") if name.strip()]
    spaces = {name: _space(name, search or []) for name in names}
    for name in names:
        tuning.trials(name, budget, seed, spaces[name])
    chosen = load("atlas:validation" if data == "atlas" else data)
    stream, probes = chosen.stream(points[-1]) if data == "atlas" else tuning.validation(chosen, points[-1])
    if irrelevant is not None:
        probes = read_irrelevant(irrelevant)
    base, tokenizer = loading.load(model, dtype=dtype, device=device)
    plan = Plan(
        base, tokenizer, None, model_name(model), chosen.name, stream, probes, points, seed, batch_size, chat=chat
    )
    for name in names:
        with meter(budget, name) as bar:

            def told(i: int, trial: "Trial", bar: Any = bar) -> None:
                bar.step(f"best of {i + 1}")
                bar.note(f"{trial.method} {_written(trial.options)}: {trial.score:.3f}")

            best = tuning.tune(plan, name, budget, output, space=spaces[name], progress=told)
        if as_json:
            emit({"method": name, "options": best.options, "score": best.score})
        else:
            typer.echo(f"{name}: {_written(best.options)}, average {best.score:.3f}")
    say(f"settings: {output / tuning.FILE}; the log: {output / 'results.jsonl'}")


def _space(method: str, pairs: list[str]) -> dict[str, tuple[Any, ...]] | None:
    """The values of `--search`, with the types that the method's options have; None where none are given."""
    from errata.cli import settings

    found = {}
    for pair in pairs:
        name, equals, values = pair.partition("=")
        if not equals or not values:
            raise BadOption(f"--search {pair}: write NAME=VALUE,VALUE")
        found[name] = tuple(settings.parse([f"{name}={value}"], method)[name] for value in values.split(","))
    return found or None


def _written(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items()) or "the defaults"
