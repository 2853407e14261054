"""Plan files: what they say, what they may not say, what they cost, and that they are carried out and resumed."""

import json
from functools import partial

import pytest

import commands
from errata import load
from errata.bench.estimate import estimate
from errata.bench.plan import Plan, model_name
from errata.bench.plan_file import PlanFile, expanded
from errata.data import jsonl
from errata.edit import Edit
from errata.errors import BadOption, UnknownName, UsageError
from errata.methods import make
from test_bench_record import a_row
from tiny import EDITS, tiny_llama, write_tiny

run = partial(commands.run, "bench")

HEAD = 'title = "A trial"\nmodel = "atlas"\ndata = "atlas"\nedits = [1, 3]\n'
GRACE = '[[method]]\nname = "grace"\noptions = { steps = 5 }\n'


def written(folder, text):
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def plan(folder, text):
    return PlanFile.read(written(folder, text))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model and four edits, as files."""
    folder = tmp_path_factory.mktemp("plan") / "tiny"
    write_tiny(folder, layers=2)
    jsonl.write(folder.parent / "edits.jsonl", EDITS)
    return folder, folder.parent / "edits.jsonl"


def test_a_sweep_is_every_combination(tmp_path):
    text = HEAD + '[[method]]\nname = "none"\n[[method]]\nname = "wise"\noptions = { k = 3 }\n'
    made = plan(tmp_path, text + 'sweep = { rho = [0.1, 1], merge = ["ties", "sign"] }\n')
    assert [str(case) for case in made.cases] == [
        "none", "wise (k=3, rho=0.1, merge=ties)", "wise (k=3, rho=0.1, merge=sign)",
        "wise (k=3, rho=1.0, merge=ties)", "wise (k=3, rho=1.0, merge=sign)",
    ]  # fmt: skip
    assert (made.model, made.data, made.edits, made.seeds) == (("atlas",), ("atlas",), (1, 3), (0,))


def test_a_plan_without_a_title_is_called_as_its_file(tmp_path):
    assert plan(tmp_path, HEAD + GRACE).title == "A trial"
    assert plan(tmp_path, HEAD.replace("title", "#") + GRACE).title == "plan"


def test_depth_is_a_layer_of_the_model_at_hand(tmp_path):
    made = plan(tmp_path, HEAD + '[[method]]\nname = "grace"\nsweep = { depth = [0, 0.5, 1] }\n')
    assert [case.editor(tiny_llama(layers=5)).layer for case in made.cases] == [0, 2, 4]
    assert [case.editor(tiny_llama(layers=3)).layer for case in made.cases] == [0, 1, 2]


def test_none_is_written_as_text(tmp_path):
    made = plan(tmp_path, HEAD + '[[method]]\nname = "memoir"\nsweep = { tau = ["none", 1] }\n')
    assert [case.editor().tau for case in made.cases] == [None, 1.0]


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (HEAD + GRACE + "stps = 1\n", UnknownName, "no key of a method in .*plan.toml is called 'stps'"),
        ("chunk = 2\n" + HEAD + GRACE, UnknownName, "'chunk'. Did you mean 'chunks'"),
        (HEAD.replace("edits", "#") + GRACE, BadOption, "'edits' is missing"),
        (HEAD, BadOption, "'method' is missing"),
        (HEAD + "method = []", BadOption, r"it must be \[\[method\]\] tables"),
        (HEAD + "[[method]]\n", BadOption, "has no 'name'"),
        (HEAD + '[[method]]\nname = "grcae"\n', UnknownName, "no method is called 'grcae'. Did you mean 'grace'"),
        (HEAD + GRACE.replace("steps", "stpes"), UnknownName, "no option of grace is called 'stpes'"),
        (HEAD + GRACE.replace("5", '"5"'), BadOption, "steps='5' of grace must be int"),
        (HEAD + GRACE.replace("5", "true"), BadOption, "steps=True of grace must be int"),
        (HEAD + '[[method]]\nname = "wise"\noptions = { merge = "tise" }\n', BadOption, "merge 'tise': one of"),
        (HEAD + '[[method]]\nname = "wise"\nsweep = { rho = 0.1 }\n', BadOption, "a list of values is expected"),
        (HEAD + '[[method]]\nname = "wise"\nsweep = { depth = [2] }\n', BadOption, "from 0 to 1"),
        (HEAD + '[[method]]\nname = "none"\noptions = { lr = 1 }\n', BadOption, "the unedited model has no options"),
        (HEAD.replace("[1, 3]", "[0]") + GRACE, BadOption, "a number from 1"),
        (HEAD.replace("[1, 3]", "[]") + GRACE, BadOption, "a number from 1"),
        ("seeds = 1\n" + HEAD + GRACE, BadOption, "a list of numbers from 0"),
        ("chat = 1\n" + HEAD + GRACE, BadOption, "chat is 1; it must be true or false"),
        ('scorer = "exact"\n' + HEAD + GRACE, UnknownName, "no scorer is called 'exact'"),
        ('published = ["wise-99"]\n' + HEAD + GRACE, UnknownName, "no published table is called 'wise-99'"),
        ("title = \n", UsageError, "plan.toml is no TOML"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(tmp_path, text, error, match):
    with pytest.raises(error, match=match) as caught:
        plan(tmp_path, text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.toml cannot be read"):
        PlanFile.read(tmp_path / "absent.toml")


def test_a_variable_must_be_set(monkeypatch):
    monkeypatch.setenv("WHERE", "here")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expanded("zsre:$WHERE/x.json and ${WHERE}") == "zsre:here/x.json and here"
    with pytest.raises(UsageError, match=r"names \$NOWHERE, which is not set"):
        expanded("$NOWHERE/x")


def test_a_model_is_called_as_its_directory_wherever_it_lies(tmp_path):
    (tmp_path / "mine").mkdir()
    assert model_name(str(tmp_path / "mine")) == model_name(f"{tmp_path}/mine/") == "mine"
    assert model_name("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"


def test_more_edits_than_the_data_has_are_refused_before_a_model_is_loaded(tmp_path, tiny):
    path = written(tmp_path, HEAD.replace("[1, 3]", "[3, 5]") + GRACE)
    result = run(path, "--data", tiny[1], "--model", "no/such-model", code=2)
    assert "edits 5 is more than the 4 of jsonl:edits.jsonl" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_the_plan_says_cannot_be_said_again(tmp_path):
    result = run(written(tmp_path, HEAD + GRACE), "--set", "lr=1", code=2)
    assert "--set cannot be given with a plan file" in result.stderr
    assert "--dry-run is for a plan file" in run("--dry-run", code=2).stderr


def test_some_methods_of_a_plan_can_be_run_alone(tmp_path, tiny):
    model, edits = tiny
    path = written(tmp_path, HEAD + '[[method]]\nname = "none"\n' + GRACE)
    common = (path, "--model", model, "--data", edits, "--edits", "1")
    rows = [json.loads(line) for line in run(*common, "--method", "none", "--json").stdout.splitlines()]
    assert [row["method"] for row in rows] == ["none"]
    said = run(*common, "--method", "wise", code=2).stderr
    assert said.startswith(f"error: no method of {path} is called 'wise'. There is: grace, none")
    assert len(said.splitlines()) == 1


def test_methods_are_run_as_published_but_where_the_plan_says_otherwise(tmp_path, tiny):
    text = (
        HEAD
        + """
