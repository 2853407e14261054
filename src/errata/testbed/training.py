"""Training: from a budget and a corpus to a testbed. A training that was killed goes on to the same bits.

A budget in minutes is turned into steps once, by timing a few; the recipe in `testbed.json` then says how many.
"""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor

import errata
from errata.errors import BadOption, EditFailed, Interrupted, StoreError
from errata.loading import quiet
from errata.pretraining import tokenizer as bpe
from errata.pretraining.fitting import Fitting, Losses, Rates, quickest
from errata.pretraining.llama import build
from errata.testbed import checkpoint, record
from errata.testbed.card import card
from errata.testbed.checkpoint import State
from errata.testbed.corpus import SHARES, Corpus
from errata.testbed.evaluate import by_wording, perplexity, trained
from errata.testbed.facts import chosen
from errata.testbed.recipe import FACTS_TO_TEXT, FEWEST_STEPS, Budget, Recipe, facts_that_fit, shape_of
from errata.testbed.stream import Stream, encoded, rows

CHARACTERS_A_TOKEN = 5
"""Of natural text that is tokenised for each token that the steps read: more than they are, so that no text is short."""
SAMPLE = 1000
"""Facts that are looked at to tell how long they are."""
TIMED = 4
"""Steps that are timed, and forgotten, to turn minutes into steps."""
SHARE_OF_STEPS = 0.92
"""Of the minutes; the rest is for measuring."""
LEARNT_FROM = 1_000_000
"""Characters of natural text that the tokenizer is learned from, besides all facts."""
EVERY = 60.0
"""Seconds between two checkpoints."""


class Step(NamedTuple):
    """What a progress callback is told after each step."""

    step: int
    steps: int
    losses: Losses
    saved: bool
    """Whether a checkpoint was written."""
    minutes_left: float


Progress = Callable[[Step], None]


def train(
    corpus: Corpus, output: Path, budget: Budget, *, device: str | None = None,
    progress: Progress = lambda _: None, every: float = EVERY,
) -> dict[str, Any]:  # fmt: skip
    """Train a testbed in `output`, or go on with it, and return its metrics; a finished one is only looked at.

    Writes what `AutoModelForCausalLM` and `AutoTokenizer` load, `testbed.json`, `metrics.json` and a model card. The same
    budget in steps, seed, threads and kind of machine give the same bits. Raises `BadOption` for a budget that
    is too small and for an `output` of another recipe, `Interrupted` after Ctrl-C.
    """
    started = time.perf_counter()
    recipe = record.begun(output, budget, corpus)
    metrics = record.metrics(output)
    if recipe is not None and metrics is not None:
        return metrics
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = bpe.learn(_learnt_from(corpus), shape_of(budget.parameters).vocabulary)
    if recipe is None:
        recipe = _recipe(budget, corpus, tokenizer, place, started)
        record.begin(output, budget, recipe, corpus)
    training = Training(corpus, recipe, tokenizer, output, place)
    state = training.carry_out(progress, every)
    return training.finish(state)


class Training:
    """One run of one recipe."""

    def __init__(
        self, corpus: Corpus, recipe: Recipe, tokenizer: Tokenizer, output: Path, device: torch.device
    ) -> None:
        self.corpus, self.recipe, self.tokenizer, self.output = corpus, recipe, tokenizer, output
        self.facts = chosen(corpus.facts, recipe.facts, SHARES)
        self.stream = Stream(self.facts, _text(corpus, recipe, tokenizer), tokenizer, recipe)
        self.model = _untrained(recipe, device)

    def carry_out(self, progress: Progress, every: float) -> State:
        """All steps that are left."""
        fitting = _fitting(self.model, self.recipe)
        state = checkpoint.resume(self.output, fitting)
        factors, batches = self.recipe.rates(), self.stream.steps(state.step)
        begun, before, saved = time.perf_counter(), state, time.perf_counter()
        try:
            while state.step < self.recipe.steps:
                parts = next(batches)
                loss = fitting.step(parts, factors[state.step])
                if not math.isfinite(loss):
                    raise EditFailed(
                        f"the loss became {loss} at step {state.step}; nothing was saved after the last checkpoint"
                    )
                state.losses.add(loss, sum(part.ids.numel() for part in parts))
                now = time.perf_counter()
                state = State(state.step + 1, state.losses, before.seconds + now - begun)
                due = now - saved >= every or state.step == self.recipe.steps
                if due:
                    checkpoint.write(self.output, fitting, state)
                    saved = now
                left = (now - begun) / (state.step - before.step) * (self.recipe.steps - state.step) / 60
                progress(Step(state.step, self.recipe.steps, state.losses, due, left))
        except (
            KeyboardInterrupt
        ):  # perhaps in the middle of a step, so that only the last checkpoint is sure to be whole
            raise Interrupted(
                f"stopped after {state.step} steps; the same command goes on from the last checkpoint"
            ) from None
        finally:
            fitting.close()
        return state

    def finish(self, state: State) -> dict[str, Any]:
        """Save the model in bfloat16, measure what was saved, and write metrics and card."""
        with quiet():
            self._save()
            metrics = self._measured()
        metrics |= {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "final_loss": round(state.losses.smooth, 4),
            "training_tokens": state.losses.tokens,
            "training_seconds": round(state.seconds),
            "recipe": self.recipe.record(),
            "data": self.corpus.hash,
            "versions": _versions(),
            "machine": {"cpu": platform.machine(), "device": self.model.device.type, "threads": self.recipe.threads},
        }
        texts = {"README.md": card(self.recipe, metrics), record.METRICS: record.text(metrics)}
        record.keep(self.output, texts)
        checkpoint.forget(self.output)
        return metrics

    def _measured(self) -> dict[str, Any]:
        model, tokenizer = self.model.eval(), transformers.AutoTokenizer.from_pretrained(self.output)
        sources = {name: [fact for fact in self.facts if fact.source == name] for name in SHARES}
        return {
            **trained(model, tokenizer, self.facts, self.recipe),
            "sources": {name: by_wording(model, tokenizer, facts) for name, facts in sources.items() if facts},
            "wikitext2_validation": perplexity(model, tokenizer, self.corpus.validation),
        }

    def _save(self) -> None:
        """Write model and tokenizer; what the model is then, is what was written, in float32."""
        try:
            self.model.set_attn_implementation("sdpa")
            self.model.to(torch.bfloat16)
            self.model.save_pretrained(self.output)
            bpe.save(self.tokenizer, self.output)
            self.model.float()
        except OSError as error:
            raise StoreError(f"the model cannot be saved to {self.output}: {error.strerror or error}") from error


