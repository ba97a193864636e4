"""tools/alter.py: which lines it alters and how, and what it counts."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[1]
PAGE = "sp gen 0 gfn {gfn:x} l{level} 8-byte q0 direct wux nxe ad root 0 sync new"
PROBE = "({name}+0x0/0x10 [kvm]) {values}"


def page(gfn: int, level: int) -> tuple[str, str]:
    return "kvm_mmu_get_page", PAGE.format(gfn=gfn, level=level)


def probe(name: str, values: str = "") -> tuple[str, str]:
    return name, PROBE.format(name=name, values=values)


def faults() -> list[tuple[str, str]]:
    """Two huge pages of a VM without TDP MMU, which stand in a slot that begins to be logged."""
    region = [
        ("set_region", "slot=1 flags=0x{:x} gpa=0x40000000 size=0x400000 uaddr=0x7f0000000000"),
        ("commit_region", "change={}"),
    ]
    return [
        *(probe(name, text.format(0)) for name, text in region),
        page(0, 4),
        ("kvm_mmu_spte_requested", "gfn 40000 pfn 140000 level 2"),
        page(0, 3),
        page(0x40000, 2),
        ("kvm_mmu_set_spte", "gfn 40000 spte 140000ee7 (rwxu) level 2 at 20004000"),
        ("kvm_mmu_spte_requested", "gfn 40200 pfn 140200 level 2"),
        ("kvm_mmu_set_spte", "gfn 40200 spte 140200ee7 (rwxu) level 2 at 20004008"),
        *(probe(name, text.format(n)) for (name, text), n in zip(region, (1, 3), strict=True)),
    ]


def window() -> list[tuple[str, str]]:
    """What a v2 kernel leaves that splits both; the lock is dropped once, so that a page is leaked."""
    lines = [
        probe("slot_try_split", "target_level=1"),
        probe("v2_try_split_begin", "start=0x40000 end=0x40400 target_level=1"),
        probe("v2_level_begin", "level=3 flush=0"),
        probe("v2_level_begin", "level=2 flush=0"),
    ]
    for gfn, available, dropped in ((0x40000, 61, False), (0x40200, 60, True)):
        prepare = probe("v2_prepare", f"gfn={gfn:#x} level=2 available={available}")
        lines.append(prepare)
        if dropped:
            lines += [
                probe("v2_lock_dropped", f"gfn={gfn:#x} level=2 reason=1 flush=0"),
                probe("v2_restart", f"gfn={gfn:#x} level=2 why=1"),
                prepare,
                probe("v2_sp_leaked", f"gfn={gfn:#x} level=2"),
            ]
        lines += [
            page(gfn, 1),
            probe("v2_split_done", f"huge_gfn={gfn:#x} huge_level=2 present=512 nonpresent=0"),
            ("kvm_mmu_split_huge_page", f"gfn {gfn:x} spte {gfn + 0x100000:x}ee7 level 2 errno 0"),
            probe("v2_restart", f"gfn={gfn:#x} level=2 why=0"),
        ]
    return [
        *lines,
        probe("v2_try_split_end", "start=0x40000 end=0x40400 flush=0"),
        probe("slot_try_split_ret"),
        probe("slot_remove_write_access", "start_level=1"),
    ]


def recording() -> str:
    return "".join(
        f"             vmm-151     (    151) [000] ...1.    10.{number:06}: {name}: {text}\n"
        for number, (name, text) in enumerate(faults() + window(), 1)
    )


@pytest.fixture
def alter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(PROJECT / "tools")
    return importlib.import_module("alter")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "recording.txt"
    path.write_text(recording())
    return path


def run(alter: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        alter.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), capsys.readouterr().out


def rows(text: str) -> dict[tuple[str, str], list[int]]:
    """The figures of the tables by kind and alteration: tried, match, partial, unchecked, mismatch."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {
        (row[0], row[1]): [int(n) for n in row[2:]] for row in cells if len(row) == 7 and row[2].isdigit()
    }


