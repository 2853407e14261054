"""The readers: made-up records of every format, real files where there are any, and errors that say where."""

import contextlib
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import errata.data
from errata import errors
from errata.data import (
    Dataset,
    catalogue,
    counterfact,
    easyedit,
    hallucination,
    jsonl,
    load,
    read_irrelevant,
    temporal,
    zsre,
)
from errata.data.record import Record
from errata.edit import OOD, Edit, Probe

SCHEMA = json.loads(Path(errata.data.__file__).with_name("edit.schema.json").read_text())

ZSRE = {
    "subject": "Lake Mirra",
    "src": "Which country is Lake Mirra in?",
    "pred": "Peru",
    "rephrase": "In what country does Lake Mirra lie?",
    "alt": "Chile",
    "answers": ["Bolivia", "Bolivian Republic"],
    "loc": "nq question: who wrote the anthem",
    "loc_ans": "Ana Ruiz",
    "portability": {
        "New Question": "What is the capital of the country of Lake Mirra?",
        "New Answer": "Santiago",
        "Recalled Relation": "(Chile, capital, Santiago)",
    },
}
FLAT = {
    "case_id": 7,
    "prompt": "The mother tongue of Ada Odo is",
    "target_new": "Greek",
    "subject": "Ada Odo",
    "ground_truth": "Igbo",
    "rephrase_prompt": "Ada Odo was brought up speaking",
    "locality_prompt": "The mother tongue of Obi Eze is",
    "locality_ground_truth": "Igbo",
}
ROME = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "subject": "Ada Odo",
        "target_new": {"str": "Greek", "id": "Q1"},
        "target_true": {"str": "Igbo", "id": "Q2"},
    },
    "paraphrase_prompts": ["Ada Odo was brought up speaking"],
    "neighborhood_prompts": ["The mother tongue of Obi Eze is"],
    "generation_prompts": ["Ada Odo lives in"],
}
KNOWEDIT = {
    "subject": "Acme",
    "prompt": "The CEO of Acme is",
    "target_new": "Ada Byron",
    "ground_truth": ["Bo Diaz"],
    "portability": {"Reasoning": [{"prompt": "The CEO of Acme was born in", "ground_truth": [["London", "UK"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "Acme was founded in", "ground_truth": [["1999"]]}]},
}
OURS = {
    "prompt": "The CEO of Acme is",
    "target": "Ada Byron",
    "subject": "Acme",
    "target_old": "Bo Diaz",
    "rephrases": ["Acme is led by"],
    "locality": [{"prompt": "The CEO of Bolt is", "answer": "Cy Lee", "kind": "same_relation"}],
    "portability": [{"prompt": "The CEO of Acme was born in"}],
    "meta": {"author": "ada", "tags": ["people"]},
}


def saved(folder: Path, value: object, name: str = "edits.json") -> Path:
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(value))
    else:
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in value))
    return path


def one(folder: Path, kind: str, record: dict) -> Edit:
    (edit,) = load(f"{kind}:{saved(folder, [record])}").edits
    return edit


# ------------------------------------------------------------------------------------------------------------- formats


def test_zsre(tmp_path):
    edit = one(tmp_path, "zsre", ZSRE)
    assert (edit.prompt, edit.target, edit.subject) == (ZSRE["src"], "Chile", "Lake Mirra")
    assert edit.target_old == "Bolivia"
    assert edit.rephrases == (ZSRE["rephrase"],)
    assert edit.locality == (Probe(ZSRE["loc"], "Ana Ruiz", "far"),)
    (portability,) = edit.portability
    assert (portability.prompt, portability.answer) == (ZSRE["portability"]["New Question"], "Santiago")
    assert edit.meta["pred"] == "Peru"


def test_zsre_with_lists_and_without_what_is_optional(tmp_path):
    lists = {**ZSRE, "alt": ["Chile"], "rephrase": ["a?", "b?"], "loc": ["c", "d"], "loc_ans": ["C", ""]}
    edit = one(tmp_path, "zsre", lists)
    assert (edit.target, edit.rephrases) == ("Chile", ("a?", "b?"))
    assert edit.locality == (Probe("c", "C", "far"), Probe("d", None, "far"))
    edit = one(tmp_path, "zsre", {"src": "Who?", "alt": "Ada"})
    assert edit == Edit("Who?", "Ada")


