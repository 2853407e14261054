"""Further: teach a model that knows a world something more, and save it with what was measured of it."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer

from errata.atlas import batches as of_facts
from errata.atlas.corpus import Text, first_epoch
from errata.atlas.train import Recipe, make, measure
from errata.atlas.world import World, world
from errata.pretraining.batches import Row
from errata.pretraining.recall import Question

Output = Annotated[
    Path, typer.Option(help="The directory to write, with a model that `--model` takes.", file_okay=False)
]
Base = Annotated[
    Path | None,
    typer.Option(help="The model to go on from.", show_default="the embedded one", exists=True, file_okay=False),
]
Seed = Annotated[int, typer.Option(help="Of the world that it knows.")]
Steps = Annotated[int, typer.Option(help="Optimizer steps.", min=1)]
Rate = Annotated[float, typer.Option(help="The highest learning rate of the matrices.")]

STEPS, RATE = 500, 3e-3


@dataclass(frozen=True)
class Lesson:
    """What is taught, and how it is seen whether it was learnt."""

    texts: Callable[[World, int, Any], list[Text]]
    """Those of an epoch of a world, whose number counts from zero, for a tokenizer."""
    questions: Callable[[World, Any], Mapping[str, Sequence[Question]]]
    """What is asked of a world, for a tokenizer, and what the share of right answers is called."""
    chat_template: str | None = None
    """That of the tokenizer which is written; by default the one that it has."""


def teach(lesson: Lesson, output: Path, base: Path | None, seed: int, steps: int, rate: float) -> dict[str, Any]:
    """A model that knows the world of this seed (the embedded one by default), taught a lesson and saved in `output`.

    Returns what was measured of it, which `metrics.json` beside it holds. Raises `typer.BadParameter` for a directory
    without a model or with a damaged one, and for an output that cannot be made, before anything is trained.
    """
    import torch

    from errata.pretraining.recall import recall

    model, tokenizer = _known(base)
    make(output)
    console = Console(stderr=True)
    took = fitted(model, tokenizer, lesson, seed, steps, rate, console)
    if lesson.chat_template is not None:
        tokenizer.chat_template = lesson.chat_template
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    model.float()
    asked = lesson.questions(world(seed), tokenizer)
    measured = {
        "base": str(base or "atlas"),
        **took,
        **{name: round(recall(model, tokenizer, questions), 4) for name, questions in asked.items()},
        "seed": seed,
        **measure(output, seed),
    }
    (output / "metrics.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    console.print_json(data=measured)
    return measured


def _known(base: Path | None) -> tuple[Any, Any]:
    """The model to go on from, in float32, and its tokenizer."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from errata.atlas import model_path

    if base is not None and not (base / "config.json").is_file():
        raise typer.BadParameter(f"{base} holds no model: it has no config.json", param_hint="--base")
    source = base or model_path()
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
        return model, AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise typer.BadParameter(f"the model in {source} cannot be read: {line}", param_hint="--base") from error


def fitted(
    model: Any, tokenizer: Any, lesson: Lesson, seed: int, steps: int, rate: float, console: Console
) -> dict[str, Any]:
    """Fit a model to the texts of a lesson, in every other batch; returns what it took."""
    from errata.pretraining import tokenizer as tokens
    from errata.pretraining.fitting import Losses, Rates, fit
    from errata.pretraining.llama import falling

    recipe, learnt = Recipe(seed), tokenizer.backend_tokenizer
    model.train()
    rates, losses = Rates(rate, rate * recipe.embedding_rate / recipe.learning_rate, recipe.weight_decay), Losses()
    groups = batches(lesson, world(seed), tokenizer, recipe.batch_tokens)
    started = time.perf_counter()
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=steps)
        for losses in fit(model, groups, tokens.id_of(learnt, tokens.PAD), falling(steps, 1.0, 0.0, 15), rates):
            progress.update(task, advance=1, description=f"training, loss {losses.smooth:.3f}")
    model.eval()
    seconds = time.perf_counter() - started
    return {"steps": steps, "rate": rate, "training_seconds": round(seconds), "final_loss": round(losses.smooth, 4)}


def batches(lesson: Lesson, made: World, tokenizer: Any, tokens: int) -> Iterator[list[Row]]:
    """Endless groups of rows, of at most `tokens` tokens each when padded: in turn of a lesson, and of the world itself.

    The texts of the world are there so that it is not forgotten.
    """

    def texts(made: World, number: int) -> list[Text]:
        return lesson.texts(made, number, tokenizer)

    learnt: Tokenizer = tokenizer.backend_tokenizer
    new = of_facts.batches(made, learnt, tokens, texts=texts)
    old = of_facts.batches(made, learnt, tokens, first_epoch(leg=2))
    for one, other in zip(new, old, strict=True):
        yield one
        yield other
