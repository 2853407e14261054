"""Write the tables of README.md and docs/results.md anew from the committed results.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a folder of benchmarks/results, then perhaps
a scorer: `zsre-100 teacher_forced_token`. With --check nothing is written, and the exit code is 1 where a file differs.
"""

import argparse
import re
import sys
from pathlib import Path

from errata.bench import markdown, record

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results.md")
BLOCK = re.compile(r"(<!-- table: (?P<name>\S+)(?: (?P<scorer>\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """A page with every table made anew."""

    def table(found: re.Match[str]) -> str:
        rows = record.read(ROOT / "benchmarks" / "results" / found["name"] / "results.jsonl")
        return f"{found[1]}\n{markdown(rows, found['scorer'] or 'generated_exact')}\n\n{found[4]}"

    return BLOCK.sub(table, text)


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which pages are out of date")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            stale.append(page)
            if not check:
                path.write_text(after, encoding="utf-8")
    if stale:
        sys.stderr.write(f"{'out of date' if check else 'rewritten'}: {', '.join(stale)}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
