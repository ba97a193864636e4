"""The scanner against the regular expressions of ``tests/naive_parse.py``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.schema import Columns
from replay.trace.reader import read_trace
from tests import naive_parse

RECORDED = Path(__file__).parents[2] / "traces/recorded/v2/C1-nested-2m.txt.zst"
COLUMNS = [name for name in Columns._fields if name not in ("vm", "comm", "text")]


def compare(text: str, chunk_bytes: int = 4 << 20) -> None:
    """``read_trace`` and the oracle say the same about ``text``."""
    expected, counts = naive_parse.parse(text)
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        trace = read_trace(file.name, chunk_bytes=chunk_bytes)
    rows = []
    for batch in trace.batches():
        columns = [getattr(batch, name).tolist() for name in COLUMNS]
        texts = [trace.texts[n] if n >= 0 else None for n in batch.text]
        comms = [trace.comms[n] if n >= 0 else None for n in batch.comm]
        rows += [
            {name: value for name, value in zip(COLUMNS, values, strict=True) if value} | strings
            for values, strings in zip(
                zip(*columns, strict=True),
                ({"text": t, "comm": c} for t, c in zip(texts, comms, strict=True)),
                strict=True,
            )
        ]
    for row in expected:
        for column in ("text", "comm"):
            row.setdefault(column, None)
    expected = [{name: v for name, v in row.items() if v or name in ("text", "comm")} for row in expected]
    assert rows == expected
    assert (trace.lines, trace.ignored_lines) == (counts["lines"], counts["ignored"])
    assert (trace.malformed_lines, trace.lost_events) == (counts["malformed"], counts["lost"])


@pytest.fixture(scope="module")
def recorded() -> str:
    with zstandard.open(RECORDED) as file:
        return file.read().decode()


def test_the_recording(recorded: str) -> None:
    compare(recorded)


hexes = st.integers(0, 2**64 - 1).map("{:x}".format) | st.integers(0, 4096).map("{:x}".format)
decimals = st.integers(-200, 10**6).map(str)
levels = st.integers(0, 5).map(str)
access = st.sampled_from(["---", "wux", "w-x", "-u-", "--x", "rwux", "r---", "----", "rw-x"])
roles = st.builds(
    "{} gfn {} {}{}{} q{}{} {}{} {}{}{}root {} {}{}".format,
    st.sampled_from(["sp", "sp gen 0", "sp gen 1", "sp gen 1f"]),
    hexes,
    st.sampled_from(["l", ""]),
    st.integers(1, 5),
    st.sampled_from([" 8-byte", " 4-byte", " pae", ""]),
    st.integers(0, 3),
    st.sampled_from(["", " direct"]),
    access,
    st.sampled_from(["", " invalid"]),
    st.sampled_from(["", "!"]),
    st.sampled_from(["nxe ", "nxe ", "nxe ", "nx e ", "smep "]),
    st.sampled_from(["", "ad ", "!ad ", "wp "]),
    st.integers(0, 99),
    st.sampled_from(["sync", "unsync"]),
    st.sampled_from(["", " new", " existing", " new, seq 1", ", new"]),
)
pferr = st.lists(st.sampled_from(["P", "W", "U", "RSVD", "F", "0x100000000", "Q"])).map("|".join)


def event(form: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(form.format, *parts)


events = st.one_of(
    event("kvm_mmu_pagetable_walk: addr {} pferr {} {}", hexes, hexes, pferr),
    event("kvm_mmu_paging_element: pte {} level {}", hexes, levels),
    event("kvm_mmu_set_accessed_bit: gpa {}", hexes),
    event("{}: {}", st.sampled_from(sorted(naive_parse.PAGE_EVENTS)), roles),
    event("mark_mmio_spte: sptep:{} gfn {} access {} gen {}", hexes, hexes, hexes, hexes),
    event("handle_mmio_page_fault: addr:{} gfn {} access {}", hexes, hexes, hexes),
    event(
        "fast_page_fault: vcpu {} gva {} error_code {} sptep {} old 0x{} new {} spurious {} fixed {}",
        decimals, hexes, pferr, hexes | st.just("(null)"), hexes, hexes, levels, levels,
    ),
    event("kvm_mmu_zap_all_fast: kvm-mmu-valid-gen {} used_pages {}", levels, hexes),
    event("check_mmio_spte: spte {} kvm_gen {} spte-gen {} valid {}", hexes, hexes, hexes, levels),
    event("kvm_mmu_set_spte: gfn {} spte {} ({}) level {} at {}", hexes, hexes, access, levels, hexes),
    event("kvm_mmu_spte_requested: gfn {} pfn {} level {}{}", hexes, hexes, levels,
          st.sampled_from(["", " access f", "x", ", access 7", ",1"])),
    event("kvm_tdp_mmu_spte_changed: as id {} gfn {} level {} old_spte {} new_spte {}",
          levels, hexes, levels, hexes, hexes),
    event("kvm_mmu_split_huge_page: gfn {} spte {} level {} errno {}", hexes, hexes, levels, decimals),
    event("kvm_page_fault: vcpu {} rip 0x{} address 0x{} error_code 0x{}", levels, hexes, hexes, hexes),
    event("kvm_page_fault: address {} error_code {}", hexes, hexes),
    event("kvm_unmap_hva_range: mmu notifier unmap range: 0x{} -- 0x{}", hexes, hexes),
    event("kvm_exit: vcpu {} reason npf", levels),
)  # fmt: skip
values = decimals | hexes.map("0x{}".format) | st.sampled_from(["", "(fault)", "12z"])


def pairs(keys: list[str]) -> st.SearchStrategy[str]:
    known = st.permutations(keys).flatmap(
        lambda order: st.tuples(*(values.map(f"{key}={{}}".format) for key in order)).map(" ".join)
    )
    return st.builds("{}{}".format, known, st.sampled_from(["", "", " other=(fault)", " word"]))


probes = st.sampled_from(sorted(naive_parse.PROBES)).flatmap(
    lambda name: pairs(list(naive_parse.PROBES[name][1])).map(f"{name}: (f+0x0/0x50 [kvm]) {{}}".format)
)
marks = st.sampled_from(sorted(naive_parse.MARKS)).flatmap(
    lambda word: pairs(list(naive_parse.MARKS[word][1])).map(
        f"tracing_mark_write: replay: {word} {{}}".format
    )
)
free_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
comms = st.sampled_from(["vmm", "CPU 0/KVM", "<...>", "a-1 [002]", "x: 1.5: y", "k/u8:1-ev"])
headers = st.builds(
    "{:>16}-{:<7} {}[{:03d}] {}{:>5}.{}: ".format,
    comms,
    st.integers(0, 10**6),
    st.sampled_from(["", "(    160) ", "(-------) "]),
    st.integers(0, 300),
    st.sampled_from(["", "..... ", "d..1. ", "dNh2 ", ".l.1. "]),
    st.integers(0, 10**6),
    st.integers(0, 10**6 - 1).map("{:06d}".format) | st.integers(0, 10**9 - 1).map("{:09d}".format),
)
lines = st.one_of(
    st.builds("{}{}".format, headers, events | probes | marks),
    st.builds("{}tracing_mark_write: {}".format, headers, free_text),
    st.builds("CPU:{} [LOST {}EVENTS]".format, st.integers(0, 300), st.sampled_from(["", "7 ", "123456 "])),
    st.sampled_from(["", "# tracer: nop", " => kvm_mmu_get_page+0x1/0x2", "<stack trace>"]),
)


@settings(max_examples=150)
@given(
    st.lists(lines, min_size=1, max_size=12), st.sampled_from(["\n", "\r\n"]), st.sampled_from([100, 4 << 20])
)
def test_generated_lines(generated: list[str], newline: str, chunk_bytes: int) -> None:
    compare("# tracer: nop\n" + "".join(line + newline for line in generated), chunk_bytes)


@pytest.mark.parametrize(
    "event",
    [
        "kvm_mmu_pagetable_walk: addr 7f00 pferr 6 P|W|U",
        "kvm_mmu_get_page: sp gen 0 gfn 40000 l1 8-byte q0 direct wux nxe ad root 12 sync new",
        "kvm_mmu_unsync_page: sp gfn f3 2 pae q1 -ux !nxe root 0 unsync",
        "mark_mmio_spte: sptep:00000000abcd1234 gfn fee access 6 gen 11",
        "fast_page_fault: vcpu 10 gva 7f01 error_code P|W sptep (null) old 0xb new c spurious 0 fixed 1",
        "check_mmio_spte: spte ffff kvm_gen 1 spte-gen a valid 1",
        "kvm_mmu_set_spte: gfn 4f000 spte 800000012d8f0067 (rwxu) level 1 at 2737a000",
        "kvm_tdp_mmu_spte_changed: as id 0 gfn 7869c level 2 old_spte 13869ce65 new_spte 5a0",
        "kvm_mmu_split_huge_page: gfn 40000 spte 40000e67 level 2 errno -12",
        "kvm_page_fault: vcpu 0 rip 0xffffffff81001000 address 0x0000000040000000 error_code 0x6",
        "kvm_page_fault: address 7f error_code f",
        "kvm_unmap_hva_range: mmu notifier unmap range: 0x7f00 -- 0x8000",
        "topup_cache: (f+0x0/0xf0 [kvm]) capacity=40 min=14",
        "v2_split_nonpresent: (f+0x0/0xf0 [kvm]) gfn=0x40600 level=1 huge_gfn=0x40600",
        "try_split: (f+0x0/0xf0 [kvm]) start=0x40600 by=(some) word end=16 target_level=1",
        "v2_final_flush: (f+0x0/0xf0 [kvm]) base_gfn=0x40600 npages=-1",
        "v2_prepare: (f+0x0/0xf0 [kvm]) gfn=1 level=0x2 available=3 available=-3",
        "v2_prepare: (f+0x0/0xf0 [kvm]) gfn=1 level=0 available=99 a=1 b=2 c=3 d=4 e=5 f=6 g=7 h=8 i=9",
    ],
)
def test_lines_that_differ_in_one_byte_from_one_seen_before(event: str, tmp_path: Path) -> None:
    """Behind a group of its own no name begins a text that was seen before, and all reads the same."""
    head = "             vmm-152     (    152) [000] d..1.    22.908635: "
    places = range(event.index(":") + 2, len(event))
    changed = [event[:n] + byte + event[n + 1 :] for n in places for byte in " \t09aGgx:-|\0\xff"]
    found = []
    for group in ("", "group{}:"):
        path = tmp_path / "t"
        lines = (line for both in zip([event] * len(changed), changed, strict=True) for line in both)
        text = "".join(f"{head}{group.format(n)}{line}\n" for n, line in enumerate(lines))
        path.write_bytes(text.encode("latin-1"))
        trace = read_trace(str(path))
        assert trace.events > len(changed)
        assert trace.malformed_lines > 0
        found.append((trace.malformed_lines, trace.table().to_pylist()))
    assert found[0] == found[1]


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_lines_do_no_harm(recorded: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(recorded) - 3000))
    damaged = bytearray(recorded[start : start + 3000].encode())
    for place in data.draw(st.lists(st.integers(0, 2999), max_size=40)):
        damaged[place] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"# tracer: nop\n" + damaged)
        file.flush()
        trace = read_trace(file.name)
    assert trace.lines == trace.events + trace.ignored_lines + trace.malformed_lines
    assert trace.lines == 1 + damaged.count(b"\n") + (not damaged.endswith(b"\n"))


def test_without_compilation(recorded: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    kinds = ["get_page", "v2_split_done", "memslot", "page_fault", "set_spte", "topup", "walk", "split_huge"]
    chosen = [line for kind in kinds for line in recorded.splitlines() if kind in line][:300:5]
    path.write_text(
        "".join(line + "\n" for line in [*chosen, "CPU:1 [LOST 5 EVENTS]", "x kvm_mmu_get_page: y"])
    )
    program = (
        "import sys, hashlib; from replay.trace.reader import read_trace as r; t = r(sys.argv[1]);"
        "print(t.lines, t.events, t.malformed, t.vms, t.table().to_pylist())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env=os.environ | {"NUMBA_DISABLE_JIT": disable},
            capture_output=True,
            check=True,
        ).stdout
        for disable in ("0", "1")
    ]
    assert outputs[0] == outputs[1]
