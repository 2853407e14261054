"""Associative: a linear map as a memory of keys and values, and the one closed-form solve that edits it.

ROME, MEMIT and AlphaEdit (arXiv 2202.05262, 2210.07229, 2410.02355) ask for the shift Delta of a map W that turns the
outputs at the keys K (ff, n) by R (model, n) and leaves other inputs alone. With S, a symmetric (ff, ff) matrix, they are
one formula:

    Delta = R K^T S_n,      S_n = (S^-1 + K K^T)^-1 = S - S K (I + K^T S K)^-1 K^T S                (Woodbury)

    S = (lambda K0)^-1                              MEMIT: ridge least squares
    S = (lambda K0 + K_p K_p^T)^-1                  MEMIT-seq: the keys K_p of earlier edits inside the inverse
    S = U (U^T K_p K_p^T U + L2 I)^-1 U^T           AlphaEdit: in the range of the projector P = U U^T
    S = c K0^-1, c to infinity                      ROME: the new values hold exactly

With L L^T = I + K^T S K, the rows g = L^-1 K^T S are all there is to know: Delta = (L^-1 R^T)^T g, and S_n = S - g^T g. So
an edit keeps n rows `keys` = g and n rows `values` = L^-1 R^T, which are its low-rank shift and the running factorisation
at once; it costs one product with the first S (ff^2 n) and with the rows that are kept, and no solve of size ff.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from errata.errors import EditFailed
from errata.memory import Memory, add
from errata.sites import Site
from errata.statistics import Moment

FLOOR = 0.05
"""Least u.k of a rank-one edit over its value for the averaged key. Below it the edit would be blown up twentyfold."""
JITTER = 1e-6
"""Added to the diagonal of K0, in units of its mean, before it is inverted."""


class Insertion(NamedTuple):
    """The rows that insert n edits: Delta = values^T keys."""

    keys: Tensor
    """(n, ff)"""
    values: Tensor
    """(n, model)"""
    counts: Tensor
    """(n,) 1 where the row is part of the running factorisation, S_n = S - keys^T diag(counts) keys; else 0."""


def insert(SK: Tensor, K: Tensor, R: Tensor, known: Tensor | None = None) -> Insertion:
    """The insertion of n edits: the rows S K^T (n, ff), keys K (n, ff), residuals R (n, model), in the dtype of `SK`.

    `known` (n,) bool marks keys that S has taken in before: those of edits whose prompts are edited again. They are not
    taken in twice, so that the result is the one of the edits in force. Raises `EditFailed` for a singular solve.
    """
    K, R = K.to(SK), R.to(SK)
    known = torch.zeros(len(K), dtype=torch.bool, device=K.device) if known is None else known
    new = ~known
    A = SK[new] @ K[new].mT
    L, failed = torch.linalg.cholesky_ex(torch.eye(len(A), dtype=A.dtype, device=A.device) + (A + A.mT) / 2)
    if int(failed) or not bool(L.isfinite().all()):
        raise EditFailed(
            "the closed-form solve is singular: the keys are not finite, or their covariance is not positive"
        )
    g = torch.linalg.solve_triangular(L, SK[new], upper=False)
    again = SK[known] - (K[known] @ g.mT) @ g  # K^T S_n of the known keys
    return Insertion(
        torch.cat([g, again]),
        torch.cat([torch.linalg.solve_triangular(L, R[new], upper=False), R[known]]),
        torch.cat([torch.ones(len(g)), torch.zeros(len(again))]).to(K),
    )


def rank_one(S: Tensor | None, k_star: Tensor, k: Tensor, r: Tensor) -> Insertion:
    """ROME, eq. 2: Delta = r u^T / (u.k) with u = S k*, so that Delta k = r, exactly; (ff,), (ff,), (model,).

    `k` is k* itself [R-ROME], or the key of the bare prompt [ROME as released]. None for S is I. Raises `EditFailed`
    where u.k is so small, or of such a sign, that the edit would ruin the map.
    """
    k_star, k = k_star.double(), k.double()
    u = k_star if S is None else S @ k_star
    least = float(FLOOR * (u @ k_star))
    if not float(u @ k) > max(least, 0.0):
        raise EditFailed(
            f"the rank-one edit is refused: u.k is {float(u @ k):.2g}, and {float(u @ k_star):.2g} for the averaged key;"
            " the prompt's key has almost nothing in common with the subject's in other contexts (consistent=true helps)"
        )
    return Insertion((u / (u @ k))[None], r[None], torch.zeros(1, device=r.device))


class Associative(Memory):
    """The shift of one map, always on: y + a shift^T + (a keys^T) values, and what its solve has taken in.

    Edits are kept as rows until a dense matrix is the smaller; then they are folded into `shift` (model, ff) and `taken`
    (ff, ff), and the cost of an edit and of an answer no longer grows.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor
    shift: Tensor
    taken: Tensor

    def __init__(self, site: Site, device: torch.device | None = None) -> None:
        super().__init__(site)
        self.first: Tensor | None = None  # S before any edit; the method finds it. It belongs to the base: never saved
        self._settled: tuple[Tensor | None, Tensor, Tensor] | None = None  # first, taken, and their difference
        self.register_buffer("keys", torch.zeros(0, site.in_features, device=device))
        self.register_buffer("values", torch.zeros(0, site.out_features, device=device))
        self.register_buffer("counts", torch.zeros(0, device=device))
        self.register_buffer("shift", torch.zeros(0, site.in_features, device=device))
        self.register_buffer("taken", torch.zeros(0, site.in_features, device=device))

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        """y + a shift^T + (a keys^T) values."""
        k = a.to(self.keys.dtype)
        change = F.linear(k, self.keys) @ self.values
        return add(y, change + F.linear(k, self.shift) if len(self.shift) else change)

    def product(self, K: Tensor) -> Tensor:
        """K^T S for keys K (n, ff), as rows (n, ff) float64; S as it is after all that was taken in so far."""
        K = K.double()
        S = self.settled()
        SK = K if S is None else K @ S
        g = self.keys[self.counts > 0].double()
        return SK - (K @ g.mT) @ g

    def settled(self) -> Tensor | None:
        """S after the edits that were folded, (ff, ff) float64, worked out once for all products; None is I."""
        if not len(self.taken):
            return self.first
        if self._settled is None or self._settled[0] is not self.first or self._settled[1] is not self.taken:
            eye = torch.eye(self.site.in_features, dtype=torch.float64, device=self.taken.device)
            S = (eye if self.first is None else self.first) - self.taken.double()
            self._settled = self.first, self.taken, S
        return self._settled[2]

    def clear(self) -> None:
        """Forget all edits."""
        self.put({name: tensor[:0] for name, tensor in self.tensors().items()})

    def take(self, rows: Insertion) -> None:
        """Put these edits in, folding rows into dense matrices where those are smaller."""
        keys, values, counts = (
            torch.cat([old, new.to(old)]) for old, new in zip((self.keys, self.values, self.counts), rows, strict=True)
        )
        ff, model = self.site.in_features, self.site.out_features
        if len(keys) * (ff + model) < ff * model:
            self.put({"keys": keys, "values": values, "counts": counts})
            return
        shift = values.mT @ keys
        folded = {"shift": self.shift + shift if len(self.shift) else shift}
        if bool(counts.any()) or len(self.taken):
            taken = (keys * counts[:, None]).mT @ keys
            folded["taken"] = self.taken + taken if len(self.taken) else taken
        self.put(folded | {"keys": keys[:0], "values": values[:0], "counts": counts[:0]})


# -- S before any edit -------------------------------------------------------------------------------------------------


def ridge(moment: Moment, weight: float) -> Tensor:
    """S = (weight K0)^-1, (ff, ff) float64; K0 with `JITTER` on its diagonal. Raises `EditFailed` where it is singular."""
    K0 = moment.matrix
    raised = K0 + JITTER * K0.diagonal().mean() * torch.eye(len(K0), dtype=K0.dtype, device=K0.device)
    L, failed = torch.linalg.cholesky_ex(weight * raised)
    if int(failed):
        raise EditFailed("the covariance of the statistics is singular; give more texts, or set tokens higher")
    return torch.cholesky_inverse(L)


def null_space(moment: Moment, threshold: float) -> Tensor:
    """P = U U^T, (ff, ff) float64, onto the eigenvectors U of K0 whose eigenvalues are below `threshold` (AlphaEdit)."""
    values, vectors = torch.linalg.eigh(moment.matrix)
    U = vectors[:, values < threshold]
    return U @ U.mT
