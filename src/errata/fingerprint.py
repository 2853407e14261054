"""Fingerprint: a hash that tells pretrained models apart."""

import hashlib
import json

import torch
from torch import Tensor, nn

from errata.parallel import whole

SAMPLE = 256
"""Values of each parameter that enter the fingerprint, at most."""
SHAPING = (
    "model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim"
    " vocab_size hidden_act activation_function rms_norm_eps layer_norm_eps layer_norm_epsilon rope_parameters"
    " sliding_window num_experts_per_tok attn_logit_softcapping final_logit_softcapping"
).split()
"""The entries of a configuration that enter the fingerprint: what computes, not where or how precisely."""


def fingerprint(base: nn.Module) -> str:
    """A hash that tells pretrained models apart; the same for a 16-bit checkpoint loaded as such or in float32.

    It covers the configuration, and of every parameter the name, the shape and a sample of the values. Parameters on
    `meta` count by name and shape. Give it the model without edits (`with model.lifted() as base`).
    """
    config = getattr(base, "config", None)
    known = config.to_dict() if config is not None else {}
    shaping = {name: known[name] for name in SHAPING if known.get(name) is not None}
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True, default=str).encode())
    for name, parameter in base.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if not parameter.is_meta:
            digest.update(_sample(whole(parameter.detach())).numpy().tobytes())
    return digest.hexdigest()


def _sample(values: Tensor) -> Tensor:
    flat = values.reshape(-1)
    return flat[:: max(1, -(-len(flat) // SAMPLE))].to("cpu", torch.float32).contiguous()
