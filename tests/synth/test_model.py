"""The synthetic KVM: known bytes, whatever room its arrays and buffers begin with."""

from __future__ import annotations

import functools
import hashlib
import random
import re
from pathlib import Path

import pytest

from replay.errors import InputError, OutputError
from replay.synth import timeline, write, write_trace
from tests.synth.checker import check_trace

SCENARIOS = Path(__file__).parent / "scenarios"
BENCH = Path(__file__).parents[2] / "traces" / "synthetic" / "bench-mixed.toml"
KNOWN = {
    ("everything", 0): "043d03384d192dedb176614055fb285efd18fe335c492f7e9cf093aa66d4edf4",
    ("everything", 7): "76bd69f7c566cb5046b576d6b2f152e92e175f49f9ade7775c52347862fefac4",
    ("few-pages", 0): "d8050437f8750a09c995c4b371f45a8b2e0848dedb2a384042e0b5cb569b4a97",
    ("rows", 0): "50bd179b84ad92f138ecd38a35fd7c959297fab59fc3528b8ccad226b87bf8cc",
}
"""SHA-256 of traces as a model of one Python object a shadow page, and a list an rmap, wrote them."""
FAULT = re.compile(rb" address (0x[0-9a-f]{16}) ")


def generate(scenario: Path, directory: Path, seed: int = 0) -> bytes:
    trace = directory / "trace.txt"
    write_trace(scenario, trace, seed)
    return trace.read_bytes()


@pytest.mark.parametrize(("name", "seed"), KNOWN)
def test_known_bytes(name: str, seed: int, tmp_path: Path) -> None:
    trace = generate(SCENARIOS / f"{name}.toml", tmp_path, seed)
    assert hashlib.sha256(trace).hexdigest() == KNOWN[name, seed]
    assert check_trace(trace.decode()) == []


@pytest.mark.parametrize("name", ["everything", "few-pages"])
def test_room_does_not_matter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown = []
    grow = timeline.st.grow
    monkeypatch.setattr(timeline.st, "grow", lambda model: grown.append(1) or grow(model))
    monkeypatch.setattr(timeline, "FIRST_ROWS", 32)
    monkeypatch.setattr(timeline, "OUT_BYTES", 1)
    trace = generate(SCENARIOS / f"{name}.toml", tmp_path)
    assert hashlib.sha256(trace).hexdigest() == KNOWN[name, 0]
    assert grown


def test_every_event_is_among_the_known_bytes(tmp_path: Path) -> None:
    trace = generate(SCENARIOS / "everything.toml", tmp_path)
    events = set(re.findall(rb"\d: (\w+): ", trace))
    assert events == {
        b"fast_page_fault",
        b"kvm_mmu_get_page",
        b"kvm_mmu_pagetable_walk",
        b"kvm_mmu_paging_element",
        b"kvm_mmu_prepare_zap_page",
        b"kvm_mmu_set_spte",
        b"kvm_mmu_spte_requested",
        b"kvm_mmu_sync_page",
        b"kvm_mmu_unsync_page",
        b"kvm_mmu_zap_all_fast",
        b"kvm_page_fault",
        b"kvm_tdp_mmu_spte_changed",
        b"kvm_unmap_hva_range",
        b"tracing_mark_write",
    }


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (2, 5), (700, 1), (3000, 1 << 40)])
def test_random_order_is_that_of_python(count: int, seed: int, tmp_path: Path) -> None:
    step = f'do = "touch", root = "l1", start = 0, size = {count << 12}, access = "read", order = "random"'
    scenario = tmp_path / "random.toml"
    scenario.write_text(
        f'name = "random"\ndescription = ""\nstep = [ {{ {step} }} ]\n[[vm]]\npid = 1\n'
        '[[vm.slot]]\nid = 0\nbase_gfn = 0\nnpages = 0x1000\n[[vm.root]]\nname = "l1"\nkind = "tdp"\n'
    )
    addresses = list(range(0, count << 12, 1 << 12))
    random.Random(seed).shuffle(addresses)
    assert [int(text, 16) for text in FAULT.findall(generate(scenario, tmp_path, seed))] == addresses


def test_too_many_addresses_in_random_order(tmp_path: Path) -> None:
    scenario = tmp_path / "random.toml"
    size = (1 << 26) + 1 << 12
    scenario.write_text(
        'name = "random"\ndescription = ""\nstep = [\n'
        f'{{ do = "touch", root = "l1", start = 0, size = {size}, access = "read", order = "random" }}\n]\n'
        "[[vm]]\npid = 1\n[[vm.slot]]\nid = 0\nbase_gfn = 0\nnpages = 0x8000000\n"
        '[[vm.root]]\nname = "l1"\nkind = "tdp"\n'
    )
    message = "random.toml:4: .*touch: 67,108,865 addresses in random order; 67,108,864 are possible"
    with pytest.raises(InputError, match=message):
        generate(scenario, tmp_path)


def test_a_row_of_faults_that_ends_is_not_gone_on_with(tmp_path: Path) -> None:
    """L1 reads the guest page tables of L2, which it may not write to, and then the gfns behind them."""
    scenario = tmp_path / "tables.toml"
    text = (SCENARIOS / "few-pages.toml").read_text()
    text = re.sub(r"step = \[.*?\n\]", STEPS, text, flags=re.DOTALL).replace('"shadow"', '"nested"')
    scenario.write_text(text + '[[vm.root]]\nname = "l1"\nkind = "tdp"\n')
    trace = generate(scenario, tmp_path).decode()
    letters = dict(re.findall(r"kvm_mmu_set_spte: gfn (10[0-9]) .* \((....)\) level 1 ", trace))
    assert letters == {f"{gfn:x}": "r-xu" if gfn < 0x103 else "rwxu" for gfn in range(0x100, 0x106)}


STEPS = """step = [
    { do = "touch", root = "a", start = 0x1000000000, size = "4k", access = "read" },
    { do = "touch", root = "l1", start = 0x100000, size = 0x6000, access = "read" },
]"""


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "open_body", functools.partial(Path("/dev/full").open, "wb"))
    with pytest.raises(OutputError, match="No space left on device"):
        write_trace(BENCH, tmp_path / "trace.txt")
    assert list(tmp_path.iterdir()) == []


LARGE = [
    ("npages = 0x1000\n", "npages = 0x1000000000000\n", "npages", "52 bits"),
    ("size = 0x1000000000, s", f"size = {1 << 70}, s", "{ do", "60 bits"),
    ('stride = "2m"', f'stride = {1 << 70}, order = "random", advance = {1 << 70}', None, ""),
    ("n = 64", f"n = {1 << 70}", None, ""),
]


@pytest.mark.parametrize(("old", "new", "place", "message"), LARGE, ids=[row[0] for row in LARGE])
def test_numbers_of_any_size(old: str, new: str, place: str | None, message: str, tmp_path: Path) -> None:
    scenario = tmp_path / "large.toml"
    text = (SCENARIOS / "few-pages.toml").read_text()
    assert old in text
    scenario.write_text(text.replace(old, new, 1))
    if place is None:
        generate(scenario, tmp_path)
        return
    with pytest.raises(InputError, match=message) as caught:
        generate(scenario, tmp_path)
    line = next(i for i, row in enumerate(scenario.read_text().splitlines(), 1) if new.strip() in row)
    assert str(caught.value).startswith(f"{scenario}:{line}: ")