def _recipe(budget: Budget, corpus: Corpus, tokenizer: Tokenizer, device: torch.device, started: float) -> Recipe:
    """What a budget comes to. Raises `BadOption` where its minutes are too few."""
    shape = replace(shape_of(budget.parameters), vocabulary=tokenizer.get_vocab_size())
    sample = chosen(corpus.facts, SAMPLE, SHARES)
    precision = budget.precision or quickest(device)
    recipe = Recipe(shape, budget.steps or TIMED, len(sample), budget.seed, budget.threads, precision)
    if budget.tokens is not None:
        recipe = replace(recipe, fact_tokens=budget.tokens, text_tokens=budget.tokens // FACTS_TO_TEXT)
    if budget.minutes is not None:
        stream = Stream(sample, _text(corpus, recipe, tokenizer), tokenizer, recipe)
        seconds = _seconds_a_step(recipe, stream, device)
        spent = time.perf_counter() - started
        steps = int((60 * SHARE_OF_STEPS * budget.minutes - spent) / seconds)
        if steps < FEWEST_STEPS:
            enough = math.ceil(10 * (FEWEST_STEPS * seconds + spent) / (60 * SHARE_OF_STEPS)) / 10
            raise BadOption(
                f"--minutes {budget.minutes:g} is too small a budget: reading the data and {FEWEST_STEPS} steps, the fewest"
                f" that make sense, take {enough:g} here"
            )
        recipe = replace(recipe, steps=steps)
    lengths = [len(worded[0].ids) for worded in rows(sample, tokenizer, recipe)]
    return replace(recipe, facts=min(len(corpus.facts), budget.facts or facts_that_fit(recipe, lengths)))


def _text(corpus: Corpus, recipe: Recipe, tokenizer: Tokenizer) -> Tensor:
    """(tokens,) as much of the natural text as the steps of a recipe read."""
    return encoded(corpus.text[: recipe.steps * recipe.text_tokens * CHARACTERS_A_TOKEN], tokenizer)


def _seconds_a_step(recipe: Recipe, stream: Stream, device: torch.device) -> float:
    """The median of a few steps of a model that is then forgotten."""
    fitting = _fitting(_untrained(recipe, device), recipe)
    batches, times = stream.steps(), []
    for _ in range(TIMED):
        started = time.perf_counter()
        fitting.step(next(batches), 0.0)
        times.append(time.perf_counter() - started)
    fitting.close()
    return median(times[1:])


def _fitting(model: Any, recipe: Recipe) -> Fitting:
    rates = Rates(recipe.learning_rate, recipe.embedding_rate, recipe.weight_decay)
    return Fitting(model, rates, recipe.threads, sparse=True, precision=recipe.precision)


def _untrained(recipe: Recipe, device: torch.device) -> Any:
    """The model as it begins. Attention is computed in plain products where a processor multiplies in bfloat16, since the
    fused one takes longer there for rows of a few dozen tokens.
    """
    model = build(recipe.shape, recipe.seed).to(device)
    if recipe.precision == "bfloat16" and device.type == "cpu":
        model.set_attn_implementation("eager")
    return model


def _learnt_from(corpus: Corpus) -> list[str]:
    """What the vocabulary is learned from: every fact, and the beginning of the text."""
    facts = [f"{fact.wordings[0]} {fact.answer}" for fact in corpus.facts]
    return [*facts, *corpus.text[:LEARNT_FROM].splitlines()]


def _versions() -> dict[str, str]:
    return {
        "errata": errata.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
