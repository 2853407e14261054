"""Knowledge in superposition: every numeric check of methods.md 12.1, and the identities on models that are edited."""

import math

import pytest
import torch
from torch import Tensor

from architectures import tiny
from errata.analysis.interference import Stream, compared, predicted, stream
from errata.analysis.keys import place, read
from errata.analysis.kurtosis import described, interval, kurtosis, off_diagonal
from errata.analysis.subjects import subjects
from errata.analysis.superposition import Superposition, angles, gram, p_matrix
from errata.edit import Edit
from errata.errors import BadEdit, BadOption
from errata.model import EditedModel
from test_every_method import IRRELEVANT, digest
from tiny import EDITS, tiny_tokenizer

NAMES = ("Arvadia", "Belmar", "Ada Quill", "Ivo Stane", "Mira Cole", "Osk", "Ned", "Una Reed", "Tolk", "Dora Penn")
FACTS = tuple(Edit(f"The capital of {name} is", "Melpo", subject=name) for name in NAMES)


def model(kind: str = "llama") -> EditedModel:
    return EditedModel(tiny(kind), tiny_tokenizer(), irrelevant=IRRELEVANT, prefixes=("It is said that", "Yes,"))


def keys(m: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(m, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(d: int, seed: int = 1) -> Tensor:
    some = keys(4 * d, d, seed) * torch.linspace(0.2, 3, d, dtype=torch.float64)
    return some.mT @ some / len(some)


# -- p -----------------------------------------------------------------------------------------------------------------


def test_p_of_a_key_with_itself_is_one_and_p_is_not_symmetric() -> None:
    C = covariance(24)
    P = p_matrix(keys(10, 24) * torch.arange(1, 11)[:, None], torch.linalg.inv(C))
    torch.testing.assert_close(P.diagonal(), torch.ones(10, dtype=torch.float64))
    assert float((P - P.mT).abs().max()) > 0.1
    i, j, K = 2, 7, keys(10, 24) * torch.arange(1, 11)[:, None]
    by_hand = (K[i] @ torch.linalg.solve(C, K[j])) / (K[i] @ torch.linalg.solve(C, K[i]))
    assert float(P[i, j]) == pytest.approx(float(by_hand))


def test_p_does_not_depend_on_the_scale_of_the_covariance() -> None:
    K, S = keys(6, 16), torch.linalg.inv(covariance(16))
    torch.testing.assert_close(p_matrix(K, S), p_matrix(K, 1e4 * S))


def test_keys_that_are_orthogonal_once_whitened_do_not_interfere() -> None:
    C = covariance(16)
    values, vectors = torch.linalg.eigh(C)
    root = vectors @ values.sqrt().diag() @ vectors.mT
    Q = torch.linalg.qr(keys(16, 16)).Q[:9]
    K, S = Q @ root, torch.linalg.inv(C)
    torch.testing.assert_close(p_matrix(K, S), torch.eye(9, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(off_diagonal(angles(gram(K, S))), torch.full((72,), 90.0, dtype=torch.float64))
    assert float(off_diagonal(p_matrix(K)).abs().max()) > 0.1  # raw keys do


def test_gaussian_keys_interfere_by_one_over_root_d_with_normal_tails() -> None:
    d = 1024
    values = off_diagonal(p_matrix(keys(100, d)))
    assert float(values.std()) == pytest.approx(1 / math.sqrt(d), rel=0.05)
    assert kurtosis(values) == pytest.approx(3, abs=0.25)


def test_angles_are_degrees() -> None:
    K = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[0, 0, 90, 45], [0, 0, 90, 45], [90, 90, 0, 45], [45, 45, 45, 0]], dtype=torch.float64)
    torch.testing.assert_close(angles(gram(K)), expected, atol=1e-5, rtol=0)


# -- kurtosis ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, 1, -1, 1], 1.0),
        ([0, 0, 0, 0, 1], 3.25),  # Bernoulli, q = .2: (1 - 3 q (1 - q)) / (q (1 - q))
        ([-3, -1, 1, 3], 1.64),
        ([2, 2, 2], 0.0),
    ],
)
def test_kurtosis_of_known_numbers(values: list[float], expected: float) -> None:
    assert kurtosis(torch.tensor(values)) == pytest.approx(expected)


