"""The child of a split: its permissions, whether it exists already, whether the page is unsync."""

from __future__ import annotations

import numpy as np

from replay.mmu.kernel.role import ACC_EXEC, ACC_USER, ACC_WRITE
from replay.mmu.kernel.spte import access_tracked
from replay.review.answer import Answer, Cell, Table, many, percent, share
from replay.review.runs import Arrays, Result, Runs
from replay.schema import Kind, Role


def permissions(runs: Runs) -> Answer:
    """A3."""
    found = runs.reviewed.looked_up
    guest, granted = found["guest_access"], found["spte_access"]
    differ = guest != granted
    tracked = access_tracked(found["spte"], found["layout"])
    gains = _gain_exec(runs.reviewed.splits)
    exists, other = found["child_exists"] != 0, found["other_exists"] != 0
    figures = {
        "lookups": len(differ),
        "differ": int(differ.sum()),
        "not_writable": int((guest & ~granted & ACC_WRITE != 0).sum()),
        "not_executable": int((guest & ~granted & ACC_EXEC != 0).sum()),
        "not_user": int((guest & ~granted & ACC_USER != 0).sum()),
        "access_tracked": int(tracked.sum()),
        "children_that_gain_exec": gains,
        "existing_children": int(exists.sum()),
        "existing_children_missed": int((differ & exists).sum()),
        "other_children_found": int((differ & other).sum()),
        "children_of_another_role": int((differ & ~other).sum()),
    }
    rows = [
        ("W", figures["not_writable"]),
        ("X (NX huge pages)", figures["not_executable"]),
        ("U", figures["not_user"]),
        ("access-tracked", figures["access_tracked"]),
    ]
    return Answer(
        f"Yes: at {figures['differ']:,} of {many(len(differ), 'look-up')} the huge SPTE allows less than "
        f"the guest; {many(gains, 'child SPTE')} gain X by the split. With the role taken from the SPTE, "
        f"{figures['existing_children_missed']:,} of {figures['existing_children']:,} existing children "
        "would be missed."
        if figures["differ"]
        else f"Not in this trace: at {many(len(differ), 'look-up')} SPTE and guest allow the same.",
        figures,
        "guest access (role of a direct page, shadowed translation of an indirect one) against the W, X and "
        "U bits of each huge SPTE whose child was looked for; then the child's role looked up with either",
        [Table("what the guest allows and the huge SPTE does not", ("permission", "look-ups"), rows)],
        [
            "what a run with the other roles would have come to after its first attempt: "
            "children_of_another_role counts tables that no fault would find",
            "host read-only and write protection by dirty logging look alike in the SPTE",
        ],
    )


def _gain_exec(splits: Arrays) -> int:
    """4K children that are executable although the huge page was not."""
    gain = (splits["level"] == 2) & (splits["guest_access"] & ~splits["spte_access"] & ACC_EXEC != 0)
    return int(splits["installed"][gain].sum())


def existing_child_check(runs: Runs) -> Answer:
    """A4."""
    found = runs.reviewed.looked_up
    exists, occupied = found["child_exists"] != 0, found["occupied"]
    any_occupied = int((occupied > 0).sum())
    both = int((exists & (occupied > 0)).sum())
    orphan = exists & (found["child_parents"] == 0)
    has_parent = int((exists & ~orphan).sum())
    has_sptes = int((orphan & (found["child_present"] > 0)).sum())
    usable = int((orphan & (found["child_present"] == 0)).sum())
    free = int((exists & (occupied < 512)).sum())
    figures = {
        "lookups": len(exists),
        "huge_sptes": len(np.unique(found["huge_spte"])),
        "child_exists": int(exists.sum()),
        "rmap_occupied": any_occupied,
        "both": both,
        "p_exists_given_occupied": share(both, any_occupied),
        "p_occupied_given_exists": share(both, int(exists.sum())),
        "exists_with_a_free_rmap": free,
        "exists_with_a_parent": has_parent,
        "exists_without_parent_with_sptes": has_sptes,
        "exists_without_parent_and_empty": usable,
        "occupied_without_child": any_occupied - both,
        "children_left_nonpresent": runs.reviewed["sptes_left_nonpresent"],
    }
    return Answer(
        _redundant(int(exists.sum()), free, usable),
        figures,
        "for each attempt that reached the look-up: whether a page with the child's gfn and role exists, and "
        "how many of its 512 gfns have a non-empty rmap",
        [
            _children_by_rmaps(exists, occupied),
            Table(
                "existing children, if there were no first check",
                ("what would happen", "children"),
                [
                    ("has a parent SPTE: -EINVAL", has_parent),
                    ("has none, but present SPTEs: BUG_ON", has_sptes),
                    ("empty and without parent: could be used", usable),
                ],
            ),
        ],
        [] if len(exists) else ["no attempt reached the check"],
    )


def _children_by_rmaps(exists: np.ndarray, occupied: np.ndarray) -> Table:
    """Look-ups by whether the child exists, and by how many of its 512 gfns have a non-empty rmap."""
    parts = {"0": occupied == 0, "1..511": (occupied > 0) & (occupied < 512), "512": occupied == 512}
    rows: list[tuple[Cell, ...]] = []
    for word, there in (("exists", True), ("does not exist", False)):
        counts = [int((mask & (exists == there)).sum()) for mask in parts.values()]
        rows.append((word, *counts, sum(counts)))
    return Table("child table, by child gfns with a non-empty rmap", ("child", *parts, "all"), rows)


def _redundant(exists: int, free: int, usable: int) -> str:
    if not exists:
        return "The trace does not show it: no existing child was found."
    found = many(exists, "existing child", "existing children")
    if not free and usable == exists:
        return f"Redundant here: {found}, all empty and without parent, and all rmaps below are occupied."
    return (
        f"Not redundant: of {found}, {exists - usable:,} have a parent or present SPTEs and would cause an "
        f"error before any rmap is checked; {free:,} have a child gfn with an empty rmap, which the rmap "
        f"check does not reject. {usable:,} could be used as they are."
    )


def unsync(runs: Runs) -> Answer:
    """A7."""
    result: Result = runs.varied("unsync=skip")
    lines = runs.events(lambda batch: batch.kind == Kind.UNSYNC_PAGE)
    above = int((lines["role"] & Role.LEVEL > 1).sum())
    figures = {
        "huge_sptes_in_unsync_pages": result["skipped_unsync"],
        "attempts": result["attempts"],
        "unsync_pages": len(lines["line"]),
        "unsync_pages_above_4k": above,
    }
    skipped = figures["huge_sptes_in_unsync_pages"]
    verdict = (
        "No" if not skipped and not above else "Yes, but the kernel rules this out: model or trace is wrong"
    )
    return Answer(
        f"{verdict}: {many(skipped, 'huge SPTE')} in an unsync page, and "
        f"{many(figures['attempts'], 'attempt')}; {many(len(lines['line']), 'page')} became unsync, "
        f"{above:,} of them above the 4K level ({percent(above, len(lines['line']))}).",
        figures,
        "huge SPTEs that the walk skipped for the unsync flag of their page, and kvm_mmu_unsync_page lines "
        "by level",
        [],
        ["pages that became unsync before the trace began"],
    )
