"""All measurements in one run, as one table, beside a baseline.

    python -m tools.bench [--only parsing,caching] [--write docs/performance.md] [--save]

Speeds of two machines say little, ratios of one run do: a row is compared with what stands behind "against".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tools.bench.measures import MEASURES, Row, make_inputs

BASELINE = Path(__file__).parent / "baseline.json"
BEGIN, END = "<!-- table: python -m tools.bench -->", "<!-- end of table -->"


def table(rows: list[Row], baseline: dict[str, list[float | None]]) -> str:
    """A Markdown table; of each row also what ``baseline`` has."""
    lines = ["| what | value | against | ratio | baseline: value | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        value, ratio = baseline.get(_key(row), (None, None))
        cells = [
            row.name,
            f"{row.value:.4g} {row.unit}",
            row.against,
            _short(row.ratio),
            _short(value),
            _short(ratio),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _key(row: Row) -> str:
    return f"{row.name} [{row.unit}]"


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}"


def write_into(path: Path, text: str) -> None:
    """Put ``text`` between the marks in the Markdown file ``path``."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [measure.__name__ for measure in MEASURES]
    parser.add_argument("--only", default=",".join(names), help=f"some of {', '.join(names)}")
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the text that is parsed")
    parser.add_argument("--longest", type=int, default=10_000_000, help="events that are replayed at most")
    parser.add_argument("--runs", type=int, default=5, help="the best of so many counts")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this Markdown file")
    parser.add_argument("--save", action="store_true", help=f"keep the figures in {BASELINE.name}")
    options = parser.parse_args()
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        inputs = make_inputs(Path(directory), options.lines, options.runs, options.longest)
        for measure in MEASURES:
            if measure.__name__ in options.only.split(","):
                print(f"{measure.__name__} ...", file=sys.stderr)
                rows += measure(inputs)
    text = table(rows, baseline)
    print(text)
    if options.write:
        write_into(options.write, table(rows, {}))
    if options.save:
        figures = {_key(row): [row.value, row.ratio] for row in rows}
        BASELINE.write_text(json.dumps(baseline | figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
