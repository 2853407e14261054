"""One closed-form edit by the running factorisation, against the dense solve that the papers make for every edit.

    python benchmarks/closed_form.py > benchmarks/results/speed/closed_form.json

Random keys at d_ff = 4096, d_model = 1024, float64, one thread, seconds of the processor, the two in turn. `rows`: the
edits so far are kept as rows; `folded`: there are so many that they are kept as matrices.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from errata.associative import Associative, insert, ridge
from errata.bench.provenance import surroundings
from errata.sites import Site
from errata.statistics import Moment

STATES = {"rows": 0.12, "folded": 1.05}
"""Edits before the one that is timed, as a multiple of those from which on they are folded."""


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor that a call took, and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


class Memit:
    """(lambda K0 + K_p K_p^T + K K^T)^-1, with K0 of full rank."""

    def __init__(self, ff: int) -> None:
        noise = torch.randn(ff, ff, dtype=torch.float64)
        moment = Moment(noise @ noise.mT / ff + torch.eye(ff, dtype=torch.float64), ff, float(ff))
        self.S = ridge(moment, 1.0)
        self._M = moment.matrix + 1e-6 * moment.matrix.diagonal().mean() * torch.eye(ff, dtype=torch.float64)

    def dense(self, KpKp: Tensor, K: Tensor, R: Tensor) -> Tensor:
        """Delta, (model, ff), as MEMIT writes it."""
        return torch.linalg.solve(self._M + KpKp + K.mT @ K, K.mT @ R).mT


class AlphaEdit:
    """R K^T P (K_p K_p^T P + K K^T P + L2 I)^-1, with a projector of three quarters of the rank."""

    L2 = 1.0

    def __init__(self, ff: int) -> None:
        U = torch.linalg.qr(torch.randn(ff, 3 * ff // 4, dtype=torch.float64)).Q
        self.P = U @ U.mT
        self.S = self.P / self.L2
        self._eye = torch.eye(ff, dtype=torch.float64)

    def dense(self, KpKp: Tensor, K: Tensor, R: Tensor) -> Tensor:
        """Delta, (model, ff), as AlphaEdit writes it."""
        return torch.linalg.solve(self.P @ (KpKp + K.mT @ K) + self.L2 * self._eye, self.P @ (K.mT @ R)).mT


def measured(kind: type[Memit | AlphaEdit], ff: int, model: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of one formula."""
    torch.manual_seed(0)
    formula, site, rows = kind(ff), Site("blocks.0.out", 0, ff, model), []
    for state, size in STATES.items():
        count = int(size * ff * model / (ff + model))
        memory = Associative(site)
        memory.first = formula.S
        earlier = torch.randn(count, ff, dtype=torch.float64)
        memory.take(insert(memory.product(earlier), earlier, torch.zeros(count, model, dtype=torch.float64)))
        KpKp, ours, papers, apart = earlier.mT @ earlier, [], [], []
        for _ in range(repeats):
            K, R = torch.randn(1, ff, dtype=torch.float64), torch.randn(1, model, dtype=torch.float64)
            held = memory.tensors()

            def edit(memory: Associative = memory, K: Tensor = K, R: Tensor = R) -> Any:
                found = insert(memory.product(K), K, R)
                memory.take(found)
                return found

            spent, found = timed(edit)
            ours.append(spent)
            memory.put(held)
            spent, dense = timed(lambda KpKp=KpKp, K=K, R=R: formula.dense(KpKp, K, R))
            papers.append(spent)
            apart.append(float((found.values.mT @ found.keys - dense).norm() / dense.norm()))
        rows.append({
            "formula": kind.__name__.lower(), "d_ff": ff, "d_model": model, "edits_before": count, "kept_as": state,
            "kept_as_matrices": bool(len(memory.taken)),
            "ours_s": round(statistics.median(ours), 5), "dense_s": round(statistics.median(papers), 4),
            "dense_over_ours": round(statistics.median(p / o for p, o in zip(papers, ours, strict=True)), 1),
            "largest_relative_difference": max(apart),
        })  # fmt: skip
        sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ff", type=int, default=4096)
    parser.add_argument("--model", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for kind in (Memit, AlphaEdit) for row in measured(kind, told.ff, told.model, told.repeats)]
    found = {"provenance": surroundings(torch.nn.Linear(1, 1)), "edits": rows}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
