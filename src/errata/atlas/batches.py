"""Batches: the texts of epoch after epoch of a world, as groups of rows of token ids."""

from collections.abc import Callable, Iterator, Sequence
from random import Random

from tokenizers import Tokenizer

from errata.atlas.corpus import Text, epoch
from errata.atlas.world import World
from errata.pretraining.batches import Row, grouped


def batches(
    world: World,
    tokenizer: Tokenizer,
    tokens: int,
    first_epoch: int = 0,
    texts: Callable[[World, int], Sequence[Text]] = epoch,
) -> Iterator[list[Row]]:
    """Endless groups of rows, of at most `tokens` tokens each when padded. `texts` gives those of an epoch."""
    number = first_epoch
    while True:
        random = Random(f"{world.seed}/batches/{number}")
        yield from grouped(_rows(texts(world, number), tokenizer), tokens, random)
        number += 1


def _rows(texts: Sequence[Text], tokenizer: Tokenizer) -> list[Row]:
    given = tokenizer.encode_batch([text.prompt for text in texts])
    rest = tokenizer.encode_batch([text.rest for text in texts], add_special_tokens=False)
    return [Row(g.ids + r.ids, len(g.ids)) for g, r in zip(given, rest, strict=True)]
