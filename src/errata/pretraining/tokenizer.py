"""Tokenizer: a byte-level BPE tokenizer, learned from the texts that a model is trained on.

`<s>` is put in front of everything by the tokenizer itself, and every word, the first included, carries the space in
front of it, so that the tokens of "prompt answer" always begin with those of "prompt".
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def learn(texts: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of at most `size` tokens; the same texts give the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
            ),
        ]
    )
    return tokenizer


def id_of(tokenizer: Tokenizer, special: str) -> int:
    """The id of `BOS`, `EOS` or `PAD`, which every tokenizer learned here has."""
    found = tokenizer.token_to_id(special)
    assert found is not None
    return found


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the two files from which `AutoTokenizer.from_pretrained` loads it."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
