"""The result of a check against golden files: on a terminal, and as JUnit XML for CI systems."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable

from rich.console import Console

from replay.printable import printable_lines
from replay.report.console import console, print_line, print_reasons
from replay.verdict.check import Check

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def print_check(out: Console, check: Check) -> None:
    """Print one line, and under it what differs."""
    if check.status == "passed":
        lost = f" ({check.lost_events} events lost)" if check.lost_events else ""
        print_line(out, f"PASS {check.trace}: {check.attempts} attempts, policy {check.policy}{lost}")
    elif check.status == "error":
        print_line(out, f"ERROR {check.error}")
    elif check.status == "no_golden":
        print_line(out, f"NONE {check.trace}: no golden file")
    else:
        updated = check.status == "updated"
        print_line(out, f"{'UPDATE' if updated else 'FAIL'} {check.trace}: policy {check.policy}")
        print_reasons(out, check.reasons, check.differences)
        if not updated:
            print_line(out, f"  to accept: replay check --update {check.trace}")


def print_each(out: Console | None, checks: Iterable[Check]) -> list[Check]:
    """Print each of ``checks`` as soon as it is there, nothing without ``out``; all of them at the end."""
    done = []
    for check in checks:
        done.append(check)
        if out is not None:
            print_check(out, check)
    return done


def print_tally(out: Console | None, checks: Iterable[Check]) -> None:
    """Print how many passed, failed, could not be used, and have no golden file."""
    if out is None:
        return
    statuses = [check.status for check in checks]
    passed = statuses.count("passed") + statuses.count("updated")
    parts = [f"{passed} passed, {statuses.count('failed')} failed"]
    if errors := statuses.count("error"):
        parts.append(f"{errors} errors")
    if missing := statuses.count("no_golden"):
        parts.append(f"{missing} without a golden file")
    print_line(out, ", ".join(parts))


def check_text(check: Check) -> str:
    """What ``print_check`` prints."""
    file = io.StringIO()
    print_check(console(file), check)
    return file.getvalue()


def junit_text(checks: Iterable[Check]) -> str:
    """JUnit XML: one test case per trace, skipped if there is no golden file."""
    checks = list(checks)
    counts = {
        "tests": len(checks),
        "failures": sum(check.status == "failed" for check in checks),
        "errors": sum(check.status == "error" for check in checks),
        "skipped": sum(check.status == "no_golden" for check in checks),
        "time": f"{sum(check.seconds for check in checks):.3f}",
    }
    root = ET.Element("testsuites")
    attributes = {name: str(count) for name, count in counts.items()}
    suite = ET.SubElement(root, "testsuite", {"name": "replay check", **attributes})
    for check in checks:
        name = _clean(str(check.trace))
        attributes = {"classname": "replay", "name": name, "file": name, "time": f"{check.seconds:.3f}"}
        case = ET.SubElement(suite, "testcase", attributes)
        if check.status == "failed":
            message = check.reasons[0] if check.reasons else "not as expected"
            ET.SubElement(case, "failure", {"message": _clean(message)}).text = _clean(check_text(check))
        elif check.status == "error":
            ET.SubElement(case, "error", {"message": _clean(str(check.error))})
        elif check.status == "no_golden":
            ET.SubElement(case, "skipped", {"message": "no golden file"})
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _clean(text: str) -> str:
    """``text`` without characters that XML does not allow or that control a terminal."""
    return _NOT_XML.sub("?", printable_lines(text))
