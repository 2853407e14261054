"""What an edit costs on a model of seven billion parameters on a GPU, and what it costs to use the model then.

    python benchmarks/large.py > benchmarks/results/speed/large.json
    python benchmarks/large.py --device cpu --dtype float32 --width 128 --ff 344 --layers 4 --vocabulary 4096

The shape of LLaMA-2-7B, random weights in bfloat16: no time depends on what a model knows, but for how soon an edit is
learnt; so `published` cases make all the steps that the papers allow, and stop at no loss. The prompts are the atlas's
behind half a sentence, which makes them as long as ZsRE's. Covariances, which are worked out once for a model, are stood
for by random matrices of their size. `floor`: see floor.py, of all that an edit does, before and after its steps too.
`unrecorded_over_recorded` is how much longer an edit takes whose steps the host starts one by one (`errata.captured`).
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from typing import Any

import torch
from cases import add_cases, cases_of
from floor import Ceilings, Products, ceilings, clocked
from inference import Added, ratios
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from errata import EditedModel, load, methods
from errata.associative import Associative
from errata.atlas.edits import edits, irrelevant
from errata.bench.provenance import peak_memory, surroundings
from errata.edit import Edit

LONGER = "In the city, "
PREFIXES = (
    "It is said that the", "The first of them was", "In the old town of", "In the year of the", "He did not know what",
    "The capital of the country is in the city of", "The name of the city where he was born is",
    "In the year of the city it is said that", "The language of the people in the city is",
    "The mother of the king is in the city of",
)  # fmt: skip
"""Ten prefixes, as many as WISE and MEMOIR use, of five and of ten words."""
PAPERS = {"protect": 0.0, "faint": 1.0, "contrast": 0.0, "reworded": 0.0, "capacity": None}
"""MEMOIR without what is ours."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "wise, published": ("wise", {"preset": "published", "loss": 0.0}),
    "wise": ("wise", {}),
    "memoir, published": (
        "memoir",
        PAPERS | {"optimizer": "sgd", "lr": 1.0, "clip": 1.0, "end": False, "steps": 70, "tries": 1, "loss": 0.0},
    ),
    "memoir": ("memoir", {}),
    "grace": ("grace", {}),
    "ft_l": ("ft_l", {}),
    "rome": ("rome", {}),
    "alphaedit": ("alphaedit", {}),
}
USED = {"memoir": "memoir", "wise, merge": "wise", "wise, retrieve": "wise"}
RANK = 4
"""One in so many directions is taken from the random projector that stands for AlphaEdit's."""


