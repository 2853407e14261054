"""LEMoE's diagnoses, on a tiny model: what is counted is what was done."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from errata.bench.diagnoses import diagnose, lifelong, orders, routes
from errata.errors import BadOption
from errata.methods.lemoe import Lemoe
from errata.metrics import Reference
from errata.model import EditedModel
from test_every_method import IRRELEVANT, fresh
from test_lemoe import MORE, lemoe, parts, picked


def test_routes_are_those_of_the_prompts_in_use() -> None:
    model = lemoe()
    model.edit_many(MORE)
    prompts = [edit.prompt for edit in MORE]
    owners = parts(model)[0].owners.tolist()
    assert routes(model, prompts, owners) == (1.0, 0.0, 0.0)
    assert routes(model, prompts, [(owner + 1) % 3 for owner in owners]) == (0.0, 1.0, 0.0)
    irrelevant = [probe.prompt for probe in IRRELEVANT]
    found = routes(model, irrelevant, [-1] * len(irrelevant))
    assert found.none == pytest.approx(sum(picked(model, p) is None for p in irrelevant) / len(irrelevant))
    assert sum(found) == pytest.approx(1.0)


def test_without_edits_all_prompts_are_the_pretrained_model_s() -> None:
    assert routes(lemoe(), [MORE[0].prompt], [0]) == (0.0, 0.0, 1.0)


def test_every_order_holds_every_edit_once_and_batches_that_fit() -> None:
    found = orders(lemoe(), MORE, 2, shuffles=2)
    assert list(found) == ["as given", "planned", "dealt", "shuffled 0", "shuffled 1"]
    for order in found.values():
        assert sorted(i for batch in order.batches for i in batch) == list(range(6))
        assert max(map(len, order.batches)) == 2
    assert found["as given"].batches == ((0, 1), (2, 3), (4, 5))
    gap = {name: order.within - order.between for name, order in found.items()}
    assert gap["planned"] > gap["dealt"]


def test_forgetting_is_what_held_at_once_and_no_longer_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose experts are all lost after the second batch has forgotten all of the first."""
    model = lemoe(steps=80)
    plain = lifelong(lemoe(steps=80), MORE[:4], [[0, 1], [2, 3]], Reference())
    assert plain["forgetting"]["immediate"] == 1.0
    assert plain["forgetting"]["forgotten"] == 1.0 - plain["forgetting"]["final"]
    edit_batch = EditedModel.edit_batch

    def losing(self, edits):
        receipts = edit_batch(self, edits)
        if len(self.history) == 4:
            _, experts = parts(self)
            experts.put({"down": torch.zeros_like(experts.down)})
        return receipts

    monkeypatch.setattr(EditedModel, "edit_batch", losing)
    found = lifelong(model, MORE[:4], [[0, 1], [2, 3]], Reference())["forgetting"]
    assert found == {"immediate": 0.5, "final": 0.0, "forgotten": 0.5, "first_batch": [1.0, 0.0]}


def test_all_diagnoses_are_json_and_the_base_is_bare_afterwards() -> None:
    made = []

    def make(editor: Lemoe) -> EditedModel:
        plain = lemoe()
        made.append(EditedModel(
            plain.detach(), plain.tokens.tokenizer, editor, irrelevant=IRRELEVANT, prefixes=("It is said that",)
        ))  # fmt: skip
        return made[-1]

    editor = Lemoe(batch=2, steps=3, width=8)
    kept = []
    with pytest.raises(BadOption, match="another base model"):
        diagnose(make, editor, MORE[:4], shuffles=0)
    base = lemoe().detach()

    def again(editor: Lemoe) -> EditedModel:
        tokenizer = made[0].tokens.tokenizer
        return EditedModel(base, tokenizer, editor, irrelevant=IRRELEVANT, prefixes=("It is said that",))

    found = json.loads(
        json.dumps(diagnose(again, editor, MORE[:4], shuffles=1, keep=lambda so_far: kept.append(len(so_far["runs"]))))
    )
    assert kept == [1, 2, 3, 4, 5, 6]
    assert diagnose(again, editor, MORE[:4], shuffles=1, runs=found["runs"], keep=kept.append)["runs"] == found["runs"]
    assert len(kept) == 6, "nothing is made twice"
    assert list(found["runs"]) == ["as given", "planned", "dealt", "shuffled 0", "one batch", "one by one"]
    assert [found["runs"][name]["experts"] for name in found["runs"]] == [2, 2, 2, 2, 1, 2]
    assert {"within", "between"} <= set(found["runs"]["planned"])
    averages = [found["runs"][name]["scores"]["generated_exact"]["average"] for name in list(found["runs"])[:4]]
    assert found["order_sensitivity"]["spread"] == pytest.approx(max(averages) - min(averages))
    assert not [name for name, _ in base.named_modules() if "memories" in name], "nothing is left on the base"


def test_the_script_writes_run_by_run_and_goes_on_from_what_is_there(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("lemoe")
    plain = lemoe()
    monkeypatch.setattr(module, "load", lambda name: (plain.detach(), plain.tokens.tokenizer))
    monkeypatch.setattr(module, "edits", lambda split: MORE)
    monkeypatch.setattr(module, "irrelevant", lambda: IRRELEVANT)
    path = tmp_path / "new" / "lemoe.json"
    small = "--edits 2 --prefixes 1 --shuffles 0 --set batch=1 --set steps=1".split()
    monkeypatch.setattr("sys.argv", ["lemoe.py", str(path.parent), *small])
    module.main()
    told = json.loads(path.read_text())
    assert list(told["found"]["runs"]) == ["as given", "planned", "dealt", "one batch", "one by one"]
    assert (told["settings"]["options"]["steps"], told["settings"]["prefixes"]) == (1, 1)
    told["found"]["runs"]["planned"]["experts"] = 7
    path.write_text(json.dumps(told))
    module.main()
    assert experts(path) == 7, "what is there is not made again"
    monkeypatch.setattr("sys.argv", ["lemoe.py", str(path.parent), *small, "--set", "lr=0.02"])
    module.main()
    assert experts(path) == 2, "other settings are another measurement"


def experts(path: Path) -> int:
    """How many the planned run of a file has."""
    return int(json.loads(path.read_text())["found"]["runs"]["planned"]["experts"])


def test_another_method_is_refused() -> None:
    model = fresh("memoir")
    with pytest.raises(BadOption, match="lemoe"):
        routes(model, [MORE[0].prompt], [0])
    with pytest.raises(BadOption, match="lemoe"):
        orders(model, MORE, 2)
