"""Llama: an untrained model of a given shape, and how the learning rates rise and fall while it is trained."""

from dataclasses import dataclass
from typing import Any

POSITIONS = 256
"""Tokens that fit into the model's context."""


@dataclass(frozen=True)
class Shape:
    """How large a model is; its embeddings are tied."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    ffn_width: int

    @property
    def parameters(self) -> int:
        """Weights of the model: embeddings, four maps of attention and three of the feed-forward net a layer, norms."""
        layer = 4 * self.width**2 + 3 * self.width * self.ffn_width + 2 * self.width
        return self.vocabulary * self.width + self.layers * layer + self.width


def build(shape: Shape, seed: int) -> Any:
    """An untrained model of this shape, with the random weights of this seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.ffn_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def falling(steps: int, start: float, end: float, warmup: int) -> list[float]:
    """A linear warm-up to `start` (a tenth of the steps at most), then a straight line to `end`."""
    warmup = min(warmup, steps // 10 + 1)
    rise = [start * (step + 1) / warmup for step in range(min(warmup, steps))]
    return rise + [start + (end - start) * (step - warmup) / (steps - warmup) for step in range(warmup, steps)]
