"""Tokenising prompts and targets."""

import logging
from io import StringIO

import pytest
import torch

from errata.errors import BadEdit, TooLong
from errata.tokens import Tokens
from tiny import tiny_tokenizer

tokens = Tokens(tiny_tokenizer())


def test_prompt_and_target_are_the_ids_of_the_whole_text() -> None:
    head, tail = tokens.pair("The capital of Arvadia is", "Melpo")
    assert head == tokens.encode("The capital of Arvadia is")
    assert head + tail == tokens.encode("The capital of Arvadia is Melpo")
    assert tokens.decode(tail).strip() == "Melpo"


def test_rows_mark_prompt_target_and_what_is_wanted() -> None:
    rows = tokens.rows([("Snow is", "white"), ("The capital of Arvadia is", "Melpo")])
    assert rows.ids.shape == rows.attention.shape == rows.prompt.shape == rows.target.shape
    assert torch.equal(rows.attention.bool(), rows.prompt | rows.target)
    assert not (rows.prompt & rows.target).any()
    assert torch.equal(
        rows.labels, torch.cat([torch.tensor(tokens.pair("Snow is", "white")[1]), rows.ids[1][rows.target[1]]])
    )
    assert int(rows.wanted.sum()) == len(rows.labels) == len(rows.row_of_label)
    assert torch.equal(rows.wanted[:, :-1], rows.target[:, 1:])


def test_padding_goes_where_it_is_asked_for() -> None:
    texts = ["Snow is", "The capital of Arvadia is"]
    left, mask_left = tokens.prompts(texts, "left")
    right, mask_right = tokens.prompts(texts, "right")
    assert torch.equal(left[mask_left.bool()], right[mask_right.bool()])
    assert mask_left[0, 0] == 0
    assert mask_right[0, -1] == 0


def test_the_last_token_of_a_subject() -> None:
    prompt = "The mother of Ada Quill is"
    last = tokens.subject_last(prompt, "Ada Quill")
    assert tokens.decode(tokens.encode(prompt)[: last + 1]).endswith("Ada Quill")
    with pytest.raises(BadEdit, match="does not occur"):
        tokens.subject_last(prompt, "Bob")


def test_a_target_without_tokens_is_refused() -> None:
    class Deaf:
        eos_token_id = pad_token_id = None

        def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
            return {"input_ids": [7] if text.startswith("p") else []}

    with pytest.raises(BadEdit, match="tokenises to nothing"):
        Tokens(Deaf()).pair("p", "\u200b")


def test_a_tokenizer_does_not_warn_of_a_length_that_the_model_can_read() -> None:
    """Rotary positions have no end, and what does is `TooLong`."""
    short, warnings = tiny_tokenizer(), StringIO()
    short.model_max_length = 2
    handler = logging.StreamHandler(warnings)
    library = logging.getLogger("transformers")
    library.addHandler(handler)
    try:
        assert len(Tokens(short).encode("The capital of Arvadia is")) > 2
        assert not warnings.getvalue()
        short("The capital of Arvadia is")
        assert "longer than" in warnings.getvalue()  # as it would have
    finally:
        library.removeHandler(handler)


def test_a_text_for_which_there_are_no_positions_is_refused() -> None:
    few = Tokens(tiny_tokenizer(), positions=8)
    with pytest.raises(
        TooLong, match=r"text that begins 'The capital.*' has .* tokens, and the model has positions for 8"
    ):
        few.rows([("Snow is", "white"), ("The capital of Arvadia is", "Melpo " * 5)])
    with pytest.raises(TooLong):
        few.prompts(["Snow is " * 5])
    assert [few.room(held, 16) for held in (2, 7, 8)] == [7, 2, 1]
    with pytest.raises(TooLong):
        few.room(9, 16)
    assert tokens.room(10_000, 16) == 16
