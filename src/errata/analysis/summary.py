"""Summary: findings in a few lines of text."""

from collections.abc import Callable, Mapping
from typing import Any

from errata.analysis.findings import Findings


def told(findings: Findings) -> str:
    """The numbers that matter, for a person."""
    return "\n".join(SUMMARIES[findings.analysis](findings.found))


def _superposition(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{found['facts']} facts; kurtosis 3 is that of a normal distribution"]
    lines.append(f"{'layer':>5} {'kurtosis of p':>22} {'with C = I':>10} {'whitened':>9} {'raw':>9}   predicted drift")
    for layer in found["layers"]:
        p, (low, high) = layer["p"], layer["p"]["interval"]
        kept = layer.get("interference")
        drift = "" if kept is None else f"   off by {kept['relative_error']:.1e} after {kept['edits']} edits"
        lines.append(
            f"{layer['layer']:>5} {p['pearson']:>8.1f} [{low:>5.1f}, {high:>5.1f}]"
            f" {layer['p_without_covariance']['pearson']:>9.1f} {layer['angle_whitened']['mean']:>6.1f}°"
            f" {layer['angle_raw']['mean']:>8.1f}°{drift}"
        )
    return lines


def _tracing(found: Mapping[str, Any]) -> list[str]:
    known = f"{found['facts']} of {found['asked']} facts are known"
    noise = f"p = {found['clean']:.3f}, with noise {found['corrupted']:.3f}"
    lines = [f"{known}: {noise}; window of {found['window']}; average indirect effect by layer"]
    for kind, roles in found["kinds"].items():
        for role, told_ in roles.items():
            lines.append(f"{kind:<10} {role:<15} " + " ".join(f"{value:6.3f}" for value in told_["aie"]))
    return lines


def _overlap(found: Mapping[str, Any]) -> list[str]:
    z = found["z"]
    lines = [f"{len(found['subspaces'])} draws; in standard deviations from the theorem: {_scatter(z)}"]
    for one in found["top_hash"]:
        measured, theory = one["measured"], one["chance"]
        told_ = ", ".join(f"{name} {measured[name]:.4f} ({theory[name]:.4f} by chance)" for name in measured)
        lines.append(f"{one['active']} of {one['width']} features, {one['edits']} edits: {told_}")
    return lines


def _scatter(z: Mapping[str, Any]) -> str:
    if not z["counts"]:
        return "nothing is shared, as it must be"
    return f"mean {z['mean']:.2f}, rms {z['rms']:.2f}, largest {z['largest']:.2f} of {z['counts']} counts"


def _routing(found: Mapping[str, Any]) -> list[str]:
    lines = [f"{found['method']}, {found['edits']} edits ({found['failed']} failed); thresholds {found['thresholds']}"]
    for group, told_ in found["groups"].items():
        own = "" if told_["own_edit"] is None else f", {told_['own_edit']:.1%} nearest to their own edit"
        lines.append(
            f"{group:<26} {told_['prompts']:>5} prompts, {told_['passed']:>6.1%} pass, score {told_['score']['median']:.3f}"
            f" [{told_['score']['p5']:.3f}, {told_['score']['p95']:.3f}]{own}"
        )
    for group, areas in found["auc_of_margin"].items():
        lines.append(f"AUC of {group} against " + ", ".join(f"{other} {value:.3f}" for other, value in areas.items()))
    if "columns" in found:
        uses = found["columns"]["uses"]
        lines.append(
            f"edits a column: {uses['mean']:.1f}, sd {uses['sd']:.1f} ({uses['sd_by_chance']:.1f} by chance),"
            f" {uses['least']} to {uses['most']}"
        )
    return lines


SUMMARIES: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "superposition": _superposition, "tracing": _tracing, "overlap": _overlap, "routing": _routing,
}  # fmt: skip
