"""Train: an atlas model from nothing, `python -m errata.atlas.train --seed 7 --output DIR`.

Writes a directory that `AutoModelForCausalLM` and `AutoTokenizer` load, with the edit sets (`edits.jsonl`,
`edits-validation.jsonl`, `edits-unseen.jsonl`), `irrelevant.tsv` and the measured `metrics.json` beside the weights.
"""

import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from errata.atlas.edits import write_sets
from errata.pretraining.llama import Shape, build, falling

MODEL_FILES = "config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the arithmetic of the machine."""

    seed: int = 0
    steps: int = 800
    """Optimizer steps in which the learning rates fall to `turn` of the highest ..."""
    landing: int = 320
    """... and steps in which they go on down to nothing, with fresh optimizers."""
    turn: float = 0.6
    warmup: int = 100
    """Steps of warm-up at the start; 15 when landing."""
    batch_tokens: int = 1536
    learning_rate: float = 3e-3
    """The highest, of Muon on the matrices of the blocks."""
    embedding_rate: float = 2e-3
    """The highest, of AdamW on embeddings and norms."""
    weight_decay: float = 0.01
    vocabulary: int = 4096
    width: int = 256
    layers: int = 5
    heads: int = 8
    ffn_width: int = 2304

    @property
    def shape(self) -> Shape:
        """The size of the model."""
        return Shape(self.vocabulary, self.width, self.layers, self.heads, self.ffn_width)

    def legs(self) -> tuple[list[float], list[float]]:
        """What the highest learning rates are multiplied by, step after step: until the turn, and when landing."""
        return falling(self.steps, 1.0, self.turn, self.warmup), falling(self.landing, self.turn, 0.0, 15)


def train(recipe: Recipe, output: Path, console: Console) -> dict[str, Any]:
    """Make the world, train the model from random weights and save it in `output`; returns what was measured of it.

    Raises `typer.BadParameter` for an output that cannot be made.
    """
    import torch

    from errata.atlas import corpus
    from errata.atlas.batches import batches
    from errata.atlas.world import world
    from errata.pretraining import tokenizer as tokens
    from errata.pretraining.fitting import Losses, Rates, fit

    make(output)
    made = world(recipe.seed)
    tokenizer = tokens.learn(corpus.plain(made), recipe.vocabulary)
    tokens.save(tokenizer, output)
    model, losses, read = build(recipe.shape, recipe.seed), Losses(), 0
    pad = tokens.id_of(tokenizer, tokens.PAD)
    rates = Rates(recipe.learning_rate, recipe.embedding_rate, recipe.weight_decay)
    started = time.perf_counter()
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=recipe.steps + recipe.landing)
        for leg, shape in enumerate(recipe.legs()):
            groups = batches(made, tokenizer, recipe.batch_tokens, corpus.first_epoch(leg))
            for losses in fit(model, groups, pad, shape, rates):
                progress.update(task, advance=1, description=f"training, loss {losses.smooth:.3f}")
            read += losses.tokens
    seconds = time.perf_counter() - started
    model.to(torch.bfloat16).save_pretrained(output)
    return {
        "recipe": asdict(recipe),
        "training_seconds": round(seconds),
        "training_tokens": read,
        "final_loss": round(losses.smooth, 4),
        **measure(output, recipe.seed),
    }


def make(output: Path) -> None:
    """The directory of a model that is yet to be trained. Raises `typer.BadParameter` where there cannot be one."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{output} cannot be made: {error.strerror}", param_hint="--output") from error


def measure(directory: Path, seed: int) -> dict[str, Any]:
    """The recall and size of the saved model, and the versions it was measured with."""
    import tokenizers
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from errata.atlas.recall import questions
    from errata.atlas.world import world
    from errata.pretraining.recall import recall

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    facts = world(seed).facts
    return {
        "facts": len(facts),
        "recall_seen_wordings": round(recall(model, tokenizer, questions(facts, seen=True)), 4),
        "recall_unseen_wordings": round(recall(model, tokenizer, questions(facts, seen=False)), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": (directory / "model.safetensors").stat().st_size,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "machine": {"cpu": platform.machine(), "threads": torch.get_num_threads()},
    }


def main(
    output: Annotated[Path, typer.Option(help=f"The directory to write: {MODEL_FILES}.")],
    seed: Annotated[int, typer.Option(help="Of the world, the initial weights and the order of the texts.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps at high learning rates.")] = Recipe.steps,
    landing: Annotated[int, typer.Option(help="Optimizer steps to a learning rate of 0.")] = Recipe.landing,
    learning_rate: Annotated[float, typer.Option(help="The highest, of the matrices.")] = Recipe.learning_rate,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in a step, padding included.")] = Recipe.batch_tokens,
    layers: Annotated[int, typer.Option(help="Layers of the model.")] = Recipe.layers,
    ffn_width: Annotated[int, typer.Option(help="Width of its feed-forward networks.")] = Recipe.ffn_width,
    sets: Annotated[bool, typer.Option(help="Write edits*.jsonl and irrelevant.tsv beside the model.")] = True,
    metrics: Annotated[
        Path | None, typer.Option(help="Where to write the measurements.", show_default="OUTPUT/metrics.json")
    ] = None,
) -> None:
    """Generate a world and train a small model that knows it, from nothing, in under 40 minutes on two idle cores."""
    console = Console(stderr=True)
    recipe = Recipe(
        seed=seed,
        steps=steps,
        landing=landing,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        layers=layers,
        ffn_width=ffn_width,
    )
    measured = train(recipe, output, console)
    (metrics or output / "metrics.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    if sets:
        write_sets(recipe.seed, output)
    console.print_json(data=measured)


if __name__ == "__main__":
    typer.run(main)
