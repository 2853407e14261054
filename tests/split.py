"""One of the processes that a model is split over: makes an edit with each method, and writes down what came of it.

    torchrun --nproc-per-node 2 tests/split.py MODEL METHOD,... OUTPUT

Alone, without torchrun, it does the same on the whole model.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from errata import loading
from errata.errors import NoSite
from errata.fingerprint import fingerprint
from errata.model import EditedModel
from tiny import EDITS


def main(name, methods, output):
    rank = os.environ.get("RANK")
    torch.set_num_threads(1)
    base, tokenizer = loading.load(name, **({"device": "cpu"} if rank is None else {"tp_plan": "auto"}))
    weight = base.get_submodule("model.layers.1.mlp.down_proj").weight
    told = {"held": list(getattr(weight, "to_local", lambda: weight)().shape), "fingerprint": fingerprint(base)}
    for method in methods.split(","):
        try:
            told[method], tensors = edited(EditedModel(base, tokenizer, method, prefixes=()))
        except NoSite as error:
            told[method] = {"refused": str(error)}
            continue
        save_file(tensors, output / f"{method}-{rank}.safetensors")
    (output / f"{rank}.json").write_text(json.dumps(told))
    if rank is not None:
        torch.distributed.destroy_process_group()


def edited(model):
    prompts = [edit.prompt for edit in EDITS]
    before = model.answer(prompts, 4)
    receipt = model.edit(EDITS[0])
    told = {"before": before, "after": model.answer(prompts, 4), "probability": receipt.probability_after}
    tensors = {f"{name}/{leaf}": t.clone() for name, m in model.memories.items() for leaf, t in m.tensors().items()}
    model.detach()
    return told, tensors


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
