"""Kernel versions, and what ``--policy auto`` makes of them and of what the trace shows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from replay.errors import UsageError
from replay.kernel import KernelVersion, asked_kernel, choose_policy, parse_kernel_version
from replay.policy import PRESETS, Policy
from replay.run import Request, Run, run_alternative, run_trace
from replay.trace.reader import read_trace
from tests.test_cli import EVENTS, error_of, replay, trace_text

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
        ("6.12.43", "linux-6.0", "head", "exclusive"),
        ("6.12.117+deb12-amd64", "linux-2026", "head", "exclusive"),
        ("6.16.12", "linux-6.0", "head", "exclusive"),
        ("6.18.15+deb13-amd64", "linux-6.0", "head", "exclusive"),
        ("7.2.12", "linux-6.0", "head", "exclusive"),
        ("7.2.13", "linux-6.0", "head", "exclusive"),
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


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        ("6.1.176", "merged code with the security fix of 2026"),
        ("6.12.43", "merged code without the security fix of 2026"),
        (
            "6.12.90",
            "merged code, if it is older than the security fix of 2026: 6.12.43 was recorded without it, "
            "6.12.107 with it",
        ),
        ("6.1.170", "merged code, if it is older than the security fix of 2026: 6.1.176 with it"),
        ("7.3.5", "merged code, if it is older than the security fix of 2026: 7.3.4 was recorded without it"),
        ("6.1.0-50-amd64", "merged code, if it is older than the security fix of 2026"),
        ("6.6.30", "merged code, from 6.0; no recording shows whether 6.6 has the fix of 2026"),
    ],
)
def test_no_more_is_said_of_the_fix_than_was_recorded(release: str, reason: str) -> None:
    version = parse_kernel_version(release)
    assert version is not None
    assert version.policy[1] == reason


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
    name, reason, alternative = choose_policy(version, evidence, "it was seen")
    assert name == policy
    assert alternative == (None if version or evidence else "linux-6.0")
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


# -- as the user says ----------------------------------------------------------------------------------

WHAT_IF = EVENTS[2:8]
"""Nothing in these shows the kernel."""


@pytest.mark.parametrize(
    ("kernel", "policy", "knobs"),
    [
        ("6.12.117", "linux-2026", ("head", "exclusive")),
        ("6.1.0-50-amd64", "linux-6.0", ("append", "inclusive")),
        (BANNER, "linux-2026", ("append", "inclusive")),
        ("5.10.262", "off", ("append", "inclusive")),
    ],
)
def test_an_asked_kernel_decides_where_outcomes_do_not(
    tmp_path: Path, kernel: str, policy: str, knobs: tuple[str, str]
) -> None:
    run = run_of(tmp_path, "# nop latency trace v1.1.5 on 6.18.15\n", WHAT_IF, kernel=kernel)
    assert run.policy.name == policy
    assert run.policy_reason.startswith(f"--kernel {parse_kernel_version(kernel)}: ")
    found = run.policy.knobs()
    assert (found["rmap_order"], found["clear_end"]) == knobs


def test_outcomes_win_over_an_asked_kernel(tmp_path: Path) -> None:
    run = run_of(tmp_path, "", EVENTS, kernel="6.12.117")
    assert run.policy.name == "v2"
    assert run.policy_reason == (
        "shadow pages were split and no attempt ended in -EAGAIN; "
        "--kernel 6.12.117, which is linux-2026 as released"
    )


def test_an_asked_kernel_sets_the_knobs_of_its_age(tmp_path: Path) -> None:
    """Of a policy that is named, too, but for those that are named with it."""
    file = tmp_path / "mine.toml"
    file.write_text('base = "v2"\nclear_end = "inclusive"\n')
    for policy, knobs in (
        ("v2", ("head", "exclusive")),
        ("v2:rmap_order=append", ("append", "exclusive")),
        (str(file), ("head", "inclusive")),
    ):
        found = run_of(tmp_path, "", WHAT_IF, policy=policy, kernel="6.12.117").policy.knobs()
        assert (found["rmap_order"], found["clear_end"]) == knobs
    set_knob = run_of(tmp_path, "", WHAT_IF, policy="v2", kernel="6.12.117", settings=("rmap_order=append",))
    assert set_knob.policy.knobs()["rmap_order"] == "append"


def test_host_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def uname(release: str, version: str) -> os.uname_result:
        return os.uname_result(("Linux", "here", release, version, "x86_64"))

    debian = uname("6.1.0-50-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-01)")
    monkeypatch.setattr(os, "uname", lambda: debian)
    assert asked_kernel("host") == KernelVersion(6, 1, 176)
    other = uname("5.14.0-427.13.1.el9_4.x86_64", "#1 SMP")
    monkeypatch.setattr(os, "uname", lambda: other)
    with pytest.raises(UsageError, match=r"^--kernel host \(5\.14\.0-427.*: no version of KVM in it"):
        asked_kernel("host")


def test_a_golden_file_beside_is_of_another_kernel(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(WHAT_IF))
    assert replay("expect", path, "--policy", "v2").returncode == 0
    assert run_trace(str(path), Request()).policy.name == "v2"
    run = run_trace(str(path), Request(kernel="6.12.117"))
    assert (run.policy.name, run.comparison.source) == ("linux-2026", "none")


# -- where nothing shows the kernel --------------------------------------------------------------------


def test_both_are_shown_where_nothing_shows_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(WHAT_IF))
    document = json.loads(replay("run", path, "--json").stdout)
    policy = document["policy"]
    assert (policy["name"], policy["alternative"]) == ("v2", "linux-6.0")
    assert policy["reason"].startswith(
        "nothing identifies the kernel (no outcome was recorded, and no version); "
    )
    told = json.loads(replay("info", path, "--json").stdout)["policy"]
    assert told == {name: policy[name] for name in told}
    lines = replay("run", path).stdout.splitlines()
    begin = lines.index(
        "nothing identifies the kernel, so here are both (use --kernel RELEASE or --kernel host):"
    )
    assert lines[begin - 2].startswith("verdict")
    assert lines[begin + 1].split() == ["v2", "linux-6.0"]
    assert lines[begin + 2].split() == ["attempts", *map(str, attempts_of(path))]
    for options in (["--kernel", "6.12.117"], ["--policy", "v2"]):
        shown = replay("run", path, *options).stdout
        assert "nothing identifies the kernel" not in shown
        assert shown.splitlines()[-1].startswith("verdict")


def attempts_of(path: Path) -> list[int]:
    runs = [run_trace(str(path), Request(policy=policy)) for policy in ("v2", "linux-6.0")]
    return [run.document["totals"]["attempts"] for run in runs]


def test_the_other_run_is_as_if_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(WHAT_IF))
    request = Request(settings=("min_free_pages=1",), max_mmu_pages=64, nested="yes")
    first = run_trace(str(path), request)
    other = run_alternative(first, request)
    assert first.document["totals"]["attempts"] == 1
    assert other is not None
    assert other.policy.name == "linux-6.0:min_free_pages=1"
    asked = run_trace(str(path), Request(**vars(request) | {"policy": "linux-6.0"}))
    assert other.document == asked.document


LATE = [
    "kvm_tdp_mmu_spte_changed: as id 0 gfn 200 level 1 old_spte 0 new_spte 11604fe67",
    "kvm_mmu_set_spte: gfn 40000 spte 15800ee7 (rwxu) level 2 at 10052fa5000",
]
"""The first lines of a trace that begins late."""


def late_splits(count: int) -> list[str]:
    pages = [
        [
            f"kvm_mmu_get_page: sp gen 0 gfn {gfn:x} l1 8-byte q0 direct wux nxe ad root 0 sync new",
            f"kvm_mmu_split_huge_page: gfn {gfn:x} spte 15800ee7 level 2 errno 0",
        ]
        for gfn in range(0x40000, 0x40000 + 512 * count, 512)
    ]
    return [*LATE, *(line for page in pages for line in page)]


def test_a_late_start_without_eagain_is_not_v2(tmp_path: Path) -> None:
    """The line with -EAGAIN may be cut away, as long as merged code need not fill its caches again."""
    run = run_of(tmp_path, "", late_splits(40))
    assert (run.policy.name, run.alternative) == ("linux-6.0", "v2")
    assert run.policy_reason.startswith("the trace begins late, and too few shadow pages were split")
    assert run_of(tmp_path, "", late_splits(41)).policy.name == "v2"
    assert run_of(tmp_path, "", late_splits(40), kernel="6.12.117").policy.name == "linux-2026"
    born = ["kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new"]
    assert run_of(tmp_path, "", born + late_splits(40)).policy.name == "v2"


def test_entries_of_later_kernels_show_merged_code(tmp_path: Path) -> None:
    """Non-present SPTEs of 6.10 and later have bit 63: v2 was never posted for these."""
    change = "kvm_tdp_mmu_spte_changed: as id 0 gfn 40000 level 2 old_spte {} new_spte 15800ee7"
    later = run_of(tmp_path, "", [change.format("8000000000000000")])
    assert (later.policy.name, later.alternative) == ("linux-6.0", None)
    assert "6.10 or later" in later.policy_reason
    assert run_of(tmp_path, "", [change.format("0")]).policy.name == "v2"
    path = tmp_path / "t.txt"
    assert replay("expect", path).returncode == 0
    path.write_text(trace_text([change.format("8000000000000000")]))
    assert replay("expect", path).returncode == 0
    assert replay("check", path).returncode == 0
    golden = run_trace(str(path), Request()).policy
    assert (golden.name, golden.knobs()) == (later.policy.name, later.policy.knobs())


def test_without_shadow_pages_both_do_the_same(tmp_path: Path) -> None:
    """The TDP MMU's splits alone show no kernel either."""
    trace = read_trace(str(RECORDED / "linux-6.1" / "A-tdp-2m-nxhp.txt.zst"))
    request = Request(policy="auto", expect="recorded")
    run = run_trace(trace, request)
    assert run.policy_reason.startswith(
        "nothing identifies the kernel (only splits of the TDP MMU were recorded, which are alike in all of "
        "them, "
    )
    assert run_alternative(run, request) is None
    merged = run_trace(trace, Request(policy=run.alternative, expect="recorded"))
    ours, theirs = run.document, merged.document
    for part in ("windows", "totals", "tdp", "faults", "expected", "verdict"):
        assert ours[part] == theirs[part]
    shown = replay("run", trace.path, "--expect", "recorded").stdout
    assert shown.splitlines()[-1] == "linux-6.0 gives the same result as v2: no huge SPTE in the shadow MMU"


