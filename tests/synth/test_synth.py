"""Synthetic traces: determinism, what the reader makes of them, what must hold in them, bad scenarios."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from replay.errors import InputError, OutputError
from replay.synth import write_trace
from tests.synth.checker import check_trace

SYNTHETIC = Path(__file__).parents[2] / "traces" / "synthetic"
SCENARIOS = sorted(path.stem for path in SYNTHETIC.glob("*.toml") if path.stem != "bench-mixed")
HEADER_LINES = 12


def layout_of(name: str) -> str:
    """The layout of Intel's SPTEs that a committed scenario asks for, else ``""``."""
    return tomllib.loads((SYNTHETIC / f"{name}.toml").read_text()).get("spte_layout", "")


def generate(scenario: Path, directory: Path, seed: int = 0) -> str:
    output = directory / f"{scenario.stem}-{seed}.txt"
    write_trace(scenario, output, seed)
    return output.read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """The benchmark scenario with four rounds."""
    text = (SYNTHETIC / "bench-mixed.toml").read_text()
    scenario = tmp_path / "bench.toml"
    scenario.write_text(re.sub(r"times = \d+", "times = 4", text))
    return scenario


@pytest.mark.parametrize("name", SCENARIOS)
def test_committed_trace_is_what_the_scenario_gives(name: str, tmp_path: Path) -> None:
    assert generate(SYNTHETIC / f"{name}.toml", tmp_path) == (SYNTHETIC / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", SCENARIOS)
def test_trace_is_small_and_consistent(name: str) -> None:
    text = (SYNTHETIC / f"{name}.txt").read_text()
    assert 20 <= len(text.splitlines()) <= 200
    assert check_trace(text, layout_of(name)) == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_reader_takes_every_line(name: str) -> None:
    from replay.trace.reader import read_trace

    trace = read_trace(str(SYNTHETIC / f"{name}.txt"))
    assert (trace.malformed_lines, trace.ignored_lines, trace.ignored_events) == (0, HEADER_LINES, {})
    assert trace.events == trace.lines - HEADER_LINES


@pytest.mark.parametrize("name", SCENARIOS)
def test_recorded_without_eager_splitting(name: str) -> None:
    assert "kvm_mmu_split_huge_page" not in (SYNTHETIC / f"{name}.txt").read_text()


def test_every_scenario_is_explained() -> None:
    readme = (SYNTHETIC / "README.md").read_text()
    assert [name for name in [*SCENARIOS, "bench-mixed"] if f"\n| `{name}` |" not in readme] == []


def test_seed_decides_random_orders_and_nothing_else(bench: Path, tmp_path: Path) -> None:
    first, again, other = (generate(bench, tmp_path, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    still = SYNTHETIC / "two-vms.toml"
    assert generate(still, tmp_path, 1) == generate(still, tmp_path, 2)


def test_repeat_multiplies_and_stays_consistent(bench: Path, tmp_path: Path) -> None:
    four = generate(bench, tmp_path)
    assert check_trace(four) == []
    bench.write_text(bench.read_text().replace("times = 4", "times = 8"))
    eight = generate(bench, tmp_path)
    added = len(eight.splitlines()) - len(four.splitlines())
    assert added == pytest.approx(4 * 1450, rel=0.05)


def test_checker_sees_what_is_wrong() -> None:
    text = (SYNTHETIC / "rule4-occupied-rmap.txt").read_text()
    changes = {
        "index": (" at 20007000", " at 20007010"),
        "value": ("(rwxu) level 2", "(r-xu) level 2"),
        "pfn": ("gfn 40208 pfn 140208", "gfn 40208 pfn 140209"),
        "word": ("l3 8-byte q0 wux nxe ad root 0 sync new", "l3 8-byte q0 wux nxe ad root 0 sync existing"),
        "twice": ("gfn 206 l3", "gfn 201 l3"),
        "levels": ("pte 203067 level 2", "pte 203067 level 3"),
        "element": ("pte 40208067", "pte 40209067"),
        "count": ("entries-written: 7", "entries-written: 8"),
        "time": ("100.004104:", "100.004101:"),
    }
    for what, (old, new) in changes.items():
        assert old in text, what
        assert check_trace(text.replace(old, new, 1)) != [], what


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    write_trace(SYNTHETIC / "what-if.toml", "-")
    assert capsys.readouterr().out == (SYNTHETIC / "what-if.txt").read_text()


def test_failed_run_leaves_the_old_file(tmp_path: Path) -> None:
    output = tmp_path / "trace.txt"
    output.write_text("old")
    scenario = tmp_path / "bad.toml"
    scenario.write_text(BASE.replace("start = 0x1000", "start = 0x900000"))
    with pytest.raises(InputError):
        write_trace(scenario, output)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.toml", "trace.txt"]


def test_output_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        write_trace(SYNTHETIC / "what-if.toml", tmp_path / "nowhere" / "trace.txt")


BASE = """\
name = "base"
description = "a shadow root and two slots"

[[vm]]
pid = 10

[[vm.slot]]
id = 0
base_gfn = 0
npages = 0x400

[[vm.slot]]
id = 1
base_gfn = 0x40000
npages = 0x400
backing = "2m"

[[vm.root]]
name = "cr3"
kind = "shadow"

[[vm.root.map]]
addr = 0
gfn = 0
size = 0x400000

[[vm.root.map]]
addr = 0x40000000
gfn = 0x40000
size = 0x400000
page = "2m"
access = "rx"

[[step]]
do = "touch"
root = "cr3"
start = 0x1000
size = "4k"
access = "write"
"""

BAD = [
    ("npages = 0x400\n\n", "npages = 0x400\npgaes = 1\n\n", "pgaes = 1", "unknown key"),
    ("pid = 10", "pid = 10\ncolour = 3", "colour = 3", "unknown key"),
    ("base_gfn = 0x40000", "base_gfn = 0x200", "base_gfn = 0x200", "slot 1 overlaps slot 0"),
    ("id = 1\n", "id = 0 # again\n", "id = 0 # again", "declared twice"),
    ("gfn = 0x40000\nsize", "gfn = 0x40200\nsize", "gfn = 0x40200", "not inside one slot"),
    ("addr = 0x40000000", "addr = 0x200000", "addr = 0x200000", "overlaps another mapping"),
    ("]]\naddr = 0x40000000", "]] #\naddr = 0x40001000", "[[vm.root.map]] #", "not multiples"),
    ("pid = 10\n", "", "[[vm]]", "key 'pid' is missing"),
    ("pid = 10", 'pid = "ten"', 'pid = "ten"', "expected int"),
    ("pid = 10", "pid = -1", "pid = -1", "negative"),
    ('backing = "2m"', 'backing = "3m"', 'backing = "3m"', "'3m' is none of 4k, 2m, 1g"),
    ('kind = "shadow"', 'kind = "ept"', 'kind = "ept"', "'ept' is none of"),
    ('kind = "shadow"', 'kind = "tdp"', 'kind = "tdp"', "takes no"),
    ('kind = "shadow"', 'kind = "nested"', "[[vm]]", "needs the VM's own tdp or direct root"),
    ("pid = 10", "pid = 10\ntable_gfn = 0x900", "table_gfn = 0x900", "outside every slot"),
    ('root = "cr3"', 'root = "cr4"', 'root = "cr4"', "has no root 'cr4'"),
    ('do = "touch"', 'do = "tuch"', 'do = "tuch"', "'tuch' is none of"),
    ("start = 0x1000", "start = 0x900000", "[[step]]", "nothing is mapped at 0x900000"),
    ("start = 0x1000", "start = 0x40000000", "[[step]]", "forbid to write"),
    ("start = 0x1000", "start = 0x201000", "[[step]]", "upper guest page table"),
    ("start = 0x1000", "start = ", "start = ", "not TOML"),
    ('size = "4k"', 'size = "4k"\nvcpu = 3', "[[step]]", "no vCPU 3"),
    ('do = "touch"', 'do = "limit"\nn = 63', "n = 63", "at least 64"),
    ('name = "base"', 'name = "two words"', 'name = "two words"', "not one word"),
]


@pytest.mark.parametrize(("old", "new", "place", "message"), BAD, ids=[row[3] for row in BAD])
def test_bad_scenario(old: str, new: str, place: str, message: str, tmp_path: Path) -> None:
    scenario = tmp_path / "bad.toml"
    assert old in BASE
    bad = BASE.replace(old, new, 1)
    line = bad.splitlines().index(place) + 1
    scenario.write_text(bad)
    with pytest.raises(InputError) as caught:
        write_trace(scenario, tmp_path / "trace.txt")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{scenario}:{line}: ")


def test_base_scenario_is_good(tmp_path: Path) -> None:
    scenario = tmp_path / "base.toml"
    scenario.write_text(BASE)
    assert check_trace(generate(scenario, tmp_path)) == []


def test_missing_scenario(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        write_trace(tmp_path / "none.toml", tmp_path / "trace.txt")


def test_error_in_an_inline_step_names_its_line(tmp_path: Path) -> None:
    text = (SYNTHETIC / "full-split.toml").read_text()
    bad = text.replace('stride = "2m"', 'strides = "2m"', 1)
    scenario = tmp_path / "bad.toml"
    scenario.write_text(bad)
    line = next(number for number, row in enumerate(bad.splitlines(), 1) if "strides" in row)
    with pytest.raises(InputError, match=f":{line}: .*unknown key"):
        write_trace(scenario, tmp_path / "trace.txt")


def test_error_below_and_behind_a_repeat_names_its_line(tmp_path: Path) -> None:
    text = (SYNTHETIC / "bench-mixed.toml").read_text()
    scenario = tmp_path / "bad.toml"
    below = ('advance = "2m"', 'advanse = "2m"')
    behind = ("    ] },\n", '    ] },\n    { do = "advanse" },\n')
    for old, new in (below, behind):
        bad = text.replace(old, new, 1)
        scenario.write_text(bad)
        line = next(number for number, row in enumerate(bad.splitlines(), 1) if "advanse" in row)
        with pytest.raises(InputError, match=f":{line}: .*advanse"):
            write_trace(scenario, tmp_path / "trace.txt")


LIFE = """\
name = "life"
description = "what happens to pages that live"
step = [
    { do = "touch", root = "l1", start = 0x40000000, size = 0x600000, stride = "2m", access = "write" },
    { do = "touch", root = "l2", start = 0x40000000, size = 0x600000, stride = "2m", access = "write" },
    { do = "dirty_log", slot = 1, on = true },
    { do = "touch", root = "l1", start = 0x40003000, size = 0x400000, stride = "2m", access = "write" },
    { do = "touch", root = "l2", start = 0x40003000, size = 0x400000, stride = "2m", access = "write" },
    { do = "dirty_log", slot = 1, on = false },
    { do = "touch", root = "l1", start = 0x40003000, size = 0x400000, stride = "2m", access = "write" },
    { do = "touch", root = "l2", start = 0x40003000, size = 0x400000, stride = "2m", access = "write" },
    { do = "unmap", hva = 0x7f0040200000, size = "2m" },
    { do = "touch", root = "l2", start = 0x40200000, size = "4k", access = "read" },
    { do = "zap", root = "l2" },
    { do = "touch", root = "l2", start = 0x40000000, size = "4k", access = "exec" },
    { do = "slot_delete", slot = 0 },
    { do = "touch", root = "l2", start = 0x40000000, size = "4k", access = "read" },
    { do = "touch", root = "l1", start = 0x40000000, size = "4k", access = "read" },
]

[[vm]]
pid = 10
table_gfn = 0x40600

[[vm.slot]]
id = 0
base_gfn = 0
npages = 0x10

[[vm.slot]]
id = 1
base_gfn = 0x40000
npages = 0x800
backing = "2m"
hva = 0x7f0040000000

[[vm.root]]
name = "l1"
kind = "KIND"

[[vm.root]]
name = "l2"
kind = "nested"
map = [
    { addr = 0x40000000, gfn = 0x40000, size = 0x600000, page = "2m" },
]
"""


@pytest.fixture(params=["tdp", "direct"])
def life(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Lines of a VM whose pages are split at faults, collapsed, unmapped, zapped and outlive a slot."""
    scenario = tmp_path / "life.toml"
    scenario.write_text(LIFE.replace("KIND", request.param))
    text = generate(scenario, tmp_path)
    assert check_trace(text) == []
    return [re.sub(r".*\d: (?=\w+: )", "", line) for line in text.splitlines()[HEADER_LINES:]]


def test_unmapped_page_comes_back_in_other_frames(life: list[str]) -> None:
    spte = re.compile(r"kvm_mmu_set_spte: gfn 40200 spte (\w+)ee[57] .* level 2 ")
    frames = [match[1] for line in life if (match := spte.match(line))]
    notifier = next(i for i, line in enumerate(life) if line.startswith("kvm_unmap_hva_range"))
    assert len(set(frames)) == 2
    assert frames[-1] != frames[0]
    assert any(frames[-1] in line for line in life[notifier:])
    assert not any(frames[-1] in line for line in life[:notifier])


def test_slot_deletion_starts_a_generation(life: list[str]) -> None:
    at = next(i for i, line in enumerate(life) if line.startswith("kvm_mmu_zap_all_fast"))
    assert "replay: memslot id=0 base_gfn=0x0 npages=0x0 flags=0x0" in life[at - 1]
    assert all(" gen 0 " in line for line in life[:at] if line.startswith("kvm_mmu_get_page"))
    indirect = [line for line in life[at:] if line.startswith("kvm_mmu_get_page") and " direct " not in line]
    assert indirect
    assert all(" gen 1 " in line and line.endswith(" new") for line in indirect)