@pytest.mark.parametrize("record", [FLAT, ROME], ids=["flat", "rome"])
def test_counterfact_means_the_same_in_both_forms(tmp_path, record):
    edit = one(tmp_path, "counterfact", record)
    assert (edit.prompt, edit.target, edit.subject) == ("The mother tongue of Ada Odo is", "Greek", "Ada Odo")
    assert edit.target_old == "Igbo"
    assert edit.rephrases == ("Ada Odo was brought up speaking",)
    assert edit.locality == (Probe("The mother tongue of Obi Eze is", "Igbo", "same_relation"),)
    assert edit.meta["case_id"] == 7


def test_rome_keeps_what_it_does_not_use_and_braces_of_the_prompt(tmp_path):
    rewrite = {**ROME["requested_rewrite"], "prompt": "In {x}, {} speaks"}
    edit = one(tmp_path, "counterfact", {**ROME, "requested_rewrite": rewrite})
    assert edit.prompt == "In {x}, Ada Odo speaks"
    assert edit.meta["generation_prompts"] == ["Ada Odo lives in"]
    assert edit.meta["relation_id"] == "P103"


def test_easyedit_flat(tmp_path):
    edit = one(tmp_path, "easyedit", FLAT)
    assert edit.locality == (Probe(FLAT["locality_prompt"], "Igbo", None),)
    assert edit.target_old == "Igbo"


def test_easyedit_with_named_probes(tmp_path):
    edit = one(tmp_path, "easyedit", KNOWEDIT)
    assert edit.locality == (Probe("Acme was founded in", "1999", "same_subject"),)
    assert edit.portability == (Probe("The CEO of Acme was born in", "London", "Reasoning"),)


def test_easyedit_as_lists_one_per_field(tmp_path):
    columns = {
        "prompts": ["The CEO of Acme is", "The CEO of Bolt is"],
        "target_new": ["Ada", "Bea"],
        "subject": ["Acme", "Bolt"],
        "locality_inputs": {"neighborhood": {"prompt": ["p", "q"], "ground_truth": ["P", "Q"]}},
    }
    edits = load(str(saved(tmp_path, columns))).edits
    assert [(e.prompt, e.target, e.subject) for e in edits] == [
        ("The CEO of Acme is", "Ada", "Acme"),
        ("The CEO of Bolt is", "Bea", "Bolt"),
    ]
    assert [e.locality[0].answer for e in edits] == ["P", "Q"]
    with pytest.raises(errors.UsageError, match="differ in length"):
        load(str(saved(tmp_path, {**columns, "subject": ["Acme"]})))


@pytest.mark.parametrize(("kind", "record"), [("zsre", ZSRE), ("counterfact", FLAT), ("easyedit", KNOWEDIT)])
def test_a_benchmarks_row_whose_subject_is_not_in_the_prompt_is_kept_without_it(tmp_path, kind, record):
    edit = one(tmp_path, kind, {**record, "subject": "ACME CORP"})
    assert edit.subject is None
    assert edit.meta["subject_missing"] == "ACME CORP"


def test_our_own_format(tmp_path):
    path = saved(tmp_path, [OURS, "", {"prompt": "p", "target": "t", "subject": None}], "edits.jsonl")
    first, second = load(str(path)).edits
    assert first.locality == (Probe("The CEO of Bolt is", "Cy Lee", "same_relation"),)
    assert first.portability == (Probe("The CEO of Acme was born in"),)
    assert dict(first.meta) == OURS["meta"]
    assert second == Edit("p", "t")
    assert load(f"jsonl:{path}").edits == (first, second) == tuple(jsonl.read_jsonl(path))


def test_write_then_read_gives_the_same_edits_whatever_the_letters(tmp_path):
    edits = [jsonl.from_record(OURS), Edit("Où est\u2028Zoë?\n", "東京 \U0001f5fc", meta={"n": 1.5})]
    path = tmp_path / "out.jsonl"
    jsonl.write(path, edits)
    assert jsonl.read_jsonl(path) == edits
    assert path.read_bytes().count(b"\n") == 2


