"""A guest under shadow paging: its root, the tables it writes, and the huge pages that faults replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.shadow_guest import F, ShadowGuest, page

USER, KERNEL = 0x400000, 0xFFFF888000400000
A, B, C = 0x100, 0x101, 0x102  # roots
DATA = 0x4000  # first gfn of a huge page


def new(gfn: int, level: int, **options: Any) -> str:
    return page("get_page", gfn, level, end="sync new", **options)


def existing(gfn: int, level: int, **options: Any) -> str:
    return page("get_page", gfn, level, end="sync existing", **options)


LAZY = new(DATA, 1, direct=True, access="rw-x")


def kernel_half(guest: ShadowGuest, got: list[str], at: int | None = 0x901) -> None:
    """A fault on the huge page that the kernel half of every root maps by tables 0x200 and 0x201."""
    guest.fault(KERNEL, [0x200, 0x201], DATA, got=got, at=at, level=2)


def user_half(guest: ShadowGuest, table: int, got: list[str], leaf: int, at: int) -> None:
    tables = [table, table + 1, table + 2]
    guest.fault(USER, tables, leaf, got=got, at=at)


def tables_of(table: int) -> list[str]:
    return [new(table + n, 3 - n) for n in range(3)]


@pytest.fixture
def guest() -> ShadowGuest:
    """Two processes, A and B, each with a page of its own; the kernel half is filled in B only."""
    made = ShadowGuest()
    made.root(A)
    user_half(made, 0x300, tables_of(0x300), 0x5000, 0x911)
    made.root(B)
    user_half(made, 0x310, tables_of(0x310), 0x5001, 0x912)
    kernel_half(made, [new(0x200, 3), new(0x201, 2)])
    return made


def lazy_split(guest: ShadowGuest) -> None:
    """A fault below the root in use that replaces the huge page of the kernel half."""
    guest.fault(KERNEL + 0x3000, [0x200, 0x201], DATA, direct=[LAZY], at=0x903)


def test_a_page_for_an_empty_root_entry_is_of_the_root_in_use(guest: ShadowGuest, tmp_path: Path) -> None:
    guest.root(C)
    kernel_half(guest, [existing(0x200, 3)], at=None)  # which the root of B has
    guest.lines.append(page("prepare_zap_page", B, 4))
    lazy_split(guest)
    assert guest.mapped(tmp_path, "2m") == {}
    assert guest.run(tmp_path).document["divergences"] == {}


def test_a_walk_shows_a_root_that_came_back_without_a_line(guest: ShadowGuest, tmp_path: Path) -> None:
    user_half(guest, 0x300, [], 0x5002, 0x911)
    kernel_half(guest, [existing(0x200, 3)], at=None)
    guest.lines.append(page("prepare_zap_page", B, 4))
    lazy_split(guest)
    assert guest.mapped(tmp_path, "2m") == {}
    assert guest.run(tmp_path).document["divergences"] == {}


def test_an_emulated_write_zaps_the_entry(guest: ShadowGuest, tmp_path: Path) -> None:
    assert guest.mapped(tmp_path, "2m") == {"1": 1}
    offset = (KERNEL >> 21 & 511) * 8
    guest.write(KERNEL + 0x201000 + offset + 8, [0x200, 0x201], 0x201)
    guest.walk(0x1000, [0x300, 0x301, 0x302], 0x5100, F)
    assert guest.mapped(tmp_path, "2m") == {"1": 1}  # that was the entry after it
    guest.write(KERNEL + 0x201000 + offset, [0x200, 0x201], 0x201)
    guest.walk(0x1000, [0x300, 0x301, 0x302], 0x5100, F)
    assert guest.mapped(tmp_path, "2m") == {}


def test_a_write_that_faults_its_page_in_zaps_nothing(guest: ShadowGuest, tmp_path: Path) -> None:
    addr = KERNEL + 0x201000 + (KERNEL >> 21 & 511) * 8
    guest.walk(addr, [0x200, 0x201, 0x240], 0x201, 2)
    guest.lines += [new(0x240, 1), "kvm_mmu_spte_requested: gfn 201 pfn 100201 level 1"]
    assert guest.mapped(tmp_path, "2m") == {"1": 1}


def test_a_flooded_page_is_zapped_before_its_twin(guest: ShadowGuest, tmp_path: Path) -> None:
    """Two pages print alike since CR0.WP is not printed; the one that no fault walks gets three writes."""
    guest.root(B)  # new, though one of that gfn lives: of another role
    kernel_half(guest, [new(0x200, 3), new(0x201, 2)], at=0x902)
    assert guest.mapped(tmp_path, "2m") == {"2-3": 1}
    for at in (0x40, 0x41, 0x42):
        guest.write(KERNEL + 0x201000 + 8 * at, [0x200, 0x201], 0x201)
        if at < 0x42:  # the second is walked, and its count begins anew
            guest.fault(KERNEL + (at << 21), [0x200, 0x201], at - 0x30 << 9, at=0x902, level=2)
    guest.lines.append(page("prepare_zap_page", 0x201, 2))
    kernel_half(guest, [], at=None)
    assert guest.mapped(tmp_path, "2m") == {"1": 2}  # the second's, less what the third write zapped


def test_invlpg_drops_the_spte_of_an_unsync_table(guest: ShadowGuest, tmp_path: Path) -> None:
    guest.walk(0xFFFFFFFF81000000, [0x200, 0x201], DATA, F)
    guest.flush(0x5001, 1)
    assert guest.mapped(tmp_path, "4k") == {"1": 2}  # a synced table is write-protected: nothing can change
    guest.lines.append(page("unsync_page", 0x312, 1))
    guest.walk(0xFFFFFFFF81000000, [0x200, 0x201], DATA, F)
    guest.flush(0x5001, 1)
    assert guest.mapped(tmp_path, "4k") == {"1": 1}


def test_a_flush_for_write_protection_drops_nothing(guest: ShadowGuest, tmp_path: Path) -> None:
    guest.lines.append(page("unsync_page", 0x312, 1))
    guest.fault(USER + (1 << 21), [0x310, 0x311, 0x5001], 0x5005, got=[new(0x5001, 1)])
    at = guest.lines.index(new(0x5001, 1))
    guest.flush(0x5001, 1)
    guest.lines.insert(at + 1, guest.lines.pop())
    assert guest.mapped(tmp_path, "4k") == {"1": 2}


def test_a_table_in_the_place_of_a_huge_page(guest: ShadowGuest, tmp_path: Path) -> None:
    guest.fault(KERNEL + 0x3000, [0x200, 0x201], DATA, direct=[LAZY], at=0x903)
    at = guest.lines.index(LAZY)
    guest.flush(DATA, 512)
    guest.lines.insert(at + 1, guest.lines.pop())
    assert guest.mapped(tmp_path, "2m") == {}
    assert guest.run(tmp_path).document["faults"]["lazy_splits"] == 1


def test_a_huge_page_that_was_there_before_the_trace(tmp_path: Path) -> None:
    guest = ShadowGuest()
    guest.fault(KERNEL + 0x3000, [0x200, 0x201], DATA, direct=[LAZY], at=0x903)
    guest.flush(DATA, 512)
    assert guest.run(tmp_path).document["faults"]["lazy_splits"] == 0  # it is not right after the page
    guest.lines.insert(guest.lines.index(LAZY) + 1, guest.lines.pop())
    assert guest.run(tmp_path).document["faults"]["lazy_splits"] == 1
