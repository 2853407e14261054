"""Chat: prompts are encoded as `apply_chat_template` does it, targets and ends stand where the template puts them."""

from dataclasses import replace

import pytest
import torch

from commands import refused, run
from errata import EditedModel, load
from errata.chat import ChatTokens
from errata.errors import BadEdit, BadOption
from tiny import EDITS, tiny_llama, tiny_tokenizer

HEADERS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}{{ m.content }}\n{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
SYSTEM = "<system>Who is it? Say so.</s>" + HEADERS
ENDLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
RULED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ rules if rules and loop.PLACE }}"
    "{{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
TAGGED = (
    "{% set rules = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' if messages[0].role == 'system' %}" + RULED
)
BLANK = "{% set rules = messages[0].content + '\n\n' if messages[0].role == 'system' %}" + RULED
WITHIN = {
    "first turn, tagged": TAGGED.replace(
        "loop.PLACE", "m == (messages | selectattr('role', 'equalto', 'user') | first)"
    ),
    "first turn": BLANK.replace("loop.PLACE", "m == (messages | selectattr('role', 'equalto', 'user') | first)"),
    "last turn": BLANK.replace("loop.PLACE", "loop.last"),
}
"""Templates that put a system prompt into a turn of the user, as those of Llama 2, Gemma 3 and Mistral do."""
THINKING = HEADERS.replace("{{ m.content", "{{ '<think>\n</think>\n' if m.role == 'assistant' }}{{ m.content")
CLOCK = "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}. " + BRACKETS
DATED = "{{ bos_token }}Today is {{ date_string | default(strftime_now('%d %b %Y')) }}. " + BRACKETS
TEMPLATES = {"headers": HEADERS, "brackets": BRACKETS, "system": SYSTEM, "endless": ENDLESS}
PROMPT = "The mother of Ada Quill is"


def tokens(template: str | None) -> ChatTokens:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return ChatTokens(tokenizer)


def ids(found: ChatTokens, *turns: str, begin: bool = False) -> list[int]:
    """What anybody gets of these turns, the user's first."""
    chat = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return found.tokenizer.apply_chat_template(chat, add_generation_prompt=begin, return_dict=False)


@pytest.fixture(params=TEMPLATES)
def chat(request) -> ChatTokens:
    return tokens(TEMPLATES[request.param])


def test_a_prompt_is_what_the_template_makes_of_it(chat):
    assert chat.prompt(PROMPT) == ids(chat, PROMPT, begin=True)


def test_a_target_stands_where_the_assistant_says_it(chat):
    head, tail = chat.pair(PROMPT, " Dora Penn ")
    assert head == chat.prompt(PROMPT)
    whole = ids(chat, PROMPT, "Dora Penn")
    assert whole[: len(head) + len(tail)] == head + tail
    assert chat.decode(tail).strip() == "Dora Penn"


@pytest.mark.parametrize(("name", "ends"), [("headers", True), ("brackets", True), ("endless", False)])
def test_the_end_is_that_of_the_turn(name, ends):
    chat = tokens(TEMPLATES[name])
    chat.tokenizer.add_special_tokens({"eos_token": "<over>"})
    assert chat.end == chat.tokenizer.convert_tokens_to_ids(["</s>" if ends else "<over>"])


def test_thoughts_are_no_part_of_a_target():
    chat = tokens(THINKING)
    assert chat.decode(chat.pair(PROMPT, "Dora Penn")[1]) == "Dora Penn"
    assert chat.end == [1]


@pytest.mark.parametrize("template", [DATED, CLOCK])
def test_the_day_is_no_part_of_a_request(template):
    chat = tokens(template)
    assert "26 Jul 2024" in chat.decode(chat.prompt(PROMPT))
    row = ids(chat, PROMPT, begin=True)
    assert row != chat.prompt(PROMPT)
    found, _ = chat.alone(*padded([row], "left"))
    assert found[0].tolist() == chat.prompt(PROMPT)