def test_to_record_says_only_what_is_set_and_leaves_out_what_is_blank():
    assert jsonl.to_record(Edit("p", "t", rephrases=("", "r"), locality=(Probe(" "),))) == {
        "prompt": "p",
        "target": "t",
        "rephrases": ["r"],
    }


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), Path()])
def test_meta_that_is_no_json_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(errors.BadEdit, match="meta"):
        jsonl.write(tmp_path / "out.jsonl", [Edit("p", "t", meta={"x": value})])
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "record"), [("zsre", ZSRE), ("counterfact", FLAT), ("counterfact", ROME), ("easyedit", KNOWEDIT)]
)
def test_every_format_is_recognised_and_can_be_written_as_ours(tmp_path, kind, record):
    path = saved(tmp_path, [record])
    dataset = load(str(path))
    assert dataset.name == f"{kind}:edits.json"
    record = jsonl.to_record(dataset.edits[0])
    jsonschema.validate(record, SCHEMA)
    assert jsonl.from_record(record) == dataset.edits[0]


# -------------------------------------------------------------------------------------------------- schema and reader

JSON_VALUES = st.none() | st.booleans() | st.integers(0, 3) | st.text(" ab", max_size=2)
LISTS = st.lists(JSON_VALUES, max_size=2)
PROBES = st.dictionaries(st.sampled_from(["prompt", "answer", "kind", "odd"]), JSON_VALUES, max_size=3)
FIELDS = st.fixed_dictionaries(
    {"prompt": JSON_VALUES, "target": st.text("ab", min_size=1)},
    optional={
        "target_old": JSON_VALUES,
        "rephrases": JSON_VALUES | LISTS,
        "locality": JSON_VALUES | LISTS | st.lists(PROBES, max_size=2) | PROBES,
        "portability": st.lists(PROBES, max_size=2),
        "meta": JSON_VALUES | PROBES,
        "rephrase": JSON_VALUES,
    },
)


@given(FIELDS)
def test_the_reader_accepts_exactly_what_the_schema_accepts(record):
    try:
        jsonl.from_record(record)
        read = True
    except errors.BadRecord:
        read = False
    assert read == jsonschema.Draft202012Validator(SCHEMA).is_valid(record)


def test_the_schema_is_one_and_names_every_field():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["properties"]) == set(jsonl.FIELDS)
    assert set(SCHEMA["$defs"]["probe"]["properties"]) == set(jsonl.PROBE_FIELDS)
    jsonschema.validate(OURS, SCHEMA)


# -------------------------------------------------------------------------------------------------------- bad records


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"target": "t"}, "'prompt': is missing"),
        ({"prompt": "p", "target": " "}, "'target': is empty"),
        ({"prompt": "p", "target": 3}, "'target': is a number where text is expected"),
        ({"prompt": "p", "target": "t", "subject": "s"}, "'subject': 's' does not occur"),
        ({"prompt": "p", "target": "t", "rephrase": []}, "'rephrase': .* did you mean 'rephrases'"),
        ({"prompt": "p", "target": "t", "rephrases": "r"}, "'rephrases': is text where a list"),
        ({"prompt": "p", "target": "t", "locality": ["l"]}, r"'locality\[0\]': is text where an object"),
        ({"prompt": "p", "target": "t", "locality": [{"answer": "a"}]}, r"'locality\[0\].prompt': is missing"),
        ({"prompt": "p", "target": "t", "meta": []}, "'meta': is a list where an object"),
        ({"prompt": "p", "target": "\ud800"}, "'target': holds half of a surrogate pair"),
        ([1], "is a list where an object is expected"),
        ('{"prompt": "p",', "malformed JSON at column 1[0-9]: "),
        ("[" * 100_000, "JSON that cannot be read"),
    ],
)
def test_a_bad_line_is_named_and_can_be_skipped(tmp_path, bad, says):
    path = saved(tmp_path, [OURS, "", bad, OURS], "edits.jsonl")
    with pytest.raises(errors.BadRecord, match=says) as caught:
        load(str(path))
    assert str(caught.value).startswith(f"{path}:3")
    assert "\n" not in str(caught.value)
    dataset = load(str(path), on_error="skip")
    assert len(dataset.edits) == 2
    assert [(error.path, error.line) for error in dataset.skipped] == [(str(path), 3)]


