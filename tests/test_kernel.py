"""Kernel versions, and what ``--policy auto`` makes of them and of what the trace shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replay.kernel import KernelVersion, choose_policy, parse_kernel_version
from replay.policy import PRESETS, Policy
from replay.run import Request, Run, run_trace
from replay.trace.reader import read_trace
from tests.test_cli import EVENTS, trace_text

RECORDED = Path(__file__).parents[1] / "traces" / "recorded"
BANNER = (
    "Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) "
    "12.2.0, GNU ld (GNU Binutils for Debian) 2.40) #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("6.12.107-amd64", (6, 12, 107)),
        ("6.12.107+deb13-amd64", (6, 12, 107)),
        ("6.18.5+deb14", (6, 18, 5)),
        ("5.10.0-28-amd64", (5, 10, None)),
        ("6.8.0-45-generic", (6, 8, None)),
        ("6.5.11-7-pve", (6, 5, 11)),
        ("6.1.0", (6, 1, 0)),
        ("6.0.0-rc3+", (6, 0, 0)),
        ("v6.9", (6, 9, 0)),
        ("2.6.32.59", None),
        ("Linux version 6.6.30 (me@here) (gcc (Debian 12.2.0-14) 12.2.0) #3 SMP", (6, 6, 30)),
        (BANNER, (6, 1, 192)),
        ("6.1.0-56-amd64 Debian 6.1.192-2", (6, 1, 192)),
        ("5.14.0-427.13.1.el9_4.x86_64", None),
        ("1.1.5", None),
        ("6", None),
        ("6.x", None),
        ("six", None),
        ("999999999999.1", None),
        ("", None),
        (None, None),
    ],
)
def test_version(text: str | None, version: tuple[int, int, int | None] | None) -> None:
    assert parse_kernel_version(text) == (version and KernelVersion(*version))


@pytest.mark.parametrize(
    ("release", "policy", "rmap_order", "clear_end"),
    [
        ("4.19.300", "off", "append", "inclusive"),
        ("5.17.15", "off", "append", "inclusive"),
        ("5.18.0-rc1", "linux-6.0", "append", "inclusive"),
        ("5.19.17", "linux-6.0", "append", "inclusive"),
        ("6.0.0", "linux-6.0", "append", "inclusive"),
        ("6.1.175", "linux-6.0", "append", "inclusive"),
        ("6.1.176", "linux-2026", "append", "inclusive"),
        ("6.1.192", "linux-2026", "append", "inclusive"),
        ("6.1.0-50-amd64", "linux-6.0", "append", "inclusive"),
        ("6.3.13", "linux-6.0", "append", "inclusive"),
        ("6.4.0", "linux-6.0", "head", "inclusive"),
        ("6.7.12", "linux-6.0", "head", "inclusive"),
        ("6.8.0", "linux-6.0", "head", "exclusive"),
        ("6.12.106", "linux-6.0", "head", "exclusive"),
        ("6.12.107-amd64", "linux-2026", "head", "exclusive"),
        ("6.18.15+deb13-amd64", "linux-6.0", "head", "exclusive"),
        ("7.3.4+deb13-amd64", "linux-6.0", "head", "exclusive"),
    ],
)
def test_policy_of_a_version(release: str, policy: str, rmap_order: str, clear_end: str) -> None:
    version = parse_kernel_version(release)
    assert version is not None
    assert version.policy[0] == policy
    assert policy in PRESETS
    assert version.knobs == {"rmap_order": rmap_order, "clear_end": clear_end}
    assert Policy.parse(policy).with_knobs(version.knobs, "test").knobs()["rmap_order"] == rmap_order


MERGED = ("linux-6.0", "linux-2026")


@pytest.mark.parametrize(
    ("release", "evidence", "policy"),
    [
        (None, (), "v2"),
        (None, ("linux-2026",), "linux-2026"),
        (None, MERGED, "linux-6.0"),
        ("6.12.107", (), "linux-2026"),
        ("6.12.107", MERGED, "linux-2026"),
        ("6.12.107", ("linux-6.0",), "linux-6.0"),
        ("6.12.90", ("linux-2026",), "linux-2026"),
        ("6.1.0-50-amd64", ("linux-2026",), "linux-2026"),
        ("6.1.192", ("v2",), "v2"),
        ("5.10.262", ("v2",), "v2"),
        ("5.10.262", ("off",), "off"),
        ("6.6.1", ("off",), "off"),
    ],
)
def test_outcomes_win(release: str | None, evidence: tuple[str, ...], policy: str) -> None:
    version = parse_kernel_version(release)
    name, reason = choose_policy(version, evidence, "it was seen")
    assert name == policy
    assert ("it was seen" in reason) == (version is None or evidence != ())
    assert version is None or f"Linux {version}" in reason
    if version and evidence and version.policy[0] not in evidence:
        assert f"which is {version.policy[0]} as released" in reason


# -- in a trace ----------------------------------------------------------------------------------------


def run_of(tmp_path: Path, header: str, events: list[str], **options: Any) -> Run:
    path = tmp_path / "t.txt"
    path.write_text(header + trace_text(events))
    return run_trace(str(path), Request(**options))


@pytest.mark.parametrize(
    ("header", "mark"),
    [
        ("# nop latency trace v1.1.5 on 6.12.107+deb13-amd64\n", None),
        ("", "Linux version 6.12.107+deb13-amd64 (someone) #1 SMP Debian 6.12.107-1 (2026-08-29)"),
        ("", "replay: kernel version=6.12.107"),
    ],
)
def test_where_a_trace_tells_its_kernel(tmp_path: Path, header: str, mark: str | None) -> None:
    marks = [f"tracing_mark_write: {mark}"] if mark else []
    run = run_of(tmp_path, header, [*marks, *EVENTS[2:8]])
    assert run.policy.name == "linux-2026"
    assert run.policy_reason == "recorded by Linux 6.12.107: merged code with the security fix of 2026"
    assert run.policy.knobs()["rmap_order"] == "head"
    asked = run_of(tmp_path, header, [*marks, *EVENTS[2:8]], policy="v2")
    assert (asked.policy, asked.policy_reason) == (PRESETS["v2"], "as asked for")


def test_package_version_of_a_banner(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text([f"tracing_mark_write: {BANNER}", *EVENTS]))
    assert read_trace(str(path)).kernel == "6.1.0-56-amd64 Debian 6.1.192-2"


def test_splits_of_v2_win_over_the_version(tmp_path: Path) -> None:
    run = run_of(tmp_path, "# nop latency trace v1.1.5 on 6.12.107\n", EVENTS)
    assert run.policy.name == "v2"
    assert run.policy_reason == (
        "shadow pages were split and no attempt ended in -EAGAIN; "
        "recorded by Linux 6.12.107, which is linux-2026 as released"
    )
    assert run.comparison.verdict == "match"


@pytest.mark.parametrize("kernel", ["linux-5.10", "linux-6.1", "linux-6.12.107", "linux-7.3.4", "v2"])
def test_versions_of_the_recordings(kernel: str) -> None:
    """With its banner a recording gets the policy that its outcomes speak for."""
    trace = read_trace(str(RECORDED / kernel / "C1-nested-2m.txt.zst"))
    by_outcomes = run_trace(trace, Request(policy="auto", expect="recorded"))
    info = json.loads((RECORDED / kernel / "C1-nested-2m.info.json").read_text())
    trace.kernel = info["kernel"]
    run = run_trace(trace, Request(policy="auto", expect="recorded"))
    assert run.policy.name == by_outcomes.policy.name
    assert run.comparison.verdict == by_outcomes.comparison.verdict
    version = parse_kernel_version(info["kernel"])
    assert version is not None
    assert (version.policy[0] == run.policy.name) == (kernel != "v2")
    assert f"Linux {version}" in run.policy_reason