[[method]]
name = "wise"
options = { steps = 1 }
sweep = { replay = [0, 3] }
[[method]]
name = "wise"
options = { steps = 1, joint = false, replay = 0 }
[[method]]
name = "none"
"""
    )
    path = written(tmp_path, text)
    file = PlanFile.read(path)
    assert [case.options.get("joint") for case in file.cases] == [None, None, False, None]
    assert [(case.method, dict(case.options)) for case in file.as_published().cases] == [
        ("wise", {"joint": False, "replay": 0, "steps": 1}),
        ("wise", {"joint": False, "replay": 3, "steps": 1}),
        ("none", {}),
    ], "each once"
    common = ("--model", tiny[0], "--data", tiny[1], "--edits", "1", "--as-published", "--json")
    rows = [json.loads(line) for line in run(path, *common).stdout.splitlines()]
    assert [(row["options"].get("joint"), row["options"].get("replay")) for row in rows] == [
        (False, 0), (False, 3), (None, None),
    ]  # fmt: skip
    plain = run(*common, "--method", "wise,none", "--set", "wise.replay=2", "--set", "wise.steps=1").stdout
    options = [json.loads(line)["options"] for line in plain.splitlines()]
    assert (options[0]["joint"], options[0]["replay"]) == (False, 2)


def test_a_plan_of_chats_is_for_models_with_a_template(tmp_path, tiny):
    model, edits = tiny
    made = "chat = true\n" + HEAD + GRACE
    common = (written(tmp_path, made), "--data", edits, "--edits", "1")
    said = run(*common, "--model", model, code=2).stderr
    assert said == "error: chat: the tokenizer of this model has no chat template, so leave chat out\n"
    base, tokenizer = load(model)
    tokenizer.chat_template = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path / "assistant")
    (row,) = run(*common, "--model", tmp_path / "assistant", "--json").stdout.splitlines()
    assert json.loads(row)["chat"]
    plain = written(tmp_path, HEAD + GRACE)
    (same,) = run(plain, *common[1:], "--model", tmp_path / "assistant", "--chat", "--json").stdout.splitlines()
    assert json.loads(same)["scores"] == json.loads(row)["scores"]


def test_a_plan_is_carried_out_and_resumed(tmp_path, tiny):
    model, edits = tiny
    path = written(tmp_path, "seeds = [0, 1]\n" + HEAD + '[[method]]\nname = "none"\n' + GRACE)
    common = (path, "--model", model, "--data", edits, "--output", tmp_path / "out")
    first = run(*common, "--edits", "1")
    assert "A trial" in first.stdout
    assert "| grace" in first.stdout
    assert "[4/4] grace (steps=5): jsonl:edits.jsonl on tiny, seed 1" in first.stderr
    before = (tmp_path / "out" / "results.jsonl").read_text()
    rows = [json.loads(line) for line in run(*common, "--json").stdout.splitlines()]
    assert [(row["method"], row["seed"], row["edits"]) for row in rows] == [
        (method, seed, t) for seed in (0, 1) for method in ("none", "grace") for t in (1, 3)
    ]
    assert {row["options"].get("steps") for row in rows} == {None, 5}
    after = (tmp_path / "out" / "results.jsonl").read_text()
    assert after.startswith(before), "what was there is left as it was"
    run(*common)
    assert (tmp_path / "out" / "results.jsonl").read_text() == after, "nothing is measured twice"


def test_a_dry_run_counts_and_runs_nothing(tmp_path, tiny):
    model, edits = tiny
    path = written(tmp_path, 'chunks = 2\nirrelevant = "none.txt"\n' + HEAD + '[[method]]\nname = "none"\n' + GRACE)
    told = run(path, "--model", model, "--data", edits, "--dry-run", "--output", tmp_path / "out").stdout
    assert "runs:    2, in 6 streams" in told, "T = 1 twice and T = 3 once, for two methods"
    assert "edits:   10" in told
    assert "unknown for grace" in told
    assert not (tmp_path / "out").exists()
    found = json.loads(run(path, "--model", model, "--data", edits, "--dry-run", "--json").stdout)
    assert found["weights_bytes"] == 4 * sum(p.numel() for p in tiny_llama(layers=2).parameters())


def test_a_timed_dry_run_tries_what_has_no_rows_and_keeps_nothing(tmp_path, tiny):
    model, edits = tiny
    path = written(tmp_path, HEAD + '[[method]]\nname = "none"\n' + GRACE)
    common = (path, "--model", model, "--data", edits, "--output", tmp_path / "out")
    result = run(*common, "--dry-run", "--timed")
    assert "[1/2] trying none" in result.stderr
    assert "[2/2] trying grace (steps=5)" in result.stderr
    assert "of scoring, from two edits of each case" in result.stdout
    assert "MB in all while it was tried" in result.stdout
    assert not (tmp_path / "out").exists()
    found = json.loads(run(*common, "--dry-run", "--timed", "--json").stdout)
    assert found["seconds"] > 0
    assert found["scoring"] > 0
    assert found["unknown"] == []
    run(*common, "--method", "none")
    again = run(*common, "--dry-run", "--timed")
    assert "trying none" not in again.stderr, "its rows are there"
    assert "edits:   3\n" in again.stdout
    run(*common)
    over = run(*common, "--dry-run", "--timed")
    assert "trying" not in over.stderr
    assert "time:    none: all rows are there" in over.stdout


def test_a_case_that_cannot_be_tried_is_told_and_the_others_are(tmp_path, tiny):
    text = HEAD + '[[method]]\nname = "grace"\noptions = { layer = 9 }\n[[method]]\nname = "none"\n'
    result = run(written(tmp_path, text), "--model", tiny[0], "--data", tiny[1], "--dry-run", "--timed")
    assert "not tried: grace (layer=9): layer 9 is out of range" in result.stderr
    assert "unknown for grace (they could not be tried)" in result.stdout
    alone = run(
        tmp_path / "plan.toml", "--model", tiny[0], "--data", tiny[1], "--method", "grace", "--dry-run", "--timed"
    )
    assert "time:    unknown for grace (they could not be tried)" in alone.stdout, "none of them could"


def test_timing_is_for_a_dry_run(tmp_path, tiny):
    said = run(written(tmp_path, HEAD + GRACE), "--data", tiny[1], "--timed", code=2).stderr
    assert said == "error: --timed is for a dry run: errata bench PLAN.toml --dry-run --timed\n"
    assert "--dry-run --timed is for a plan file" in run("--timed", code=2).stderr


def test_a_method_that_cannot_be_run_is_told_and_the_others_are_run(tmp_path, tiny):
    text = HEAD + '[[method]]\nname = "grace"\noptions = { layer = 9 }\n[[method]]\nname = "none"\n'
    result = run(written(tmp_path, text), "--model", tiny[0], "--data", tiny[1], "--edits", "1", code=1)
    assert "error: 1 runs of" in result.stderr
    assert "not run: grace (layer=9): layer 9 is out of range" in result.stderr
    assert "| none" in result.stdout


def test_earlier_rows_are_not_counted_again_and_tell_the_time():
    editor = make("grace")
    asked = Plan(tiny_llama(layers=2), None, editor, "tiny", "zsre", EDITS, checkpoints=(1, 4))
    more = {"stream": 4, "options": editor.options(), "model": "tiny", "data": "zsre", "seconds_per_edit": 0.5}
    nothing = estimate([asked])
    assert (nothing.edits, nothing.found, nothing.rows, nothing.unknown) == (4, 0, 2, ("grace",))
    first = estimate([asked], [a_row("grace", 1, **more)])
    assert (first.edits, first.found, first.seconds, first.unknown) == (4, 1, 2.0, ())
    both = estimate([asked], [a_row("grace", t, **more) for t in (1, 4)])
    assert (both.edits, both.streams, both.found) == (0, 0, 2)
    other = estimate([asked], [a_row("grace", t, **(more | {"model": "another"})) for t in (1, 4)])
    assert (other.found, other.unknown) == (0, ("grace",)), "another model tells nothing of this one"


def test_matrices_that_a_long_stream_begins_anew_are_counted():
    base = tiny_llama(layers=2)  # its site is a matrix of 64 x 32: at 1000 a million a W_m takes three edits
    matrix = 4 * 64 * 32

    def of(editor, edits):
        stream = [Edit(f"Where is number {i}?", "Rome") for i in range(edits)]
        return estimate([Plan(base, None, editor, "tiny", "many", stream)]).editing_bytes - 4 * matrix

    for capacity, edits, closed in ((1000, 3, 0), (1000, 10, 3), (1, 3, 2), (None, 10, 0)):
        assert of(make("memoir", capacity=capacity, protect=0.0), edits) == closed * matrix
    for mode, most, apart in (("retrieve", None, 4), ("retrieve", 3, 2), ("merge", None, 0)):
        assert of(make("wise", mode=mode, most=most, k=1, shard_edits=2), 10) == apart * matrix


def test_second_moments_count_those_of_locate_then_edit_for_every_layer():
    base = tiny_llama(layers=2)  # its site is a matrix of 64 x 32
    sizes = {
        name: estimate([Plan(base, None, make(name), "tiny", "four", EDITS)]).editing_bytes
        for name in ("grace", "memoir", "rome", "memit")
    }
    assert sizes == {
        "grace": 4 * 4 * 64 * 32, "memoir": (4 + 1) * 4 * 64 * 32 + 8 * 64**2, "rome": 4 * 4 * 64 * 32 + 16 * 64**2,
        "memit": 4 * 4 * 64 * 32 + 5 * 16 * 64**2
    }  # fmt: skip