@pytest.mark.parametrize(
    ("kind", "bad", "field"),
    [
        ("zsre", {**ZSRE, "alt": ""}, "alt"),
        ("zsre", {**ZSRE, "loc_ans": ["a", "b"], "loc": ["c"]}, "loc_ans"),
        ("zsre", {**ZSRE, "portability": {"New Answer": "a"}}, "portability.New Question"),
        ("counterfact", {**FLAT, "target_new": None}, "target_new"),
        ("counterfact", {**ROME, "requested_rewrite": []}, "requested_rewrite"),
        (
            "counterfact",
            {"requested_rewrite": {"prompt": "{}", "subject": "s", "target_new": {"str": "t"}}},
            "requested_rewrite.target_true",
        ),
        ("easyedit", {**FLAT, "prompt": 1}, "prompt"),
        ("easyedit", {**FLAT, "rephrase_prompt": ["r", 1]}, "rephrase_prompt[1]"),
        ("easyedit", {**KNOWEDIT, "locality": {"x": "y"}}, "locality.x"),
    ],
)
def test_a_bad_item_of_an_array_is_named_by_its_number(tmp_path, kind, bad, field):
    good = {"zsre": ZSRE, "counterfact": FLAT, "easyedit": FLAT}[kind]
    path = saved(tmp_path, [good, bad, "no object", good])
    with pytest.raises(errors.BadRecord) as caught:
        load(f"{kind}:{path}")
    assert (caught.value.line, caught.value.field) == (2, field)
    dataset = load(f"{kind}:{path}", on_error="skip")
    assert (len(dataset.edits), [error.line for error in dataset.skipped]) == (2, [2, 3])


FORMATS_AND_EXAMPLES = [(zsre, ZSRE), (counterfact, FLAT), (counterfact, ROME), (easyedit, KNOWEDIT), (jsonl, OURS)]
ANY_JSON = st.recursive(
    JSON_VALUES | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(FORMATS_AND_EXAMPLES), st.data())
def test_whatever_a_field_holds_the_record_is_read_or_bad(format_and_example, data):
    reader, example = format_and_example
    name = data.draw(st.sampled_from(sorted(example)))
    record = Record("f", 1, {**example, name: data.draw(ANY_JSON)})
    with contextlib.suppress(errors.BadRecord):
        assert isinstance(reader.parse(record), Edit)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[]", "holds no record"),
        (b"[\n{", ":2: malformed JSON"),
        (b'"text"', "holds text where a JSON array"),
        (b'{"a": 1}', "one object where a JSON array"),
        (b'[{"a": 1}]', "no known format: the fields of its first record are a"),
        (b"[\n\n\xff]", ":3: is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_one_clear_line(tmp_path, content, says):
    path = tmp_path / "edits.json"
    path.write_bytes(content)
    with pytest.raises(errors.UsageError, match=says) as caught:
        load(str(path), on_error="skip")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "edits.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps(OURS) + "\r\n").encode() * 2)
    assert len(load(str(path)).edits) == 2


def test_names_and_files_that_do_not_exist(tmp_path):
    with pytest.raises(errors.UnknownName, match=r"Did you mean 'zsre'.*KIND:PATH"):
        load(f"zrse:{saved(tmp_path, [ZSRE])}")
    with pytest.raises(errors.UnknownName, match=r"KIND:PATH"):
        load("edits.csv")
    with pytest.raises(errors.UsageError, match=r"nowhere\.json cannot be read: No such file"):
        load(f"zsre:{tmp_path}/nowhere.json")
    with pytest.raises(errors.UsageError, match="cannot be read"):
        load(f"zsre:{tmp_path}")
    with pytest.raises(errors.UsageError, match="needs a file: zsre:PATH"):
        load("zsre")
    with pytest.raises(errors.BadOption, match="stop or skip"):
        load(f"zsre:{saved(tmp_path, [ZSRE])}", on_error="ignore")
    with pytest.raises(errors.BadOption, match="limit"):
        load(f"zsre:{saved(tmp_path, [ZSRE])}", limit=0)


def test_a_file_of_bad_records_only_is_an_error_even_when_skipping(tmp_path):
    path = saved(tmp_path, [{}], "edits.jsonl")
    with pytest.raises(errors.UsageError, match=r"holds no edit; the first of 1 bad records: .*'prompt': is missing"):
        load(str(path), on_error="skip")


def test_limit_stops_reading(tmp_path):
    path = saved(tmp_path, [OURS, OURS, "broken"], "edits.jsonl")
    assert len(load(str(path), limit=2).edits) == 2


def test_a_plugin_is_a_name_and_a_function_from_a_path_to_edits(tmp_path, monkeypatch):
    plugin = EntryPoint("mine", f"{__name__}:read_mine", "errata.data")
    monkeypatch.setattr(EntryPoint, "load", lambda _: lambda path: iter([Edit(path.name, "t"), Edit("q", "t")]))
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [plugin] if group == "errata.data" else [])
    dataset = load(f"mine:{tmp_path}/x.y", limit=1)
    assert dataset == Dataset("mine:x.y", (Edit("x.y", "t"),))


