"""Verdicts on published claims, and agreement with published orders: from made-up rows, worked out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from errata import methods
from errata.bench import published
from errata.bench.agreement import agreements, kendall
from errata.bench.analyses import Analysis, Look, read
from errata.bench.claims import (
    AS_PUBLISHED,
    BY_DEFAULT,
    Comparison,
    Side,
    Trend,
    all_settings,
    as_in_paper,
    claims,
)
from errata.bench.plan_file import PlanFile
from errata.bench.published import data_of
from errata.bench.report import Report, _how_to_read
from errata.bench.verdicts import (
    CANNOT_TELL,
    NOT_MEASURED,
    NOT_REPRODUCED,
    PARTLY,
    REPRODUCED,
    SMALLER,
    Found,
    Verdict,
    _variants,
    published_value,
    verdicts,
)
from errata.errors import UsageError
from test_bench_record import a_row

PLANS = Path(__file__).resolve().parent.parent / "plans"
FAILS_AS_PUBLISHED = {"anchors"}
"""Claims that the paper's own table does not bear out in full: of two subspaces of .5, the disjoint ones generalize better
(.73 to .72)."""


def row(
    method, edits, *, scorer="teacher_forced_token", data="zsre:x.json", seed=0, options=None, batch_size=1, **scores
):
    known = {"reliability": 0.5, "generalization": 0.5, "locality": 0.5, "average": 0.5} | scores
    return a_row(
        method, edits, data=data, seed=seed, options=options or {}, batch_size=batch_size, scores={scorer: known}
    )


def on(claim, rows, settings=BY_DEFAULT):
    """The verdicts on one claim for methods of these settings."""
    return [verdict for verdict in verdicts(rows) if (verdict.claim.id, verdict.settings) == (claim, settings)]


def as_published(claim):
    """The verdict that the published numbers give."""
    found = []
    for test in claim.tests:
        right = published_value(claim, test.right) if isinstance(test.right, Side) else test.right
        found.append(Found(test, published_value(claim, test.left), right, (None, None)))
    return Verdict(claim, "as published", "", tuple(found))


# -- the claims --------------------------------------------------------------------------------------------------------


def test_there_are_many_claims_with_names_of_their_own():
    assert len(claims()) >= 40
    assert len({claim.id for claim in claims()}) == len(claims())
    assert {claim.source for claim in claims()} == {"WISE", "MEMOIR", "LEMoE", "WilKE", "Knowledge in Superposition"}


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.id)
def test_a_claim_has_comparisons_and_says_what_makes_the_numbers(claim):
    assert claim.tests
    published.numbers(claim.tables)
    if claim.plan:
        assert (PLANS / f"{claim.plan}.toml").is_file()
    assert claim.plan or claim.analysis
    assert bool(claim.analysis) == bool(claim.command)


@pytest.mark.parametrize("claim", [claim for claim in claims() if claim.tables], ids=lambda claim: claim.id)
def test_the_published_numbers_bear_a_claim_out(claim):
    verdict = as_published(claim)
    assert verdict.status == (PARTLY if claim.id in FAILS_AS_PUBLISHED else REPRODUCED), verdict.why


@pytest.mark.parametrize(
    "claim", [claim for claim in claims() if claim.plan and claim.tests], ids=lambda claim: claim.id
)
def test_the_plan_of_a_claim_measures_all_of_its_comparisons(claim):
    plan = PlanFile.read(PLANS / f"{claim.plan}.toml")
    sides = [side for test in claim.tests for side in (test.left, test.right) if isinstance(side, Side)]
    for side in sides:
        assert side.edits in plan.edits, side
        made = [
            case.editor().options() if case.method != "none" else {}
            for case in plan.cases
            if case.method == side.method
        ]
        wanted = side.options or {}
        assert any(published.agree(side.method, options, wanted, _variants(side.method)) for options in made), side
    assert {spec.partition(":")[0] for spec in plan.data} <= set(claim.data)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_without_rows_there_is_no_verdict():
    found = verdicts([])
    assert len(found) == len(claims())
    assert {verdict.status for verdict in found} == {NOT_MEASURED}
    (memoir,) = on("memoir-best", [])
    assert memoir.why == "7 of 7 comparisons have no rows, see plans/memoir-main.toml"
    (kurtosis,) = on("kurtosis", [])
    assert kurtosis.why == "2 of 2 comparisons have no findings, see `errata analyse superposition MODEL`"


def findings(name, found, **settings):
    return Analysis.of({"analysis": name, "settings": {"model": "tiny", "facts": "atlas"} | settings, "found": found})


def superposition(*layers):
    return findings("superposition", {"layers": [{"p": {"mean": mean, "interval": ends}} for mean, ends in layers]})


@pytest.mark.parametrize(
    ("layers", "status"),
    [
        ([(0.01, [5, 6]), (-0.02, [4, 9])], REPRODUCED),
        ([(0.01, [5, 6]), (-0.2, [4, 9])], PARTLY),
        ([(-0.2, [2, 6]), (0.01, [4, 9])], NOT_REPRODUCED),
        ([], NOT_MEASURED),
    ],
)
def test_a_claim_that_is_not_about_scores_is_put_to_findings(layers, status):
    (verdict,) = [v for v in verdicts([], [superposition(*layers)]) if v.claim.id == "kurtosis"]
    assert verdict.status == status
    assert (verdict.model, verdict.data) == (("tiny", "atlas") if layers else ("", ""))


def test_findings_of_another_method_are_not_taken():
    groups = {name: {"passed": 1.0} for name in ("edits", "rephrasings")}
    groups |= {f"irrelevant: {kind}": {"passed": 0.0} for kind in ("far", "same_relation")}
    found = {"groups": groups, "auc": {"rephrasings": {"irrelevant": 1.0}}}
    told = verdicts([], [findings("routing", found | {"method": "memoir"})])
    assert {v.claim.id: v.status for v in told if v.claim.analysis == "routing" and v.settings == BY_DEFAULT} == {
        "routing": NOT_MEASURED, "overlap-histogram": REPRODUCED,
    }  # fmt: skip


def test_what_is_taken_of_several_numbers():
    found = {"layers": [{"x": -3}, {"x": 1}, {"y": 9}], "plain": 4}
    assert [Look(("layers", "*", "x"), over).value(found) for over in ("least", "most", "largest")] == [-3, 1, 3]
    assert Look(("plain",)).value(found) == 4
    assert Look(("layers", "*", "z")).value(found) is None
    assert str(Look(("layers", "*", "x"), "least")) == "least layers x"


def test_an_ablation_is_put_to_the_test_after_fewer_edits_where_there_are_no_more():
    early = [
        row("wise", 100, locality=1.0, options={"margin": True}),
        row("wise", 100, locality=0.5, options={"margin": False}),
    ]
    (verdict,) = on("margin-loss", early)
    assert [str(found.test) for found in verdict.found] == [
        "wise (margin=False) locality at T=100 < wise locality at T=100"
    ], "once, though the claim is about two lengths"
    assert verdict.status == f"{REPRODUCED} {SMALLER}"
    late = [row("wise", 1000, locality=0.5, options={"margin": margin}) for margin in (True, False)]
    (verdict,) = on("margin-loss", early + late)
    assert [found.holds for found in verdict.found] == [True, False]
    assert verdict.status == PARTLY


def test_how_much_a_matrix_holds_is_put_to_the_test_where_it_is_as_full():
    def at(edits, load):
        return replace(row("memoir", edits, average=0.9), edits_per_million_weights=load)

    (verdict,) = on("memoir-at-15000", [at(100, 170.0), at(1000, 1700.0), at(3000, 5100.0)])
    assert str(verdict.found[0].test) == "memoir average at T=3000 > 0.8", "the fullest"
    assert verdict.status == f"{REPRODUCED} {SMALLER}"
    (verdict,) = on("memoir-at-15000", [at(1000, 17.0)])
    assert verdict.status == NOT_MEASURED, "a large matrix that is nearly empty"


def test_findings_are_read_from_folders_and_damage_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_text(
        '{"analysis": "overlap", "settings": {"rows": 2, "columns": 3}, "found": {}}'
    )
    (tmp_path / "other.json").write_text('["nothing of ours"]')
    (tmp_path / "odd.json").write_text('{"analysis": "overlap", "settings": [], "found": {}}')
    (tmp_path / "number.json").write_text("3")
    (one,) = read([tmp_path, tmp_path / "results.jsonl"])
    assert (one.name, one.model) == ("overlap", "2 x 3 masks")
    (tmp_path / "cut.json").write_text('{"analysis": ')
    with pytest.raises(UsageError, match=r"cut\.json is not JSON"):
        read([tmp_path])


def test_a_claim_is_reproduced_where_all_of_it_holds():
    rows = [row("wise", 1000, average=0.7)]
    rows += [row(name, 1000, average=0.6) for name in "grace memit_mass ft_ewc defer memit rome ft_l mend".split()]
    (verdict,) = on("wise-best", rows)
    assert (verdict.status, verdict.model, verdict.data) == (REPRODUCED, "tiny", "zsre:x.json")
    assert (
        "wise average at T=1000 > grace average at T=1000: holds (0.70 and 0.60; published 0.83 and 0.68)"
        in verdict.why
    )
    rows[1] = row("grace", 1000, average=0.7)
    (verdict,) = on("wise-best", rows)
    assert verdict.status == PARTLY, "as good is not better"
    assert "grace average at T=1000: fails (0.70 and 0.70; published 0.83 and 0.68)" in verdict.why


def test_a_claim_is_not_reproduced_where_nothing_of_it_holds():
    (verdict,) = on("memit-collapses", [row("memit", 1, average=0.8), row("memit", 100, average=0.7)])
    assert verdict.status == NOT_REPRODUCED
    assert verdict.why.startswith(
        "memit average at T=100 < 0.2 x memit average at T=1: fails (0.70 and 0.80; published"
    )


def test_a_claim_of_which_some_is_not_measured_is_open_unless_some_fails():
    held = on("memoir-best", [row("memoir", 1000, average=0.9), row("wise", 1000, average=0.5)])
    assert [verdict.status for verdict in held] == [NOT_MEASURED]
    assert "; 6 of 7 comparisons have no rows, see plans/memoir-main.toml; not the paper's" in held[0].why
    (failed,) = on("memoir-best", [row("memoir", 1000, average=0.4), row("wise", 1000, average=0.5)])
    assert failed.status == NOT_REPRODUCED


def test_a_threshold_has_no_published_side():
    rows = [row("wise", 100, reliability=0.9, generalization=0.8, locality=1.0)]
    (verdict,) = on("wise-triangle", rows)
    assert verdict.status == REPRODUCED
    assert verdict.why.startswith("wise reliability at T=100 > 0.7: holds (0.90; published 0.90)")


def test_each_model_and_data_set_has_a_verdict_of_its_own():
    rows = [
        row("memit", 1, average=1),
        row("memit", 100, average=0),
        row("memit", 1, data="atlas"),
        row("memit", 100, data="atlas"),
    ]
    found = {verdict.data: verdict.status for verdict in on("memit-collapses", rows)}
    assert found == {"zsre:x.json": REPRODUCED, "atlas": NOT_REPRODUCED}
    elsewhere = [row("memit", t, data="hallucination:y.json", average=1 / t) for t in (1, 100)]
    assert [verdict.status for verdict in on("memit-collapses", elsewhere)] == [NOT_MEASURED], (
        "other data is no evidence"
    )


def test_only_the_scorer_of_the_papers_counts():
    rows = [row("memit", t, scorer="generated_exact", average=1 / t) for t in (1, 100)]
    assert [verdict.status for verdict in on("memit-collapses", rows)] == [NOT_MEASURED]


def test_seeds_are_averaged():
    rows = [row("memit", 1, average=1), *(row("memit", 100, seed=seed, average=seed / 5) for seed in range(3))]
    (verdict,) = on("memit-collapses", rows)
    assert verdict.found[0].left == pytest.approx(0.2)
    assert verdict.status == NOT_REPRODUCED, "a fifth is not less than a fifth"


def test_a_variant_is_no_evidence_for_the_method_as_it_is():
    variant = {"options": {"merge": "linear"}}
    rows = [row("wise", 1000, average=0.9, **variant), row("wise", 1, average=1.0)]
    assert on("wise-degrades-slowly", rows)[0].status == NOT_MEASURED
    rows += [
        row("wise", edits, average=average, options={"merge": "ties"}) for edits, average in ((1000, 0.5), (1, 1.0))
    ]
    assert on("wise-degrades-slowly", rows)[0].status == NOT_REPRODUCED


def test_a_method_is_compared_with_itself_in_one_setting():
    bare, trained = {"hypernetwork": None}, {"hypernetwork": "mend"}
    rows = [row("mend", 1, average=0.9, options=trained), row("mend", 100, average=0.8, options=bare)]
    assert on("mend-collapses", rows)[0].status == NOT_MEASURED
    rows += [row("mend", 100, average=0.1, options=trained), row("mend", 100, average=0.7, options=bare)]
    (verdict,) = on("mend-collapses", rows)
    assert verdict.found[0].left == pytest.approx(0.1)


def test_default_settings_go_before_others_and_the_last_of_others_counts():
    tuned = [row("memit", 100, options={"ridge": ridge}, average=ridge / 10) for ridge in (2.0, 3.0)]
    start = [row("memit", 1, options={"ridge": ridge}, average=1.0) for ridge in (2.0, 3.0)]
    assert on("memit-collapses", [*start, *tuned])[0].found[0].left == pytest.approx(0.3)
    default = {"ridge": published.defaults("memit")["ridge"]}
    plain = [row("memit", 100, options=default, average=0.05), row("memit", 1, options=default, average=1.0)]
    assert on("memit-collapses", [*start, *plain, *tuned])[0].found[0].left == pytest.approx(0.05)


def test_perplexity_and_memory_are_compared_too():
    rows = [
        a_row(method, t, data="hallucination:x.json", scores={}, options={}, perplexity={"mean": value})
        for method in ("rome", "memit")
        for t, value in ((1, 2.0), (100, 90.0))
    ]
    (verdict,) = on("rome-hallucination", rows)
    assert verdict.status == REPRODUCED
    sizes = [a_row("wise", t, options={}, memory_bytes=size) for t, size in ((10, 100), (1000, 109))]
    assert on("merge-constant", sizes)[0].status == REPRODUCED


# -- as published, and as errata has it ---------------------------------------------------------------------------------


PAPER_S = {"protect": 0.0, "faint": 1.0, "contrast": 0.0, "reworded": 0.0, "capacity": None}


def memoirs(options, *averages, **more):
    return [row("memoir", edits, average=average, options=options, **more) for edits, average in averages]


def test_every_option_of_the_papers_is_one_of_the_method_that_is_not_its_default():
    told = {method for settings in all_settings().values() for method in settings}
    for method in told | {"memit", "memit_mass", "alphaedit", "wilke", "ft_l"}:
        paper, ours = as_in_paper(method), published.defaults(method)
        for name, value in paper.items():
            assert ours[name] != value, f"{method} {name} is the paper's by default"
        methods.make(method, **paper)


def test_a_claim_is_put_to_rows_as_published_and_to_the_default():
    rows = memoirs(PAPER_S, (10, 0.99), (1000, 0.86)) + memoirs({}, (10, 0.99), (1000, 0.98))
    (theirs,) = on("memoir-retains", rows, AS_PUBLISHED)
    (ours,) = on("memoir-retains", rows)
    assert (theirs.status, theirs.found[0].left) == (NOT_REPRODUCED, 0.86)
    assert (ours.status, ours.found[0].left) == (REPRODUCED, 0.98)
    assert theirs.claim.claim.endswith("1,000 edits. As published.")
    assert ours.claim.claim.endswith("1,000 edits. As errata has it by default.")


def test_a_verdict_names_what_is_not_the_paper_s_in_its_rows():
    rows = memoirs(PAPER_S | {"tries": 1}, (10, 0.99), (1000, 0.86)) + memoirs({}, (10, 0.99), (1000, 0.98))
    (theirs,) = on("memoir-retains", rows, AS_PUBLISHED)
    (ours,) = on("memoir-retains", rows)
    assert "not the paper's, whose stands in brackets: memoir protect=3.0 (0.0), faint=0.5 (1.0)" in ours.why
    assert "capacity=500 (None)" in ours.why
    assert "protect" not in theirs.why
    assert theirs.why.endswith("memoir feature=any (centred_mean), optimizer=adalayer (sgd), end=True (False)")


def test_rows_as_published_are_no_evidence_for_the_default_nor_the_other_way_round():
    published_alone, default_alone = (
        memoirs(options, (10, 0.99), (1000, 0.5), data="atlas") for options in (PAPER_S, {})
    )
    assert on("memoir-retains", published_alone) == []
    assert [v.status for v in on("memoir-retains", published_alone, AS_PUBLISHED)] == [NOT_REPRODUCED]
    (missing,) = on("memoir-retains", default_alone, AS_PUBLISHED)
    assert (missing.status, missing.model) == (NOT_MEASURED, "")
    assert missing.why.startswith("1 of 1 comparisons have no rows of memoir with protect=0.0, faint=1.0")
    (ours,) = on("memoir-retains", default_alone)
    assert ours.status == NOT_REPRODUCED
    assert ours.why.endswith("; no rows as published")
    almost = memoirs(PAPER_S | {"faint": 0.5}, (10, 0.99), (1000, 0.5))
    assert {v.status for v in verdicts(almost) if v.claim.id == "memoir-retains"} == {NOT_MEASURED}


def test_an_ablation_of_the_papers_method_has_no_verdict_on_the_default():
    rows = [
        row("memoir", 1000, locality=locality, options=PAPER_S | {"tau": tau})
        for tau, locality in ((None, 1), (-1.0, 0))
    ]
    found = [verdict for verdict in verdicts(rows) if verdict.claim.id == "memoir-conditional"]
    assert [(verdict.settings, verdict.status) for verdict in found] == [(AS_PUBLISHED, REPRODUCED)]


def test_a_method_that_is_compared_with_stands_as_published_where_there_are_such_rows():
    rows = [row("memoir", 1000, generalization=0.9, locality=1.0, options=PAPER_S)]
    rows.append(row("grace", 1000, generalization=0.8))
    (verdict,) = on("memoir-generalizes", rows, AS_PUBLISHED)
    assert verdict.found[0].right == 0.8
    assert "grace placement=answer (last)" in verdict.why
    rows.append(row("grace", 1000, generalization=0.1, options={"placement": "last"}))
    (verdict,) = on("memoir-generalizes", rows, AS_PUBLISHED)
    assert verdict.found[0].right == 0.1
    assert "placement" not in verdict.why


def test_other_settings_are_told_where_they_come_out_otherwise():
    one = "as errata has it, but with one memory for all edits"
    full = {"edits_per_million_weights": 1700.0}
    by_default = [replace(line, **full) for line in memoirs({}, (1000, 0.93))]
    for average, expected in ((0.79, [f"{NOT_REPRODUCED} {SMALLER}"]), (0.85, [])):
        rows = [*by_default, *(replace(line, **full) for line in memoirs({"capacity": None}, (1000, average)))]
        assert [verdict.status for verdict in on("memoir-at-15000", rows, one)] == expected
        assert [verdict.status for verdict in on("memoir-at-15000", rows)] == [f"{REPRODUCED} {SMALLER}"]


def test_findings_are_told_apart_by_their_settings_too():
    default, groups = dict(published.defaults("memoir")), {"edits": {"passed": 1.0}}
    made = [
        findings("routing", {"groups": groups}, method="memoir", options=options)
        for options in (default, default | PAPER_S)
    ]
    told = [v for v in verdicts([], made) if v.claim.id == "overlap-histogram"]
    assert [v.settings for v in told] == [AS_PUBLISHED, BY_DEFAULT]
    assert ["protect=3.0 (0.0)" in v.why for v in told] == [False, True]


# -- scale, ceilings, and what refutes ----------------------------------------------------------------------------------


def test_a_verdict_after_nearly_as_many_edits_is_at_no_smaller_scale():
    rows = [row(name, 1000, average=average) for name, average in (("wilke", 0.9), ("rome", 0.1), ("memit", 0.2))]
    rows = [replace(line, data="atlas") for line in rows]
    (verdict,) = on("wilke-better", rows)
    assert (verdict.instead, verdict.status) == (1000, REPRODUCED), "1,000 of 1,024"


def test_the_smaller_scale_is_told_of_what_fails_too():
    rows = [
        row("wise", 1000, average=average, options={"mode": mode})
        for mode, average in (("merge", 0.9), ("retrieve", 0.8))
    ]
    assert [verdict.status for verdict in on("retrieve", rows)] == [f"{NOT_REPRODUCED} {SMALLER}"]


def ft_l(*averages):
    return [row("ft_l", edits, average=average) for edits, average in zip((1, 10, 100, 1000), averages, strict=True)]


@pytest.mark.parametrize(
    ("averages", "status"),
    [
        ((0.999, 0.998, 0.99, 0.985), CANNOT_TELL),
        ((0.999, 0.998, 0.8, 0.7), PARTLY),
        ((0.999, 0.998, 0.8, 0.9), PARTLY),
        ((0.97, 0.9, 0.8, 0.7), REPRODUCED),
        ((0.999, 0.97, 0.98, 0.99), PARTLY),
        ((0.5, 0.6, 0.7, 0.8), NOT_REPRODUCED),
    ],
)
def test_the_order_of_two_scores_at_the_ceiling_tells_nothing(averages, status):
    (verdict,) = on("ft-l-forgets", ft_l(*averages))
    assert verdict.status == status
    assert ("cannot tell (1.00 and 1.00" in verdict.why) == (min(averages[:2]) >= 0.98)


def test_a_margin_is_told_at_the_ceiling_and_memory_has_none():
    near = Comparison(Side("memoir", 1000), ">", Side("memoir", 10), by=-0.05)
    assert not near.at_ceiling(1.0, 1.0)
    assert replace(near, by=0.0).at_ceiling(0.98, 1.0)
    assert not replace(near, by=0.0).at_ceiling(0.97, 1.0)
    assert not Comparison(Side("wise", 10, "memory"), ">", Side("wise", 1, "memory")).at_ceiling(9.0, 8.0)
    assert not Comparison(Side("wise", 10), ">", 0.9).at_ceiling(1.0, 0.99)


@pytest.mark.parametrize(
    ("planned", "given", "status"), [(0.999, 0.998, CANNOT_TELL), (0.9, 0.8, REPRODUCED), (0.8, 0.9, NOT_REPRODUCED)]
)
def test_findings_have_a_ceiling_as_well(planned, given, status):
    runs = {
        name: {"scores": {"teacher_forced_token": {"average": average}}}
        for name, average in (("planned", planned), ("as given", given), ("shuffled 0", given))
    }
    told = verdicts([], [findings("lemoe", {"runs": runs}, method="lemoe")])
    (verdict,) = [v for v in told if v.claim.id == "clustered-order" and v.settings == BY_DEFAULT]
    assert verdict.status == status


@pytest.mark.parametrize(
    ("generalization", "locality", "status"),
    [(0.9, 0.1, REPRODUCED), (0.1, 0.9, REPRODUCED), (0.9, 0.9, NOT_REPRODUCED)],
)
def test_one_radius_at_which_grace_generalizes_and_keeps_locality_refutes_that_there_is_none(
    generalization, locality, status
):
    small = [
        row("grace", 100, generalization=0.1, options={"epsilon": e, "placement": "last"}) for e in (1.0, 3.0, 10.0)
    ]
    large = {"epsilon": 500.0, "placement": "last"}
    rows = [*small, row("grace", 100, generalization=generalization, locality=locality, options=large)]
    assert [verdict.status for verdict in on("grace-radii", rows, AS_PUBLISHED)] == [status]
    assert on("grace-radii", rows) == []


def test_what_wise_merge_costs_is_memory_and_time():
    def at(edits, **cost):
        return a_row("wise", edits, options={}, **cost)

    for later, status in ((1.2, REPRODUCED), (4.0, NOT_REPRODUCED)):
        rows = [at(10, seconds_per_edit=1.0), at(1000, seconds_per_edit=later)]
        assert [verdict.status for verdict in on("merge-seconds", rows)] == [status]
        answers = [
            at(edits, answering={"edited": edited, "unedited": 0.01})
            for edits, edited in ((100, 0.011), (1000, later / 100))
        ]
        assert [verdict.status for verdict in on("merge-answers", answers)] == [status]
    assert on("merge-answers", rows)[0].status == NOT_MEASURED, "rows without the time of an answer"


def depths(*kurtoses):
    interference = {"relative_error": 1e-6, "drift_of_others": 0.1, "target_probability": [0.0, 0.9]}
    return findings(
        "superposition", {"layers": [{"p": {"pearson": each}, "interference": interference} for each in kurtoses]}
    )


def test_whether_kurtosis_falls_with_depth():
    for kurtoses, status in (((9, 7, 5), REPRODUCED), ((5, 7, 9), NOT_REPRODUCED), ((5,), NOT_MEASURED)):
        (verdict,) = [v for v in verdicts([], [depths(*kurtoses)]) if v.claim.id == "kurtosis-depth"]
        assert verdict.status == status
    trend = Trend("layers", ("x",))
    assert trend.value({"layers": [{"x": 1}, {"y": 0}, {"x": 3}, {"x": 2}]}) == pytest.approx(1 / 3)
    assert trend.value({}) is None


@pytest.mark.parametrize(
    ("told", "status"),
    [({}, REPRODUCED), ({"target_probability": [0.0, 0.1]}, PARTLY), ({"relative_error": 0.3}, PARTLY)],
)
def test_interference_is_that_of_edits_that_hold(told, status):
    made = depths(5, 6)
    layers = [layer | {"interference": layer["interference"] | told} for layer in made.found["layers"]]
    (verdict,) = [v for v in verdicts([], [made._replace(found={"layers": layers})]) if v.claim.id == "interference"]
    assert verdict.status == status


# -- agreement ---------------------------------------------------------------------------------------------------------


def test_kendalls_tau():
    assert kendall([(1, 1), (2, 2), (3, 3)]) == 1
    assert kendall([(1, 3), (2, 2), (3, 1)]) == -1
    assert kendall([(1, 1), (2, 3), (3, 2)]) == pytest.approx(1 / 3)
    assert kendall([(1, 1), (1, 2), (2, 3)]) == pytest.approx(2 / (2 * 3) ** 0.5), "tau-b: ties count in the norm"
    assert kendall([(1, 1), (1, 2)]) is None


def test_agreement_is_that_of_methods_that_both_have():
    rows = [
        row(name, 1000, average=value)
        for name, value in (("wise", 0.9), ("grace", 0.5), ("memit_mass", 0.6), ("memoir", 1))
    ]
    (found,) = agreements(rows, ["wise-6-llama"])
    assert (found.methods, found.edits) == (("wise", "memit_mass", "grace"), 1000)
    assert found.tau == pytest.approx(1 / 3), "GRACE .68 and MEMIT-MASS .65 are the other way round"
    assert agreements(rows[:2], ["wise-6-llama"]) == [], "two methods are no order"
    assert data_of(rows[0]) == "zsre"


def test_sides_are_of_streams_of_one_length_if_there_are_such():
    without = replace(row("wise", 100, locality=0.8, options={"margin": False}), stream=1000)
    along, ended = replace(row("wise", 100, locality=0.7), stream=1000), row("wise", 100, locality=0.9)
    for rows, holds in (([without, ended], True), ([without, along, ended], False), ([ended, along, without], False)):
        (verdict,) = on("margin-loss", rows)
        assert verdict.found[0].holds is holds


def test_a_row_that_lacks_a_number_does_not_stand_before_one_that_has_it():
    timed = [
        replace(row("wise", edits), stream=1000, answering={"edited": seconds, "unedited": 1.0})
        for edits, seconds in ((100, 1.0), (1000, 1.05))
    ]
    untimed = row("wise", 100)
    (verdict,) = on("merge-answers", [*timed, untimed])
    assert (verdict.status, verdict.found[0].right) == (REPRODUCED, 1.0)


def test_batches_stand_for_no_stream_of_single_edits():
    alone = [row(name, 1000, average=value) for name, value in (("wise", 0.9), ("grace", 0.5), ("memit_mass", 0.6))]
    batched = [row(name, 1000, average=0.7, batch_size=100) for name in ("wise", "grace")]
    tables = ["wise-6-llama"]
    assert agreements(alone + batched, tables) == agreements(alone, tables)
    assert on("wise-best", alone + batched) == on("wise-best", alone) != on("wise-best", batched + alone[2:])


def test_orders_that_rest_on_little_have_a_caution():
    def found(*averages):
        rows = [
            row(name, 1, average=value)
            for name, value in zip(("wise", "grace", "mend", "rome"), averages, strict=False)
        ]
        (agreement,) = agreements(rows, ["wise-6-llama"])
        return agreement

    assert found(0.9, 0.8, 0.7).caution == "of 3 methods"
    full = found(1.0, 0.99, 0.7, 0.6)
    assert full.caution == "of 4 methods; 2 at the ceiling"
    assert full._replace(methods=tuple("abcde"), perfect=1).caution == ""


def test_a_report_counts_verdicts_by_settings_and_orders_by_methods():
    rows = memoirs(PAPER_S, (10, 0.99), (1000, 0.86)) + memoirs({}, (10, 0.99), (1000, 0.98))
    rows += [row(name, 1, average=value) for name, value in (("wise", 0.9), ("grace", 0.8), ("mend", 0.7))]
    retained = [verdict for verdict in verdicts(rows) if verdict.claim.id == "memoir-retains"]
    assert _how_to_read(retained).endswith(f"{AS_PUBLISHED}, 1 {NOT_REPRODUCED}; {BY_DEFAULT}, 1 {REPRODUCED}.")
    sections = {section.title: section for section in Report.of(rows).sections}
    assert _how_to_read(verdicts(rows)) in sections["Verdicts"].text
    (grid,) = sections["Rank agreement"].grids
    assert {line[4:6] for line in grid.lines} == {("3", "of 3 methods")}


def test_chats_say_nothing_of_what_papers_claim():
    rows = [replace(row("memoir", 1000, average=0.9), chat=True), replace(row("wise", 1000, average=0.5), chat=True)]
    assert {verdict.status for verdict in verdicts(rows)} == {"not measured"}
    assert agreements(rows) == []
    assert published.beside(rows) == []
    assert not any(published.like(row, published.numbers()) for row in rows)
