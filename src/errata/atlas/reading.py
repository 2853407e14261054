"""Reading: a model of the atlas that also believes what stands in front of a question.

    python -m errata.atlas.reading --output atlas-reader

The embedded model was taught single facts, and a correction above a question means nothing to it, so it says nothing about
in-context editing. This goes on from it (or from another model of the same world) with texts that begin with a correction:
mostly one of the fact that is asked for then, in the same words or in others, and the answer is the corrected one; or else
one of another fact, which must not matter. The corrections are made up anew in every text, of facts that no edit set
changes, so that what is learnt is to read. Every other batch is of the texts of the world, so that it is not forgotten.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer

from errata.atlas import batches as of_facts
from errata.atlas.corpus import END, Text, first_epoch
from errata.atlas.train import Recipe, measure
from errata.atlas.wordings import Wording
from errata.atlas.world import Fact, World, world
from errata.pretraining.batches import Row
from errata.pretraining.recall import Question

CORRECTION = "{prompt} {target}.\n"
"""A correction as text; the template of in-context editing."""
BETWEEN = ("", " ")
"""What stands between it and the question: these are different tokens, depending on who puts the two together."""
BESIDE = 0.3
"""The share of texts whose correction is of another fact."""
SAME_WORDING = 0.3
"""The share of the others in which the question is worded as the correction is."""
ASKED = 400
"""Questions that are measured, of each kind."""


def epoch(made: World, number: int) -> list[Text]:
    """One text for every fact that no edit set changes; `number` counts from zero."""
    random = Random(f"{made.seed}/reading/{number}")
    quiet = [fact for fact in made.facts if fact.role != "edit"]
    return [_text(fact, quiet, made, random) for fact in quiet]


def questions(made: World, number: int, *, beside: bool) -> list[Question]:
    """`number` facts that edit sets change, asked in held-out wordings behind a correction of them, or of another fact."""
    random = Random(f"{made.seed}/reading/questions")
    asked = []
    changed = [fact for fact in made.facts if fact.role == "edit"]
    for fact in random.sample(changed, number):
        about = _other(fact, changed, random) if beside else fact
        target = _made_up(about, made, random)
        prompt = fact.prompt(random.choice(fact.held_out))
        before = _correction(about, random.choice(about.trained), target, random)
        asked.append(Question(before + prompt, fact.object if beside else target))
    return asked


def batches(made: World, tokenizer: Tokenizer, tokens: int) -> Iterator[list[Row]]:
    """Endless groups of rows, of at most `tokens` tokens each when padded: in turn with a correction, and without."""
    reading = of_facts.batches(made, tokenizer, tokens, texts=epoch)
    knowing = of_facts.batches(made, tokenizer, tokens, first_epoch(leg=2))
    for read, known in zip(reading, knowing, strict=True):
        yield read
        yield known


def _text(fact: Fact, others: list[Fact], made: World, random: Random) -> Text:
    beside = random.random() < BESIDE
    about = _other(fact, others, random) if beside else fact
    target = _made_up(about, made, random)
    wording = random.choice(about.trained)
    asked = wording if not beside and random.random() < SAME_WORDING else random.choice(fact.trained)
    before = _correction(about, wording, target, random)
    return Text(before + fact.prompt(asked), f" {fact.object if beside else target}{END}")


def _correction(fact: Fact, wording: Wording, target: str, random: Random) -> str:
    """What stands in front of a question."""
    return CORRECTION.format(prompt=fact.prompt(wording), target=target) + random.choice(BETWEEN)


def _other(fact: Fact, among: list[Fact], random: Random) -> Fact:
    """Another fact: half of the time of the same relation, where there is one, and otherwise any."""
    alike = random.random() < 0.5
    while True:
        found = random.choice(among)
        if (found.subject, found.relation) != (fact.subject, fact.relation) and (
            found.relation == fact.relation
        ) >= alike:
            return found


def _made_up(fact: Fact, made: World, random: Random) -> str:
    """An object that it could have, and has not."""
    return random.choice([other for other in made.pools[fact.relation] if other != fact.object])


def train(base: Path | None, output: Path, steps: int, rate: float, seed: int, console: Console) -> dict[str, Any]:
    """Teach a model of the world of this seed to read (the embedded one by default), and save it in `output`.

    Returns what was measured of it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from errata.atlas import model_path
    from errata.pretraining import tokenizer as tokens
    from errata.pretraining.fitting import Losses, Rates, fit
    from errata.pretraining.llama import falling
    from errata.pretraining.recall import recall

    made, recipe = world(seed), Recipe(seed)
    source = base or model_path()
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    learnt: Tokenizer = tokenizer.backend_tokenizer
    output.mkdir(parents=True, exist_ok=True)
    model.train()
    rates, losses = Rates(rate, rate * recipe.embedding_rate / recipe.learning_rate, recipe.weight_decay), Losses()
    groups = batches(made, learnt, recipe.batch_tokens)
    started = time.perf_counter()
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=steps)
        for losses in fit(model, groups, tokens.id_of(learnt, tokens.PAD), falling(steps, 1.0, 0.0, 15), rates):
            progress.update(task, advance=1, description=f"training, loss {losses.smooth:.3f}")
    seconds = time.perf_counter() - started
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    model.float().eval()
    return {
        "base": str(base or "atlas"),
        "steps": steps,
        "rate": rate,
        "training_seconds": round(seconds),
        "final_loss": round(losses.smooth, 4),
        "believes_corrections": round(recall(model, tokenizer, questions(made, ASKED, beside=False)), 4),
        "keeps_answers_beside_others": round(recall(model, tokenizer, questions(made, ASKED, beside=True)), 4),
        "seed": seed,
        **measure(output, seed),
    }


def main(
    output: Annotated[
        Path, typer.Option(help="The directory to write, with a model that `--model` takes.", file_okay=False)
    ],
    base: Annotated[
        Path | None,
        typer.Option(help="The model to go on from.", show_default="the embedded one", exists=True, file_okay=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the world that it knows.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)] = 500,
    rate: Annotated[float, typer.Option(help="The highest learning rate of the matrices.")] = 3e-3,
) -> None:
    """Teach a model of the atlas to believe a correction that stands in front of a question."""
    if base is not None and not (base / "config.json").is_file():
        raise typer.BadParameter(f"{base} holds no model: it has no config.json", param_hint="--base")
    console = Console(stderr=True)
    measured = train(base, output, steps, rate, seed, console)
    (output / "metrics.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    console.print_json(data=measured)


if __name__ == "__main__":
    typer.run(main)