def test_lines_that_state_an_outcome(alter: ModuleType, trace: Path, tmp_path: Path) -> None:
    recorded = alter.Altered(trace, str(tmp_path))
    assert recorded.verdict == "match"
    lines = recording().splitlines()
    found = {kind: [lines[place.number] for place in places] for kind, places in recorded.places.items()}
    assert {kind: len(of_kind) for kind, of_kind in found.items()} == {
        "v2_try_split_begin": 1,
        "v2_level_begin": 2,
        "v2_prepare": 3,
        "v2_lock_dropped": 1,
        "v2_sp_leaked": 1,
        "get_page line, shadow part": 2,
        "v2_split_done": 2,
        "split line": 2,
        "v2_restart": 3,
        "v2_try_split_end": 1,
    }
    assert all(" l1 " in line for line in found["get_page line, shadow part"])  # not those of faults
    assert all("kvm_mmu_split_huge_page" in line for line in found["split line"])


def test_which_lines_are_of_a_window(alter: ModuleType) -> None:
    """Without a return probe the window of a task ends at the next event that is none of a window's."""
    kind = alter.Kind
    events = [
        (kind.GET_PAGE, 1), (kind.SHADOW_TRY_SPLIT, 1), (kind.GET_PAGE, 1), (kind.FLUSH_REMOTE_TLBS, 1),
        (kind.GET_PAGE, 2), (kind.FLUSH_REMOTE_TLBS, 2), (kind.TDP_TRY_SPLIT, 1), (kind.GET_PAGE, 1),
        (kind.FLUSH_REMOTE_TLBS, 1), (kind.PAGE_FAULT, 1), (kind.GET_PAGE, 1),
    ]  # fmt: skip
    parts: dict[int, str] = {}
    words = []
    for event, pid in events:
        parts[pid] = alter._part_after(event, pid, parts.get(pid, ""), set())
        words.append(alter._outcome(event, 0, parts[pid]))
    shadow = ["get_page line, shadow part", "flush_remote_tlbs, shadow part"]
    assert words == ["", "", *shadow, "", "", "", "get_page line, tdp part", "", "", ""]


def test_alterations_of_a_probe_line(alter: ModuleType) -> None:
    line = " vmm-1 [000] 1.5: v2_range_yield: (v2_range_yield+0x0/0x10 [kvm]) gfn=0x41a00 flush=1 level=2\n"
    assert dict(alter.alterations(line)) == {
        "drop": "",
        "double": line * 2,
        "gfn + 1": line.replace("0x41a00", "0x41a01"),
        "gfn + 0x200": line.replace("0x41a00", "0x41c00"),
        "flush": line.replace("flush=1", "flush=0"),
        "level": line.replace("level=2", "level=3"),
    }


def test_alterations_of_a_split_line(alter: ModuleType) -> None:
    line = " vmm-1 [000] 1.5: kvm_mmu_split_huge_page: gfn 40000 spte 140000ee7 level 2 errno 0\n"
    assert dict(alter.alterations(line)) == {
        "drop": "",
        "double": line * 2,
        "gfn + 1": line.replace("40000 s", "40001 s"),
        "gfn + 0x200": line.replace("40000 s", "40200 s"),
        "spte, another pfn": line.replace("140000ee7", "140200ee7"),
        "spte, writable": line.replace("140000ee7", "140000ee5"),
        "level": line.replace("level 2", "level 3"),
        "errno to -11": line.replace("errno 0", "errno -11"),
        "errno to -28": line.replace("errno 0", "errno -28"),
        "errno to -95": line.replace("errno 0", "errno -95"),
    }


