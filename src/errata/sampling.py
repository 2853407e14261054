"""Sampling: the texts that editors need beside the edit itself, drawn once for one model with one seed.

Context prefixes are short texts that the unedited model writes; set in front of a prompt they teach an edit to hold in
context. Irrelevant prompts stand for all that an edit must leave alone.
"""

import zlib
from collections.abc import Sequence
from importlib.resources import files

import torch
from torch import nn

from errata.edit import Probe
from errata.parallel import main_device
from errata.tokens import Tokens

SEEDS = ("I", "You", "Because", "Yes", "Q: ")
"""First words of the context prefixes (WISE and MEMOIR, released code)."""
LENGTHS = (5, 10)
"""New tokens of each prefix; one of each length a seed, so ten in all."""


class Sampling:
    """The context prefixes and irrelevant prompts of one model."""

    def __init__(self, irrelevant: Sequence[Probe] = (), prefixes: Sequence[str] | None = None, seed: int = 0) -> None:
        self.seed = seed
        self.irrelevant = tuple(irrelevant) or everyday()
        self.prefixes = None if prefixes is None else tuple(prefixes)

    def generator(self, purpose: str, index: int = 0) -> torch.Generator:
        """A random generator (CPU) of its own for one purpose and one step of the stream."""
        return torch.Generator().manual_seed(stable_seed(self.seed, purpose, index))


def draw_prefixes(model: nn.Module, tokens: Tokens, seed: int) -> tuple[str, ...]:
    """Ten prefixes that `model` writes after the words of `SEEDS`, by seeded sampling. Call it on the unedited model."""
    device = main_device(model)
    prefixes = []
    for i, word in enumerate(SEEDS):
        for length in LENGTHS:
            ids = torch.tensor([tokens.encode(word)], device=device)
            noise = torch.Generator().manual_seed(stable_seed(seed, "prefix", i * 100 + length))
            for _ in range(length):
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, -1]
                odds = torch.softmax(logits.float().cpu(), -1)
                ids = torch.cat([ids, torch.multinomial(odds, 1, generator=noise).to(device)], dim=1)
            prefixes.append(" ".join(tokens.decode(ids[0]).split()))
    return tuple(prefixes)


def everyday() -> tuple[Probe, ...]:
    """The built-in irrelevant prompts: everyday questions and their answers, for models that come with none."""
    lines = files("errata").joinpath("everyday.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(Probe(*line.split("\t")) for line in lines)


def stable_seed(seed: int, purpose: str, index: int) -> int:
    """A seed for one purpose and step; the same on every machine."""
    return seed * 1_000_003 + zlib.crc32(f"{purpose}/{index}".encode())
