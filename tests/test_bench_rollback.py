"""WilKE's protocol: every edit is edited back, and what stays behind is measured."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from architectures import tiny
from errata.bench.rollback import edit_and_roll_back, released_checkpoints
from errata.edit import Edit, Probe
from errata.errors import BadEdit
from test_every_method import IRRELEVANT
from test_method_checks import with_options
from tiny import EDITS, tiny_tokenizer

UNTOUCHED = (Probe("Snow is", "white"), Probe("Water boils at", "heat"), Probe("No answer is known", None))


def test_checkpoints_are_the_powers_of_two_and_the_fifties() -> None:
    assert released_checkpoints(120) == [1, 2, 4, 8, 16, 32, 50, 64, 100, 120]
    assert released_checkpoints(1) == [1]


def test_every_edit_is_made_and_edited_back() -> None:
    model = with_options("wilke", ceiling=2)
    found = edit_and_roll_back(model, EDITS[:2], UNTOUCHED)
    assert [edit.target for edit in model.history] == ["Melpo", "Tolk", "Dora Penn", "Una Reed"]
    assert [point.edits for point in found.checkpoints] == [0, 1, 2]
    assert found.checkpoints[0].rolled_back is None
    assert len(found.flashes) == 2
    assert found.flash == max(found.flashes)
    assert found.build_up == found.checkpoints[-1].nll - found.checkpoints[0].nll
    layers = model.memories["wilke.layers"]["chosen"].tolist()
    assert layers[0] == layers[1] and layers[2] == layers[3]


def test_a_gated_method_does_nothing_to_untouched_facts() -> None:
    found = edit_and_roll_back(with_options("grace", epsilon=0.0, steps=3), EDITS[:2], UNTOUCHED, [2])
    assert found.flash == found.build_up == 0.0
    assert [point.edits for point in found.checkpoints] == [0, 2]


def test_an_edit_without_an_old_answer_is_refused_before_anything_is_done() -> None:
    model = with_options("grace")
    with pytest.raises(BadEdit, match="no target_old"):
        edit_and_roll_back(model, [EDITS[0], Edit("Ivo Stane plays the", "violin")], UNTOUCHED)
    assert not model.history


def test_the_script_looks_at_every_layer_and_at_wilke(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("toxicity")
    monkeypatch.setattr(module, "load", lambda name: (tiny("llama"), tiny_tokenizer()))
    monkeypatch.setattr(module, "edits", lambda split: EDITS)
    monkeypatch.setattr(module, "irrelevant", lambda: IRRELEVANT)
    monkeypatch.setattr("sys.argv", ["toxicity.py", str(tmp_path), "--edits", "1", "--untouched", "2"])
    module.main()
    found = json.loads((tmp_path / "toxicity.json").read_text(encoding="utf-8"))["found"]
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
    assert all(set(each) > {"flash", "build_up", "success"} for each in (*found["layers"], found["wilke"]))
    assert any(layer["flash"] != 0 for layer in found["layers"]), "an edit of ROME moves facts that nobody touched"