def test_alterations_of_a_page_line(alter: ModuleType) -> None:
    text = "sp gen 0 gfn 40000 l1 8-byte q0 direct wux nxe ad root 0 sync new"
    start = " vmm-1 [000] 1.5: kvm_mmu_get_page: "
    changed = {what: line[len(start) : -1] for what, line in alter.alterations(f"{start}{text}\n")}
    del changed["drop"], changed["double"]
    assert changed == {
        "gen": text.replace("gen 0", "gen 1"),
        "gfn + 1": text.replace("40000", "40001"),
        "gfn + 0x200": text.replace("40000", "40200"),
        "level": text.replace("l1", "l2"),
        "size of guest ptes": text.replace("8-byte", "4-byte"),
        "quadrant": text.replace("q0", "q1"),
        "direct": text.replace("direct ", ""),
        "write access": text.replace("wux", "-ux"),
        "exec access": text.replace("wux", "wu-"),
        "nxe": text.replace("nxe", "!nxe"),
        "ad": text.replace(" ad ", " !ad "),
        "root": text.replace("root 0", "root 1"),
        "sync": text.replace("sync", "unsync"),
        "new": text.replace("new", "existing"),
    }


def test_two_lines_of_a_task_change_places(alter: ModuleType, trace: Path, tmp_path: Path) -> None:
    """Each at the other's time, whatever another task does in between."""
    lines = recording().splitlines(keepends=True)
    done = next(n for n, line in enumerate(lines) if "v2_split_done:" in line)
    foreign = lines[done].partition("v2_split_done")[0].replace("vmm-151 ", "cpu-152 ")
    lines.insert(done, f"{foreign}kvm_mmu_spte_requested: gfn 40000 pfn 140000 level 2\n")
    trace.write_text("".join(lines))
    recorded = alter.Altered(trace, str(tmp_path))
    (place, *_) = recorded.places["v2_split_done"]
    assert place.number == done + 1
    changes = {what: changed for what, changed in recorded.changes(place) if what.startswith("swap")}
    page, made, split = lines[done - 1], lines[done + 1], lines[done + 2]

    def at(time_of: str, event_of: str) -> str:
        return time_of[: time_of.index(": ")] + event_of[event_of.index(": ") :]

    assert changes == {
        "swap with the line before": {done + 1: at(made, page), done - 1: at(page, made)},
        "swap with the line after": {
            done + 1: at(made, split),
            done + 2: at(split, made),
        },
    }
    assert alter.swapped(page, page.replace("10.", "11.")) is None


def test_altered_split_lines_are_noticed(
    alter: ModuleType, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(alter, capsys, trace, "--all", "--kind", "split line")
    figures = rows(text)
    assert code == 0
    assert "Recordings as they are: 1 match." in text
    assert figures.pop(("all outcomes", "")) == [24, 0, 0, 0, 24]
    assert figures.pop(("all inputs of the replay", "")) == [0, 0, 0, 0, 0]
    assert len(figures) == 12
    assert all(row == [2, 0, 0, 0, 2] for row in figures.values())


def test_what_goes_unnoticed_is_counted_and_shown(
    alter: ModuleType, trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alter.Altered, "verdict_with", lambda *_: "match")
    code, text = run(alter, capsys, trace, "--kind", "v2_lock_dropped", "--kind", "v2_sp_leaked")
    assert code == 1
    figures = rows(text)
    assert figures["v2_sp_leaked", "drop"] == figures["v2_lock_dropped", "gfn + 1"] == [1, 1, 0, 0, 0]
    outcomes, inputs = text.split("| line: inputs of the replay")
    assert "| v2_lock_dropped | reason |" in inputs
    assert "| v2_lock_dropped | flush |" in outcomes  # the flush at a lock drop is the kernel's answer
    number = 1 + next(n for n, line in enumerate(recording().splitlines()) if "v2_sp_leaked:" in line)
    assert (
        f"{trace.parent.name}/recording.txt, line {number}, v2_sp_leaked, drop\n    before: vmm-151" in text
    )
    assert "    after:  (dropped)" in text


def test_what_is_no_trace(alter: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(SystemExit, match=r"^alter: error: .*empty file$"):
        alter.main([str(tmp_path)])
