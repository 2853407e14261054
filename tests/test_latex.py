"""A report as LaTeX."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from errata.bench.latex import escaped, latex
from errata.bench.report import Report
from test_failures import FAILED
from test_report import ROWS, measured


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("50% & _x_", r"50\% \& \_x\_"),
        ("a\\b~c^2", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}2"),
        ("–\n<i>", r"-- \textless{}i\textgreater{}"),
    ],
)
def test_what_latex_would_take_for_commands_stands_for_itself(text, tex):
    assert escaped(text) == tex


def test_latex_has_the_tables_and_its_figures_beside_it(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [measured("ft_l", t, 0.9, 0.6, 1.0, 0.8, outcomes=FAILED) for t in (5, 10)]
    made = Report.of([replace(row, data="50%_of & all") for row in rows])
    text = latex(made, tmp_path / "paper" / "report.tex")
    assert r"ft\_l & 10 & 0.90 & 0.60 & 1.00 & 0.80 & 0.25 & 2 & 0 \\" in text
    assert r"50\%\_of \& all on tiny" in text
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") >= 4
    names = re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", text)
    assert names == [f"report-{i + 1}.pdf" for i in range(3)]
    assert all((tmp_path / "paper" / name).read_bytes().startswith(b"%PDF") for name in names)
    assert "Who leads" not in text
    assert re.search(r"(?<!\\)[_%&#](?![^\n]*\\\\)", re.sub(r"^%.*$|\{[^}]*\}", "", text, flags=re.MULTILINE)) is None


def test_latex_without_matplotlib_has_the_tables_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    text = latex(Report.of(ROWS), tmp_path / "report.tex")
    assert "% No figures: drawing needs" in text
    assert r"\begin{longtable}" in text
    assert list(tmp_path.iterdir()) == []


def test_a_document_that_inputs_it_compiles(tmp_path):
    pytest.importorskip("matplotlib")
    compiler = shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("no pdflatex on this machine: apt install texlive-latex-recommended")
    rows = [measured("ft_l", t, 0.9, 0.6, 1.0, 0.8, outcomes=FAILED) for t in (5, 10)]
    text = latex(
        Report.of([*(replace(row, data="50%_of & ~all^{}\\") for row in rows), *ROWS]), tmp_path / "report.tex"
    )
    (tmp_path / "report.tex").write_text(text, encoding="utf-8")
    preamble = re.search(r"\\usepackage\{.*\}", text)[0]
    document = f"\\documentclass{{article}}{preamble}\\begin{{document}}\\input{{report}}\\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
