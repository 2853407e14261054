"""The page of a report as a browser sees it, on a screen and on a telephone. Needs Chromium."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import pytest

from errata.bench import page
from errata.bench.report import Report
from test_report import ROWS, measured

PROBE = """<script>
const problems = [];
addEventListener("error", event => problems.push(String(event.message)), true);
addEventListener("load", () => {
  const visible = all => [...document.querySelectorAll(all)].filter(e => e.checkVisibility());
  const sizes = all => visible(all).map(e => e.getBoundingClientRect()).map(box => [box.width, box.height]);
  const top = document.scrollingElement;
  const clipped = e => { while (e && getComputedStyle(e).overflowX !== "auto") e = e.parentElement; return e; };
  const told = {
    problems, crossed: [], width: innerWidth, scrolls: top.scrollWidth - top.clientWidth,
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    tables: sizes("table"), svgs: sizes("svg"),
    outside: [...document.querySelectorAll("body *")].filter(
      e => !(e instanceof SVGElement) && e.getBoundingClientRect().right > innerWidth && !clipped(e)).map(e => e.tagName),
    small: Math.min(...[...document.querySelectorAll("td")].map(e => parseFloat(getComputedStyle(e).fontSize))),
  };
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
    const over = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right && a.top + 1 < b.bottom && b.top + 1 < a.bottom;
    texts.forEach(([name, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
      if (over(a, b)) told.crossed.push([name, other]);
    }));
  }
  parent.postMessage(JSON.stringify(told), "*");
});
</script>"""
"""Put into a copy of the page, which has no script of its own."""
FRAME = """<!doctype html><body style="margin: 0"><script>
addEventListener("message", event => {
  const found = document.createElement("pre");
  found.textContent = event.data;
  document.body.append(found);
});
</script><iframe src="page.html" width="WIDTH" height="900" style="border: 0"></iframe></body>"""
"""Holds that copy: a window is never less than 500 wide, a frame is as wide as it is told."""


@pytest.fixture(scope="module")
def browser():
    """The command that starts a browser, without a window and cut off from every network."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    return [found, *quiet, "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]


@pytest.fixture(scope="module")
def report():
    """The page that is looked at."""
    pytest.importorskip("matplotlib", reason="the figures need the extra plots")
    return page.html(Report.of(ROWS))


def seen(browser, folder, text, width):
    """What a browser finds at this width, and what it says on its console."""
    (folder / "page.html").write_text(text.replace("<head>", f"<head>{PROBE}"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    where = [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", (folder / "frame.html").as_uri()]
    command = [*browser, "--virtual-time-budget=10000", "--dump-dom", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found.group(1))), console


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_can_be_read_at_any_width_and_asks_nobody(browser, report, tmp_path, width):
    found, console = seen(browser, tmp_path, report, width)
    assert found["width"] == width
    assert found["scrolls"] == 0, "tables and figures scroll by themselves, the page does not"
    assert found["outside"] == []
    assert found["requests"] == []
    assert (found["problems"], console) == ([], [])
    assert len(found["tables"]) == report.count("<table>") - report.count("<details>"), "one is folded away"
    assert len(found["svgs"]) == 3
    assert all(w > 200 and h > 40 for w, h in found["tables"])
    assert all(w > 300 and h > 150 for w, h in found["svgs"])
    assert found["small"] >= 12


def test_the_names_in_a_figure_of_many_methods_do_not_cover_one_another(browser, tmp_path):
    pytest.importorskip("matplotlib", reason="the figures need the extra plots")
    rows = [measured(f"a_method_{i}", t, 0.9, 0.8, 0.7, 0.8) for i in range(14) for t in (10, 100)]
    found, _ = seen(browser, tmp_path, page.html(Report.of(rows)), 1280)
    assert len(found["svgs"]) == 3
    assert found["crossed"] == []


def test_the_options_of_variants_do_not_cover_one_another(browser, tmp_path):
    pytest.importorskip("matplotlib", reason="the figures need the extra plots")
    told = [{"spill": spill, "contrast": 0.15, "reworded": spill * 5} for spill in (0.0, 0.005, 0.05, 0.1)]
    rows = [replace(measured("memoir", 100, 0.9, 0.8, 0.7, 0.8), options=options) for options in told]
    found, _ = seen(browser, tmp_path, page.html(Report.of(rows)), 1280)
    assert found["crossed"] == []


def test_the_look_at_the_page_would_see_what_is_wrong(browser, tmp_path):
    wrong = (
        '<!doctype html><html><head></head><body><div style="width: 900px">x</div><script>nothing()</script>'
        '<img src="http://elsewhere.invalid/x.png"></body></html>'
    )
    found, console = seen(browser, tmp_path, wrong, 400)
    assert found["scrolls"] > 0
    assert "DIV" in found["outside"]
    assert found["requests"] == ["http://elsewhere.invalid/x.png"]
    assert any("nothing is not defined" in problem for problem in found["problems"])
    assert console
