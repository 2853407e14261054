"""Kills a process that edits a store, really and with SIGKILL, and looks at what it left.

    python tests/crashes.py between DIR             tiny model; once before and after every write
    python tests/crashes.py random DIR --kills 40   ... at random instants
    python tests/crashes.py random DIR --atlas --edits 200 --kills 200

After every kill the store is opened: every edit that was acknowledged must be there, none half, and its tensors must be
those of a model that made the same edits without a store and without interruption. The next process goes on from there.
Prints one JSON object. The model is loaded once; each writer and each reader is a fork of the process that has it.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from errata import checkpoint, disk, methods
from errata.edit import Edit
from errata.gate import Gate
from errata.ledger import Ledger, exists
from errata.model import EditedModel
from errata.store import Store

EVERY = 2
"""Edits between two checkpoints."""


class Testbed:
    """A base model, a stream of edits, and the state that each of its beginnings must lead to."""

    def __init__(self, atlas: bool, count: int) -> None:
        self.options: dict[str, Any] = {"steps": 2}
        if atlas:
            from errata import loading
            from errata.atlas.edits import edits

            self.base, self.tokenizer = loading.load("atlas")
            self.edits = list(edits("validation"))[:count]
        else:
            from tiny import tiny_llama, tiny_tokenizer

            self.base, self.tokenizer = tiny_llama(), tiny_tokenizer()
            self.edits = [Edit(f"The number {i} is", f"word {i}") for i in range(count)]
        model = self.model()
        self.states = [digest(model)]
        for edit in self.edits:
            model.edit(edit)
            self.states.append(digest(model))
        model.detach()

    def model(self) -> EditedModel:
        """The model without edits."""
        return EditedModel(
            self.base, self.tokenizer, methods.make("grace", **self.options), prefixes=(), base_name="base"
        )

    def store(self, directory: Path) -> Store:
        """The store of a directory, or a new one."""
        gate = Gate(min_reliability=0, earlier=0, watched=0)  # what it answers is not what is tested here
        if (directory / checkpoint.MANIFEST).exists() or exists(directory):
            return Store.open(directory, gate=gate, base=self.base, tokenizer=self.tokenizer)
        return Store(directory, self.model(), gate=gate)

    def write(self, directory: Path, acknowledged: int) -> None:
        """Go on with the stream; each edit that was acknowledged is a byte in a pipe."""
        with self.store(directory) as store:
            for i, edit in enumerate(self.edits[len(store.model.history) :], start=1):
                store.edit(edit)
                os.write(acknowledged, b".")
                if i % EVERY == 0:
                    store.checkpoint()
            store.checkpoint()
            store.model.detach()

    def look(self, directory: Path) -> int:
        """How many edits a store holds. Raises where they are not the beginning of the stream, bit for bit."""
        if not exists(directory):
            return 0
        model = EditedModel.from_pretrained(directory, self.base, tokenizer=self.tokenizer)
        found = len(model.history)
        assert model.history == self.edits[:found], "the edits are not the beginning of the stream"
        assert digest(model) == self.states[found], f"the state after {found} edits is another one"
        assert model.notes == (), model.notes
        model.detach()
        return found


def digest(model: EditedModel) -> str:
    """A hash of all that the edits have written."""
    return checkpoint.sha_of(model)


class Writes:
    """Counts the places before and after every write of this process, and kills it at one of them."""

    def __init__(self, at: int) -> None:
        self.count, self.at = 0, at
        writing = {Ledger: ["insert"], disk: ["write"], Path: ["replace", "hardlink_to", "unlink"]}
        for owner, name in ((owner, name) for owner, names in writing.items() for name in names):
            setattr(owner, name, self.around(getattr(owner, name)))

    def place(self) -> None:
        """One of those places."""
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, real: Any) -> Any:
        """A function between two places."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.place()
            found = real(*args, **kwargs)
            self.place()
            return found

        return call


def forked(work: Any, kill_after: float | None = None) -> tuple[int, bytes, str]:
    """Run `work(pipe)` in a child: its wait status, what it wrote to the pipe, and what it raised."""
    told, tell = os.pipe()
    failed, fail = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(tell)
        except BaseException as error:  # noqa: BLE001  # told to the parent
            os.write(fail, f"{type(error).__name__}: {error}".encode()[:4000])
            os._exit(1)
        os._exit(0)
    os.close(tell)
    os.close(fail)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(told, "rb") as said, os.fdopen(failed, "rb") as why:
        return status, said.read(), why.read().decode()


def look(bed: Testbed, directory: Path, least: int) -> int:
    """What a fresh process finds, which is at least what was acknowledged."""
    status, said, why = forked(lambda pipe: os.write(pipe, str(bed.look(directory)).encode()))
    assert status == 0, why
    assert least <= int(said) <= least + 1, f"{least} edits were acknowledged, {int(said)} are there"
    return int(said)


def go_on(bed: Testbed, directory: Path, least: int) -> None:
    """A fresh process finds what was acknowledged, and takes the stream to its end."""

    def work(pipe: int) -> None:
        found = bed.look(directory)
        assert least <= found <= least + 1, f"{least} edits were acknowledged, {found} are there"
        bed.write(directory, pipe)
        assert bed.look(directory) == len(bed.edits), "the stream did not come to its end"

    status, _, why = forked(work)
    assert status == 0, why


def between(bed: Testbed, directory: Path) -> dict[str, Any]:
    """One writer for every place before or after a write; each begins anew, and another goes on after it."""
    places = 0
    while True:
        shutil.rmtree(directory, ignore_errors=True)
        at = places + 1
        status, said, why = forked(lambda pipe, at=at: Writes(at) and bed.write(directory, pipe))
        assert os.WIFSIGNALED(status) or status == 0, why
        go_on(bed, directory, len(said))
        if os.WIFEXITED(status):
            return {"places": places, "edits": len(bed.edits)}
        places += 1


def at_random(bed: Testbed, directory: Path, kills: int, seed: int) -> dict[str, Any]:
    """Writers that are killed at random instants, until there were so many; the stream begins anew when it ends."""
    draw = random.Random(seed)
    shutil.rmtree(directory, ignore_errors=True)
    start = time.perf_counter()
    status, said, why = forked(lambda pipe: bed.write(directory, pipe))
    assert status == 0, why
    whole = time.perf_counter() - start
    shutil.rmtree(directory)
    found = rounds = killed = half = 0
    while killed < kills:
        after = draw.uniform(0, 3 * whole / len(bed.edits) + 0.05)
        status, said, why = forked(lambda pipe: bed.write(directory, pipe), kill_after=after)
        assert os.WIFSIGNALED(status) or status == 0, why
        killed += os.WIFSIGNALED(status)
        least = found + len(said)
        found = look(bed, directory, least)
        half += found > least
        if found == len(bed.edits):
            shutil.rmtree(directory)
            found, rounds = 0, rounds + 1
    go_on(bed, directory, found)
    return {"kills": killed, "edits": len(bed.edits), "streams": rounds + 1, "kept but not yet acknowledged": half}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["between", "random"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--atlas", action="store_true")
    parser.add_argument("--edits", type=int, default=3)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    torch.set_num_threads(1)
    bed = Testbed(told.atlas, told.edits)
    place = told.directory / "store"
    found = between(bed, place) if told.kind == "between" else at_random(bed, place, told.kills, told.seed)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
