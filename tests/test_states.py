"""What a site reads on many prompts, kept flat."""

import torch

from errata.edit import Probe
from errata.memory import Delta
from errata.model import EditedModel
from errata.sites import site_at
from errata.states import gather
from tiny import EDITS, tiny_llama, tiny_tokenizer


def test_states_are_those_of_the_prompts_tokens() -> None:
    a, y = torch.randn(2, 3, 4), torch.ones(2, 3, 5)
    prompt = torch.tensor([[True, True, False], [True, False, False]])
    states = gather([(a, y, prompt), (a[:1], y[:1], prompt[:1])])
    assert states.prompts == 3
    assert states.row.tolist() == [0, 0, 1, 2, 2]
    assert torch.equal(states.states, torch.stack([a[0, 0], a[0, 1], a[1, 0], a[0, 0], a[0, 1]]))
    assert abs(states.output_norm - 5**0.5) < 1e-6
    assert states.mean(torch.tensor([1.0, 3, 5, 7, 9])).tolist() == [2, 5, 8]


def test_some_of_the_prompts() -> None:
    states = gather([(torch.arange(12.0).view(4, 3, 1), torch.ones(4, 3, 1), torch.ones(4, 3, dtype=torch.bool))])
    some = states.some(2, torch.Generator().manual_seed(0))
    assert some.prompts == 2
    assert len(some.states) == 6
    whole = states.mean(states.states[:, 0])
    assert set(some.mean(some.states[:, 0]).tolist()) <= set(whole.tolist())
    assert states.some(99, torch.Generator().manual_seed(0)).prompts == 4


def test_a_model_reads_its_irrelevant_prompts_once() -> None:
    probes = [Probe(edit.prompt) for edit in EDITS]
    model = EditedModel(tiny_llama(), tiny_tokenizer(), irrelevant=probes)
    memory = Delta(site_at(model.base, 1))
    model.install("shift", memory)
    states = model.irrelevant_states(memory)
    assert model.irrelevant_states(memory) is states
    seen: list[torch.Tensor] = []
    hook = model.base.get_submodule(memory.site.path).base.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    model(input_ids=torch.tensor([model.tokens.encode(EDITS[2].prompt)]))
    hook.remove()
    torch.testing.assert_close(states.states[states.row == 2], seen[0][0])