def built(told: argparse.Namespace) -> LlamaForCausalLM:
    """An untrained Llama of this shape on this device."""
    config = LlamaConfig(
        hidden_size=told.width, intermediate_size=told.ff, num_hidden_layers=told.layers, vocab_size=told.vocabulary,
        num_attention_heads=min(32, told.width // 32), num_key_value_heads=min(32, told.width // 32),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(told.device):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, told.dtype))
        try:
            return LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(dtype)


def stream(count: int) -> list[Edit]:
    """Edits with longer prompts."""
    return [
        replace(edit, prompt=LONGER + edit.prompt, rephrases=(), locality=()) for edit in edits("validation")[:count]
    ]


def stand_in(features: int, device: torch.device) -> Tensor:
    """P = I - V V^T for random V: what AlphaEdit's projector, or the inverse of a covariance, costs to use."""
    drawn = torch.randn(features, features // RANK, device=device, dtype=torch.float64)
    V = torch.linalg.qr(drawn).Q
    return torch.eye(features, device=device, dtype=torch.float64) - V @ V.mT


def edited(base: Any, tokenizer: Any, name: str, options: dict[str, Any], count: int) -> EditedModel:
    """The model with a method and no edits."""
    probes = [replace(probe, prompt=LONGER + probe.prompt) for probe in irrelevant()[:120]]
    model = EditedModel(
        base,
        tokenizer,
        methods.make(name, **options),
        irrelevant=probes,
        prefixes=PREFIXES,
        expected=count,
        recorded=True,
    )
    for memory in model.memories.values():
        if isinstance(memory, Associative):
            memory.first = stand_in(memory.site.in_features, model.device)
    return model


def measured(base: Any, tokenizer: Any, case: str, told: argparse.Namespace, most: Ceilings) -> dict[str, Any]:
    """The row of one case."""
    name, options = CASES[case]
    some = stream(2 * told.edits + 2)
    model = edited(base, tokenizer, name, options, len(some))
    device, receipts = model.device, []
    first = clocked(lambda: model.edit(some[0]), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    taken: dict[bool, list[float]] = {True: [], False: []}
    for i, edit in enumerate(some[1:-1]):  # in turn, so that neither has the longer memory
        model.recorded = i % 2 == 0
        taken[model.recorded].append(clocked(lambda edit=edit: receipts.append(model.edit(edit)), device))
    peak = peak_memory(device)[0]
    products, model.recorded = Products(), False
    with products:
        counted = model.edit(some[-1])
    rows = model.rows([(context, some[-1].target) for context in model.contexts(some[-1].prompt)])
    floor, bare = products.floor(most), products.seconds(device)
    seconds, pairs = statistics.median(taken[True]), zip(taken[False], taken[True], strict=True)
    found = {
        "case": case, "method": name, "options": options, "layer": model.editor.layer, "edits": told.edits,
        "sites": [memory.site.path for memory in model.memories.values()],
        "steps": [receipt.steps for receipt in receipts[::2]],
        "rows": len(rows.ids), "longest_row": rows.ids.shape[1], "tokens": int(rows.attention.sum()),
        "first_edit_s": round(first, 3), "seconds_per_edit": round(seconds, 4),
        "each_s": [round(s, 4) for s in taken[True]],
        "unrecorded_over_recorded": round(statistics.median(p / t for p, t in pairs), 2),
        "counted_steps": counted.steps, "tflop": round(products.operations() / 1e12, 3),
        "floor_s": round(floor, 4), "products_s": round(bare, 4),
        "stored_mb": round(model.nbytes() / 1e6, 1),
        "peak_beside_mb": None if device.type != "cuda" or peak is None else round(peak - before / 1e6, 1),
    }  # fmt: skip
    if counted.steps == statistics.median(found["steps"]):
        found |= {"measured_over_floor": round(seconds / floor, 2), "measured_over_products": round(seconds / bare, 2)}
    model.detach()
    return found


def used(base: Any, tokenizer: Any, case: str, told: argparse.Namespace) -> list[dict[str, Any]]:
    """What using an edited model costs, as in inference.py."""
    name = USED[case]
    options: dict[str, Any] = {"steps": 5} | ({"tries": 1} if name == "memoir" else {})
    options |= {"mode": "retrieve", "shard_edits": 1} if case.endswith("retrieve") else {}
    some = stream(6)  # of WISE-Retrieve three rounds of two shards
    model = edited(base, tokenizer, name, options, len(some))
    model.edit_many(some)
    added = Added(model)
    kinds = {
        "edited": [edit.prompt for edit in some] * 3,
        "other": [probe.prompt for probe in model.sampling.irrelevant],
    }
    rows = [
        {"case": case, "edits": len(some), "prompts": kind, "batch": batch}
        | ratios(model, added, prompts[:batch], told.repeats)
        for kind, prompts in kinds.items()
        for batch in (1, 16)
    ]
    added.stop()
    model.detach()
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--ff", type=int, default=11008)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=32000, help="at least the 4,096 words of the atlas")
    parser.add_argument("--edits", type=int, default=3, help="timed edits of each case, after one that sets up")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of calls, with the edits and without")
    add_cases(parser, CASES)
    parser.add_argument("--used", default=";".join(USED), help="cases of use; an empty text for none")
    told = parser.parse_args()
    cases, use = cases_of(parser, told, CASES), [case for case in told.used.split(";") if case]
    _, tokenizer = load("atlas")
    if unknown := sorted(set(use) - set(USED)):
        parser.error(f"--used {';'.join(unknown)}: there are {'; '.join(USED)}")
    if told.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu, with a small --width, --ff and --layers, runs all the same")
    if told.width < 64 or told.width % 32:
        parser.error(f"--width {told.width}: a multiple of 32, from 64 on")
    if told.vocabulary < len(tokenizer):
        parser.error(f"--vocabulary {told.vocabulary}: at least the atlas's {len(tokenizer)}")
    if min(told.ff, told.edits, told.repeats) < 1 or told.layers < 2:
        parser.error("--ff, --edits and --repeats: at least 1; --layers: at least 2")
    base: Any = built(told)
    most = ceilings(base.device, list(dict.fromkeys((base.dtype, torch.float32, torch.float64))))
    found: dict[str, Any] = {
        "shape": {name: getattr(told, name) for name in ("width", "ff", "layers", "vocabulary")},
        "parameters": sum(p.numel() for p in base.parameters()), "dtype": told.dtype,
        "gflop_per_second": {str(k).removeprefix("torch."): round(v / 1e9) for k, v in most.operations.items()},
        "gb_per_second": round(most.bytes / 1e9, 1),
        "provenance": surroundings(base), "edits": [], "use": [],
    }  # fmt: skip
    for case in cases:
        found["edits"].append(measured(base, tokenizer, case, told, most))
        sys.stderr.write(f"{json.dumps(found['edits'][-1])}\n")
    for case in use:
        found["use"] += used(base, tokenizer, case, told)
        sys.stderr.write(f"{json.dumps(found['use'][-4:])}\n")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