# ------------------------------------------------------------------------------------------------------------ streams


def numbered(n: int) -> tuple[Edit, ...]:
    return tuple(
        Edit(f"prompt {i}", "t", rephrases=(f"again {i}",), locality=(Probe(f"far {i}", f"answer {i}"),))
        for i in range(n)
    )


def test_irrelevant_texts_are_the_probes_of_later_edits_that_are_not_scored_here():
    leaks = Edit(
        "later", "t", locality=(Probe("prompt 0", "x"), Probe("again 1", "x"), Probe("far 0", "x"), Probe("far"))
    )
    edits, irrelevant = Dataset("d", (*numbered(3), leaks)).stream(2)
    assert edits == list(numbered(2))
    assert irrelevant == [Probe("far 2", "answer 2"), Probe("far")]


def test_given_irrelevant_texts_are_used_in_order_and_may_not_begin_like_what_is_scored():
    given = [Probe(text) for text in ("b text", "far 1 answer", "a text", "again 0", "far 11", "a text")]
    _, irrelevant = Dataset("d", numbered(3), irrelevant=tuple(given)).stream(2)
    assert [probe.prompt for probe in irrelevant] == ["b text", "a text", "far 11", "a text"]


def test_a_stream_of_everything_leaves_no_text_and_more_than_everything_is_refused():
    dataset = Dataset("mine", numbered(3))
    assert dataset.stream(3) == (list(numbered(3)), [])
    with pytest.raises(errors.UsageError, match="4 edits were asked for, but mine has 3"):
        dataset.stream(4)


def test_the_locality_probes_of_data_are_irrelevant_prompts(tmp_path):
    found = read_irrelevant(f"counterfact:{saved(tmp_path, [FLAT], 'c.json')}")
    assert [probe.prompt for probe in found] == [FLAT["locality_prompt"]]
    with pytest.raises(errors.UnknownName):
        read_irrelevant("nonsense:c.json")
    (tmp_path / "bare.jsonl").write_text('{"prompt": "Snow is", "target": "black"}\n', encoding="utf-8")
    with pytest.raises(errors.UsageError, match="has no locality probes"):
        read_irrelevant(f"jsonl:{tmp_path / 'bare.jsonl'}")


def test_read_irrelevant_as_json_and_as_lines(tmp_path):
    assert read_irrelevant(saved(tmp_path, ["a b", "c"], "i.json")) == [Probe("a b"), Probe("c")]
    assert read_irrelevant(saved(tmp_path, ["a b\tx", "", " c\r"], "i.txt")) == [Probe("a b", "x"), Probe("c")]
    with pytest.raises(errors.BadRecord, match=":2, field 'text': is a number"):
        read_irrelevant(saved(tmp_path, ["a", 1], "i.json"))
    with pytest.raises(errors.UsageError, match="an object where a JSON array"):
        read_irrelevant(saved(tmp_path, {}, "i.json"))


# --------------------------------------------------------------------------------------------------------- long texts

SENTENCE = {
    "prompt": "This is a Wikipedia passage about ada odo. Ada Odo is a sculptor.",
    "target_new": "She was born in Lagos.",
    "subject": "ada odo",
    "locality_prompt": "Maps of the coast,",
    "locality_ground_truth": "printed by hand.",
}
ARTICLE = {
    "prompt": "Mirra",
    "target_new": "is a town that grew fast.",
    "subject": "Mirra",
    "ood_rephrase": "Mirra, a town on the lake, has 900 people.",
    "locality_prompt": "Maps of the coast,",
    "locality_ground_truth": "printed by hand.",
    "page": 12,
}


