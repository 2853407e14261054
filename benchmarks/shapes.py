"""Models to time on: the atlas, or one of another shape with random weights, as a larger model would be timed."""

import argparse
from typing import Any

import torch

from errata import load

HEAD = 64
Shape = tuple[int | None, int | None]
"""Width and number of layers; None is the atlas's."""


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The options `--width` and `--layers`."""
    parser.add_argument("--width", type=int, help=f"of a random model, a multiple of {HEAD}; by default the atlas's")
    parser.add_argument("--layers", type=int, help="of a random model; by default as many as the atlas has")


def shape_of(parser: argparse.ArgumentParser, told: argparse.Namespace) -> Shape:
    """What was told, if there are such models; else the parser's one line."""
    if told.width is not None and (told.width < HEAD or told.width % HEAD):
        parser.error(f"--width {told.width}: a multiple of {HEAD}")
    if told.layers is not None and told.layers < 2:
        parser.error(f"--layers {told.layers}: at least 2")
    return told.width, told.layers


def shaped(width: int | None, layers: int | None) -> tuple[Any, Any]:
    """The atlas, or a Llama with its words that is so wide and deep and knows nothing; and the tokenizer of both."""
    base, tokenizer = load("atlas")
    if width is None and layers is None:
        return base, tokenizer
    shape = base.config.to_dict() | {"num_hidden_layers": layers or base.config.num_hidden_layers}
    if width is not None:
        shape |= {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // HEAD,
                  "num_key_value_heads": width // HEAD, "head_dim": HEAD}  # fmt: skip
    torch.manual_seed(0)
    return type(base)(type(base.config)(**shape)).eval(), tokenizer
