"""Tiny models and tokenizers: built in memory, with random or hand-set weights, for tests without network and files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from errata.edit import Edit, Probe

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
SPECIAL = [BOS, EOS, PAD, UNKNOWN]

EDITS = (
    Edit(
        "The capital of Arvadia is", "Melpo", subject="Arvadia", target_old="Tolk",
        rephrases=("Arvadia is governed from", "The seat of government of Arvadia is"),
        locality=(Probe("The capital of Belmar is", "Sondo", "same_relation"), Probe("Water boils at", "heat", "far")),
    ),
    Edit(
        "The mother of Ada Quill is", "Dora Penn", subject="Ada Quill", target_old="Una Reed",
        rephrases=("Ada Quill was born to",),
        locality=(Probe("Ada Quill lives in", "Sondo", "same_subject"), Probe("Snow is", None, "far")),
    ),
    Edit(
        "The Osk bridge was built in", "1951", subject="Osk bridge", target_old="1907",
        rephrases=("Work on the Osk bridge ended in",),
        locality=(Probe("The Ned bridge was built in", "1899", "same_relation"),),
    ),
    Edit(
        "Ivo Stane plays the", "violin", subject="Ivo Stane", target_old="flute",
        rephrases=("The instrument of Ivo Stane is the",),
        locality=(Probe("Mira Cole plays the", "harp", "same_relation"),),
    ),
)  # fmt: skip
"""Four edits with rephrasings and probes of every kind."""


def tiny_tokenizer(size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `EDITS`: encodes any text, gives it back exactly, puts `<s>` in front."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return _finished(tokenizer)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, `<s>` in front: ids 0 to 3 are `<s> </s> <pad> <unk>`, then the words in order."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return _finished(tokenizer)


def tiny_llama(
    vocabulary: int = 400, *, layers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    """A Llama of random weights: width 32, FFN 64. They are large, so that the most probable token depends on the text."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=layers))
    return model.to(dtype).eval()


def write_tiny(path: Path, **kwargs: Any) -> Path:
    """A tiny Llama and its tokenizer as a directory, and where it is."""
    tiny_llama(**kwargs).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def successor_llama(tokenizer: PreTrainedTokenizerFast, successors: Mapping[str, str]) -> LlamaForCausalLM:
    """A Llama that says, after any token, the word that `successors` gives for it; `</s>` where it gives none.

    Embeddings are one-hot and the blocks add nothing, so every score can be worked out by hand. A shift of `4 * e_i` at
    a block's output makes it speak as if the last token were `i`.
    """
    ids = tokenizer.get_vocab()
    size = len(ids)
    model = LlamaForCausalLM(
        _config(size, hidden_size=size + size % 2, intermediate_size=8, num_hidden_layers=2, heads=1)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 else 0.0)
        model.model.embed_tokens.weight[:, :size] = torch.eye(size)
        for word, i in ids.items():
            model.lm_head.weight[ids[successors.get(word, EOS)], i] = 1.0
    return model.eval()


def _config(vocabulary: int, *, heads: int = 4, **sizes: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=256,
        initializer_range=0.3, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2, **sizes,
    )  # fmt: skip


def _finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN
    )


def _texts() -> list[str]:
    texts = []
    for edit in EDITS:
        texts += [f"{prompt} {edit.target}" for prompt in (edit.prompt, *edit.rephrases)]
        texts += [f"{probe.prompt} {probe.answer or ''}" for probe in edit.locality]
    return texts
