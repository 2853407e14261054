"""Tiny random models of many architectures, all over the vocabulary of `tiny_tokenizer`."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

LLAMA_LIKE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
GPT2_LIKE = {"n_embd": 32, "n_inner": 64, "n_layer": 3, "n_head": 4}

SIZES: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE | {"sliding_window": 64},
    "gemma3_text": LLAMA_LIKE | {"sliding_window": 64},
    "gpt2": GPT2_LIKE,
    "gptj": GPT2_LIKE | {"rotary_dim": 4},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    "phi": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    "opt": {
        "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_hidden_size": 64},
    "mixtral": LLAMA_LIKE | {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
"""Configuration of each model type."""

CORE = ("llama", "gpt2", "gptj", "gpt_neox", "mistral", "qwen2", "gemma2", "mixtral")
"""The types that every method is tested on."""


def tiny(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of a type, in evaluation mode; weights are large, so that what it says depends on the text."""
    config = CONFIG_MAPPING[kind](
        vocab_size=400, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2, **SIZES[kind]
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.to(dtype).eval()