@pytest.mark.parametrize(
    "command",
    [("run",), ("compare", "--policy", "v2"), ("review",), ("bulk", "-o", "out")],
    ids=lambda command: command[0],
)
def test_a_kernel_that_is_none(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(WHAT_IF))
    words = [str(tmp_path / word) if word == "out" else word for word in command]
    result = replay(words[0], path, *words[1:], "--kernel", "six")
    assert result.returncode == 2
    assert (
        error_of(result)
        == "--kernel six: no version of KVM in it: use a release (for example 6.12.117) or host"
    )


def test_the_other_commands_take_a_kernel(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(WHAT_IF))
    kernel = ("--kernel", "6.12.117", "--json")
    compared = json.loads(replay("compare", path, "--policy", "auto", "--policy", "v2", *kernel).stdout)
    assert [run["policy"]["name"] for run in compared["runs"]] == ["linux-2026", "v2"]
    assert {run["policy"]["knobs"]["clear_end"] for run in compared["runs"]} == {"exclusive"}
    reviewed = json.loads(replay("review", path, "B12", "--policy", "auto", *kernel).stdout)
    assert reviewed["policy"]["name"] == "linux-2026"
    out = tmp_path / "out"
    assert replay("bulk", path, "-o", out, *kernel).returncode == 0
    sql = "select policy_name, policy_reason, policy_alternative from runs"
    (row,) = json.loads(replay("query", out, sql, "--json").stdout)
    assert row["policy_name"] == "linux-2026"
    assert row["policy_reason"].startswith("--kernel 6.12.117: ")
    assert row["policy_alternative"] is None
    again = replay("bulk", path, "-o", out, "--kernel", "6.12.43")
    assert "holds results with kernel = '6.12.117', not '6.12.43'" in error_of(again)