def test_kurtosis_of_a_normal_sample_is_near_three_and_of_a_laplacian_near_six() -> None:
    assert kurtosis(keys(1000, 400)) == pytest.approx(3, abs=0.05)
    uniform = torch.rand(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.5
    assert kurtosis(-uniform.sign() * (1 - 2 * uniform.abs()).log()) == pytest.approx(6, abs=0.5)


def test_the_interval_is_that_of_resampled_facts() -> None:
    """The weighted sums are those of the matrices that are really drawn, without pairs of a fact with itself."""
    P = keys(12, 12)
    low, high = interval(P, 300, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    drawn = torch.cat([torch.randint(12, (100, 12), generator=generator) for _ in range(3)])
    each = [kurtosis(P[row][:, row][row[:, None] != row]) for row in drawn]
    slow = torch.tensor(each, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert (low, high) == pytest.approx(tuple(slow.tolist()))


def test_what_is_described_leaves_the_diagonal_out() -> None:
    P = keys(20, 20)
    one = described(P, 50, torch.Generator().manual_seed(0))
    other = described(P.clone().fill_diagonal_(1e6), 50, torch.Generator().manual_seed(0))
    assert one == other
    assert one["excess"] == one["pearson"] - 3
    assert one["interval"][0] < one["pearson"] < one["interval"][1]


# -- interference ------------------------------------------------------------------------------------------------------


def test_the_identities_hold_in_a_linear_memory() -> None:
    """Sequential ROME by hand, in float64: what is left on every key, to 1e-12."""
    m, n, ff, width = 9, 5, 24, 7
    K, S, W = keys(m, ff), torch.linalg.inv(covariance(ff)), keys(width, ff, 2)
    V = keys(n, width, 3)
    outputs = [K @ W.mT]
    for i in range(n):
        u = S @ K[i]
        W = W + torch.outer(V[i] - W @ K[i], u) / (u @ K[i])
        outputs.append(K @ W.mT)
    made = Stream(torch.stack(outputs), (), 0.0)
    torch.testing.assert_close(predicted(p_matrix(K, S), made.deltas), made.measured, atol=1e-12, rtol=0)
    assert float(made.measured[n - 1].norm()) < 1e-12  # nothing came after the last edit
    torch.testing.assert_close(outputs[-1][2] - V[2], made.measured[2], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("kind", "contexts"), [("llama", 0), ("llama", 2), ("gpt2", 0), ("gptj", 2), ("mixtral", 0)])
def test_predicted_interference_is_the_drift_of_a_model_that_is_edited(kind: str, contexts: int) -> None:
    plain = model(kind)
    before = digest(plain.base.named_parameters())
    site = plain.sites[1]
    found = Superposition(plain, FACTS, [site], contexts=contexts, tokens=1.5)
    made = stream(plain, FACTS, site, found.S[site.path], 3, contexts)
    told = compared(made, found.p(site))
    assert told["relative_error"] < 2e-5
    assert told["keys_moved"] < 1e-6
    assert told["drift_of_others"] > 0
    assert compared(made, p_matrix(found.K[site.path]))["relative_error"] > 0.01  # another covariance predicts another
    assert digest(plain.base.named_parameters()) == before
    assert plain.memories == {}


def test_a_stream_of_more_edits_than_facts_is_refused() -> None:
    plain = model()
    with pytest.raises(BadOption, match="a stream of 3 edits: there are 2 facts"):
        stream(plain, FACTS[:2], plain.sites[0], torch.eye(64, dtype=torch.float64), 3)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_what_the_site_reads_at_the_last_token_of_the_subject() -> None:
    plain = model()
    site = plain.sites[2]
    seen: list[tuple[Tensor, Tensor]] = []
    hook = plain.base.get_submodule(site.path).register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    ids = torch.tensor([plain.tokens.encode("The capital of Ada Quill")])
    plain.base(ids)
    hook.remove()
    got = read(plain, [site], place(plain, FACTS))[site.path]
    torch.testing.assert_close(got.keys[2], seen[0][0][0, -1].double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.outputs[2], seen[0][1][0, -1].double(), atol=1e-5, rtol=1e-5)


def test_over_contexts_a_key_is_the_mean() -> None:
    plain = model()
    site = plain.sites[1]
    got = read(plain, [site], place(plain, FACTS[:1], contexts=2))[site.path].keys
    apart = [Edit(f"{prefix}{FACTS[0].prompt}", "x", subject="Arvadia") for prefix in ("", "It is said that ", "Yes, ")]
    torch.testing.assert_close(got[0], read(plain, [site], place(plain, apart))[site.path].keys.mean(0))


# -- facts -------------------------------------------------------------------------------------------------------------


def test_one_fact_a_subject_and_no_more_than_asked_for() -> None:
    again = Edit("Arvadia lies in", "Sondo", subject="Arvadia")
    chosen = subjects([FACTS[0], again, *FACTS[1:]], limit=3, least=2)
    assert chosen.facts == FACTS[:3]


def test_facts_without_a_subject_are_refused_or_left_out() -> None:
    missing = Edit("Water is", "wet", meta={"subject_missing": "Fire"})
    with pytest.raises(BadEdit, match="fact 2 cannot be placed: the subject 'Fire' does not occur in the prompt"):
        subjects([FACTS[0], missing], limit=9, least=1)
    with pytest.raises(BadEdit, match="no subject is named for the prompt 'Snow is'"):
        subjects([Edit("Snow is", "red")], limit=9, least=1)
    assert subjects([missing, FACTS[0]], limit=9, least=1, skip=True) == ((FACTS[0],), 1)


def test_too_few_facts_are_refused() -> None:
    with pytest.raises(BadOption, match="4 facts about different subjects are too few: at least 8 are needed"):
        subjects(EDITS, limit=128, least=8)


# -- a layer -----------------------------------------------------------------------------------------------------------


def test_what_a_layer_shows() -> None:
    plain = model()
    found = Superposition(plain, FACTS, plain.sites, tokens=1.5)
    m = len(FACTS)
    for site in plain.sites:
        told = found.layer(site, 20, torch.Generator().manual_seed(0))
        assert told["p"]["pearson"] == kurtosis(off_diagonal(found.p(site))) == told["kurtosis_by_facts"][str(m)]
        assert sum(told["histogram"]["counts"]) == m * (m - 1)
        assert told["closest"][0]["p"] == pytest.approx(float(off_diagonal(found.p(site)).abs().max()), abs=2)
        assert abs(told["closest"][0]["p"]) == told["p"]["largest"]
        assert 0 <= told["angle_whitened"]["share_near_right"] <= 1


def test_too_little_text_for_the_covariance_is_refused() -> None:
    with pytest.raises(BadOption, match="too few to invert the covariance of 64 features"):
        Superposition(model(), FACTS, model().sites, texts=["Snow is white"])