@pytest.mark.parametrize("prompt", [PROMPT, f"  {PROMPT}"])
def test_the_subject_is_found_in_its_turn(chat, prompt):
    last = chat.subject_last(prompt, "Ada Quill")
    assert chat.decode(chat.prompt(prompt)[: last + 1]).endswith("Ada Quill")
    assert chat.until(prompt, len(prompt)) < len(chat.prompt(prompt))


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('only in French') }}", "cannot be filled in: only in French"),
        ("{{ messages[0].nothing.at.all }}", "cannot be filled in"),
        ("Hello!", "does not say what the user says"),
    ],
)
def test_templates_that_cannot_be_used(template, line):
    with pytest.raises(BadOption, match=line):
        tokens(template)


@pytest.mark.parametrize("method", ["grace", "memoir"])
def test_an_edit_is_what_the_assistant_says(method, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = BRACKETS
    model = EditedModel(tiny_llama(), tokenizer, method, chat=True)
    edit = EDITS[0]
    receipt = model.edit(edit)
    assert receipt.probability_before < 0.5 < receipt.probability_after
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": edit.prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    said = model.generate(asked, max_new_tokens=len(model.tokens.pair(edit.prompt, edit.target)[1]), do_sample=False)
    assert tokenizer.decode(said[0, asked.shape[1] :]).strip() == edit.target
    assert model.answer([edit.prompt], 8)[0].startswith(edit.target)
    model.save_pretrained(tmp_path / "kept")
    again = EditedModel.from_pretrained(tmp_path / "kept", tiny_llama(), tokenizer=tokenizer)
    assert again.chat
    assert again.answer([edit.prompt]) == model.answer([edit.prompt])


# -- later turns, and system prompts -----------------------------------------------------------------------------------

BEFORE = ("Snow is", "white", "The capital of Belmar is", "Sondo")


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids, and which of them are a prompt."""
    longest = max(map(len, rows))
    gaps = [[2] * (longest - len(row)) for row in rows]
    ids = [gap + row if side == "left" else row + gap for gap, row in zip(gaps, rows, strict=True)]
    real = [[0] * len(gap) + [1] * len(row) for gap, row in zip(gaps, rows, strict=True)]
    real = real if side == "left" else [row[::-1] for row in real]
    return torch.tensor(ids), torch.tensor(real).bool()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_request_is_the_last_turn_of_the_user(chat, side):
    rows = [
        ids(chat, *BEFORE, PROMPT, begin=True),
        chat.prompt("Snow is"),
        ids(chat, *BEFORE[:2], "ice is", begin=True),
    ]
    found, attention = chat.alone(*padded(rows, side))
    alone = [row[mask.bool()].tolist() for row, mask in zip(found, attention, strict=True)]
    assert alone == [chat.prompt(PROMPT), chat.prompt("Snow is"), chat.prompt("ice is")]
    assert chat.alone(*padded(alone, side)) is None


def test_what_is_no_turn_of_a_user_is_left_as_it_is(chat):
    assert chat.alone(*padded([chat.encode("Snow is white")], "left")) is None


def test_a_system_prompt_is_left_out():
    chat = tokens(HEADERS)
    turns = [{"role": "system", "content": "Say so."}, {"role": "user", "content": PROMPT}]
    row = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    found, attention = chat.alone(*padded([row, row], "left"))
    assert found[attention.bool()].tolist() == chat.prompt(PROMPT) * 2


@pytest.mark.parametrize("behind", ["<think></think>", "Of course. ", "I look.</s>\n<tool>\nIt is.</s>\n<assistant>\n"])
def test_what_the_assistant_has_begun_to_say_is_left_out(chat, behind):
    row = [*chat.prompt(PROMPT), *chat._alone(behind)]
    found, attention = chat.alone(*padded([row, chat.prompt(PROMPT)], "left"))
    assert [ids[mask.bool()].tolist() for ids, mask in zip(found, attention, strict=True)] == [chat.prompt(PROMPT)] * 2


@pytest.mark.parametrize("template", WITHIN.values(), ids=WITHIN)
@pytest.mark.parametrize("before", [(), BEFORE], ids=["first", "later"])
@pytest.mark.parametrize("rules", ["Say so.", "Say so.\n\nSay no more.\n\n"])
def test_a_system_prompt_in_the_turn_of_the_user_is_left_out(template, before, rules):
    chat = tokens(template)
    said = [("system", rules), *zip(("user", "assistant") * 2, before, strict=False), ("user", PROMPT)]
    turns = [{"role": role, "content": text} for role, text in said]
    row = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert chat.decode(row).count("Say so.") == 1
    found, attention = chat.alone(*padded([row, row], "left"))
    assert found[attention.bool()].tolist() == chat.prompt(PROMPT) * 2
    assert chat.alone(*padded([chat.prompt(PROMPT)], "left")) is None


def test_a_turn_with_paragraphs_is_left_whole_where_tags_tell_it_from_a_system_prompt():
    prompt = "Snow is white\n\nIce is"
    tagged, blank = tokens(WITHIN["first turn, tagged"]), tokens(WITHIN["first turn"])
    tagged.check(prompt)
    assert tagged.alone(*padded([tagged.prompt(prompt)], "left")) is None
    found, attention = blank.alone(*padded([blank.prompt(prompt)], "left"))
    assert found[attention.bool()].tolist() == blank.prompt("Ice is")


def test_an_edit_that_would_be_taken_for_a_system_prompt_and_a_question_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = WITHIN["first turn"]
    model = EditedModel(tiny_llama(), tokenizer, "memoir", chat=True)
    with pytest.raises(BadEdit, match="between a system prompt and a question"):
        model.edit(replace(EDITS[0], prompt=f"So.\n\n{EDITS[0].prompt}"))
    assert not model.edits
    model.edit(EDITS[0])


def test_half_of_the_contexts_are_earlier_turns(chat):
    prefixes = ("Yes", "Snow is white", "I see", "Because")
    found = chat.contexts([PROMPT] * 4, prefixes)
    later = [
        ids(chat, "Snow is white", "Yes", PROMPT, begin=True),
        ids(chat, "I see", "Snow is white", PROMPT, begin=True),
    ]
    first = [chat.prompt(f"{prefix} {PROMPT}") for prefix in ("Yes", "Because")]
    assert [chat.prompt(context) for context in found] == [first[0], *later, first[1]]
    for context in found:
        last = chat.until(context, context.index("Ada Quill") + len("Ada Quill"))
        assert chat.decode(chat.prompt(context)[: last + 1]).endswith("Ada Quill")
        assert chat.pair(context, "Dora Penn")[0] == chat.prompt(context)


@pytest.mark.parametrize(
    "refuses",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}",
        "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}",
    ],
)
def test_a_template_without_a_place_for_system_prompts_has_nothing_around_them(refuses):
    chat = tokens(refuses + WITHIN["first turn"])
    assert chat.around_system is None
    assert chat.alone(*padded([chat.prompt(f"Snow is\n\n{PROMPT}")], "left")) is None


@pytest.mark.parametrize("method", ["grace", "memoir", "wise", "lemoe", "defer", "neuraldb", "in_context"])
def test_gates_decide_alike_in_the_first_turn_and_in_later_ones(method):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = BRACKETS
    model = EditedModel(tiny_llama(), tokenizer, method, chat=True)
    model.edit(EDITS[0])
    prompt, found = EDITS[0].prompt, []
    later = torch.tensor([ids(model.tokens, *BEFORE, prompt, begin=True)])
    for asked in (torch.tensor([model.tokens.prompt(prompt)]), later):
        with torch.no_grad():
            model(input_ids=asked)
        found.append({name: (d.rows.tolist(), d.score) for name, d in model.routing.decisions.items()})
    assert found[0]
    assert found[0].keys() == found[1].keys()
    for name, (rows, score) in found[0].items():
        assert found[1][name][0] == rows
        if score is not None:
            torch.testing.assert_close(found[1][name][1], score)
    assert model.generate(later, max_new_tokens=2, do_sample=False).shape[1] > later.shape[1]


@pytest.mark.parametrize("template", WITHIN.values(), ids=WITHIN)
def test_an_edit_is_found_behind_a_system_prompt_in_its_own_turn(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    model = EditedModel(tiny_llama(), tokenizer, "memoir", chat=True)
    model.edit(EDITS[0])
    alone = model.explain(EDITS[0].prompt)["memories"]
    assert alone[0]["answers"]
    assert model.explain(EDITS[0].prompt, system="The user is in a hurry.\n\nSay so.")["memories"] == alone


def test_edits_that_are_always_on_need_no_request():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = BRACKETS
    model = EditedModel(tiny_llama(), tokenizer, "ft_l", chat=True)
    later, calls = torch.tensor([ids(model.tokens, *BEFORE, PROMPT, begin=True)]), []
    model.base.register_forward_pre_hook(lambda *_: calls.append(1))
    model(input_ids=later)
    assert len(calls) == 1


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    """A directory with a chat model."""
    path = tmp_path_factory.mktemp("assistant")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = BRACKETS
    tiny_llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


ONE = ("--prompt", "The capital of Arvadia is", "--target", "Melpo", "--method", "grace")


def test_edits_of_a_chat_are_asked_as_a_chat(assistant, tmp_path):
    result = run("edit", "--model", assistant, "--chat", *ONE, "--output", tmp_path / "d")
    assert "after   Melpo" in result.stdout
    assert "note: this model" not in result.stderr
    assert run("ask", tmp_path / "d", "The capital of Arvadia is").stdout.startswith("Melpo")
    assert EditedModel.from_pretrained(tmp_path / "d").chat
    system = ("--system", "Say so.")
    asked = ("The capital of Arvadia is", *system)
    assert run("ask", tmp_path / "d", *asked).stdout.startswith("Melpo")
    assert "grace at model.layers.2.mlp.down_proj: answers" in run("explain", tmp_path / "d", *asked).stdout
    assert run("ask", tmp_path / "d", *asked, "--unedited").stdout != run("ask", tmp_path / "d", asked[0]).stdout
    more = ("edit", "--prompt", "Snow is", "--target", "red", "--output", tmp_path / "d", "--min-reliability", "0")
    assert "was begun with chat True and cannot be continued with False" in refused(*more, "--no-chat")
    assert "2 of 2 edits" in run(*more).stderr


def test_a_chat_model_that_is_asked_plain_texts_is_told(assistant, tmp_path):
    assert (
        "has a chat template; with --chat" in run("edit", "--model", assistant, *ONE, "--output", tmp_path / "d").stderr
    )
    plain = run("edit", "--model", assistant, *ONE, "--no-chat", "--output", tmp_path / "e")
    assert "note: this model" not in plain.stderr


def test_a_system_prompt_of_plain_texts(assistant, tmp_path):
    run("edit", "--model", assistant, *ONE, "--no-chat", "--output", tmp_path / "d")
    line = refused("ask", tmp_path / "d", "Snow is", "--system", "Say so.")
    assert "a system prompt belongs to a chat" in line


def test_a_model_without_a_template(tmp_path):
    line = refused("edit", "--model", "atlas", "--chat", *ONE, "--output", tmp_path / "d")
    assert "chat: the tokenizer of this model has no chat template" in line
    assert not (tmp_path / "d").exists()


def test_the_atlas_is_no_chat_model():
    assert load("atlas")[1].chat_template is None
