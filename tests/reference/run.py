"""Compare the reference model with recordings: `python -m tests.reference.run FILE...`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from .machine import Machine, Vms
from .parse import MMU_EVENTS, read_events

SHOWN = (
    ("split", ("split", "tdp_split")),
    ("get_page", ("get_page",)),
    ("flush", ("flush",)),
    ("nonpresent", ("nonpresent", "done")),
    ("leaked", ("leaked",)),
    ("freed", ("freed",)),
    ("alias", ("alias",)),
    ("available", ("prepare",)),
    ("env", ("dropped", "yield", "end")),
    ("rmaps", ("rmaps",)),
)


def compare(
    path: Path, info: dict[str, Any], probes: bool = True
) -> tuple[Vms, Counter[str], Counter[str], list[str]]:
    """Replay one recording; `info` is its SCENARIO.info.json, or empty. Without `probes` markers alone have
    to do.
    """
    kept = MMU_EVENTS | {"kvm_page_fault", "tracing_mark_write"}
    vms = Vms([event for event in read_events(path) if probes or event.name in kept], info)
    vms.run()
    total, matched, differences = Counter[str](), Counter[str](), list[str]()
    for machine in vms.machines.values():
        total += machine.splits.total
        matched += machine.splits.matched
        differences += machine.splits.differences
    return vms, total, matched, differences


def summary(total: Counter[str], matched: Counter[str]) -> str:
    parts = []
    for label, kinds in SHOWN:
        good, seen = sum(matched[kind] for kind in kinds), sum(total[kind] for kind in kinds)
        extra = sum(total[f"extra_{kind}"] for kind in kinds)
        parts.append(f"{label} {good}/{seen}" + (f"+{extra}" if extra else ""))
    return ", ".join(parts)


def notes(machines: dict[int, Machine]) -> str:
    found: Counter[str] = Counter()
    for machine in machines.values():
        found += machine.inference.notes
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items()))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.reference.run", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="native ftrace text")
    parser.add_argument(
        "--info", type=Path, help="directory of SCENARIO.info.json files (else beside the text)"
    )
    parser.add_argument("--markers", action="store_true", help="ignore kprobe lines")
    options = parser.parse_args(arguments)
    directory, failed = options.info, False
    for path in options.files:
        described = directory / f"{path.stem}.info.json" if directory else path.with_suffix(".info.json")
        info = json.loads(described.read_text()) if described.exists() else {}
        vms, total, matched, differences = compare(path, info, not options.markers)
        failed |= bool(differences)
        remarks = notes(vms.machines)
        print(
            f"{path.stem} ({vms.kernel.policy}): {summary(total, matched)}"
            + (f" [{remarks}]" if remarks else "")
        )
        for difference in differences[:5]:
            print(f"    {difference}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