def test_a_hallucinated_sentence_has_web_text_as_its_locality():
    edit = hallucination.parse(Record("x.json", 1, SENTENCE))
    assert (edit.prompt, edit.target, edit.subject) == (SENTENCE["prompt"], "She was born in Lagos.", "ada odo")
    assert edit.locality == (Probe("Maps of the coast,", "printed by hand.", "far"),)
    assert not edit.rephrases
    assert not edit.portability


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Mirra, a town on the lake, has 900 people.", ", a town on the lake, has 900 people."),
        ("The town of Mirra has 900 people.", "The town of Mirra has 900 people."),
        ("Mirra", "Mirra"),
    ],
)
def test_a_temporal_article_has_the_text_that_people_wrote_as_a_probe(text, answer):
    edit = temporal.parse(Record("x.json", 1, ARTICLE | {"ood_rephrase": text}))
    assert edit.portability == (Probe("Mirra", answer, OOD),)
    assert edit.locality == (Probe("Maps of the coast,", "printed by hand.", "far"),)
    assert not edit.rephrases, "natural text is no rephrasing: generalization is measured otherwise"
    assert edit.meta == {"page": 12}


@pytest.mark.parametrize(("parse", "fields"), [(hallucination.parse, SENTENCE), (temporal.parse, ARTICLE)])
@pytest.mark.parametrize("name", ["prompt", "target_new"])
def test_a_long_text_without_a_part_names_the_place(parse, fields, name):
    with pytest.raises(errors.BadRecord, match=f"x.json:3, field '{name}'"):
        parse(Record("x.json", 3, fields | {name: " "}))


def test_real_long_texts_are_read_to_the_last_row(real_data):
    corrected = load(f"hallucination:{real_data}/hallucination/hallucination-edit.json")
    assert corrected.name == "hallucination:hallucination-edit.json"
    assert len(corrected.edits) == 600
    assert {probe.kind for edit in corrected.edits for probe in edit.locality} == {"far"}
    assert len(load(f"hallucination:{real_data}/hallucination/hallucination-train.json").edits) == 306
    articles = load(str(real_data / "temporal" / "temporal-edit.json")).edits
    assert all(probe.kind == OOD for edit in articles for probe in edit.portability)
    assert sum(len(edit.portability) for edit in articles) == 75


# ------------------------------------------------------------------------------------------------------ real data sets


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("zsre/zsre_edit_1037.json", "zsre", 1037),
        ("counterfact/counterfact-edit.json", "counterfact", 10_000),
        ("counterfact/counterfact-val.json", "counterfact", 1919),
        ("counterfact/intersected_counterfact_known.json", "counterfact", 436),
        ("hallucination/hallucination-edit.json", "easyedit", 600),  # its fields are no sign of it: say hallucination:
        ("temporal/temporal-edit.json", "temporal", 75),
    ],
)
def test_real_files_are_recognised_and_read_to_the_last_row(real_data, file, name, count):
    dataset = load(str(real_data / file))
    assert dataset.name.startswith(f"{name}:")
    assert len(dataset.edits) == count
    assert all(edit.locality for edit in dataset.edits)
    assert sum(edit.subject is not None for edit in dataset.edits) == count
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for edit in dataset.edits[:50]:
        record = jsonl.to_record(edit)
        validator.validate(record)
        assert jsonl.from_record(record) == edit


def test_real_streams_have_irrelevant_texts_that_are_not_scored(real_data):
    edits, irrelevant = load(f"zsre:{real_data}/zsre/zsre_edit_1037.json").stream(500)
    assert len(edits) == 500
    assert len(irrelevant) > 400
    probed = {probe.prompt for edit in edits for probe in edit.locality}
    assert not probed & {probe.prompt for probe in irrelevant}
    assert len(read_irrelevant(real_data / "zsre" / "irrelevant_prompts_994.json")) == 1000


# --------------------------------------------------------------------------------------------------- the embedded atlas


@pytest.mark.parametrize("spec", ["atlas", "atlas:validation", "atlas:unseen"])
def test_the_atlas_is_a_data_set_like_any_other(spec):
    dataset = load(spec, limit=5)
    assert dataset.name == spec
    assert len(dataset.edits) == 5
    assert dataset.irrelevant
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for edit in dataset.edits:
        record = jsonl.to_record(edit)
        validator.validate(record)
        assert jsonl.from_record(record) == edit
