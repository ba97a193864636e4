"""Options: the words of a command line or a golden file become what the engine takes, or an error."""

from __future__ import annotations

import pytest

from replay.errors import UsageError
from replay.kernel import KernelVersion
from replay.options import (
    MAX_MMU_PAGES,
    MAX_NUMBER,
    Nested,
    Options,
    Resched,
    ReschedKind,
    SplitAt,
    SplitKind,
    nanoseconds,
)


@pytest.mark.parametrize("word", ["auto", "recorded", "control", "end", "never"])
def test_words_of_split_at(word: str) -> None:
    assert SplitAt.parse(word) == SplitAt(SplitKind(word), 0, word)


@pytest.mark.parametrize(("text", "ns"), [("0", 0), ("1.5", 1_500_000_000), ("1e3", 10**12)])
def test_time_of_split_at(text: str, ns: int) -> None:
    assert SplitAt.parse(text) == SplitAt(SplitKind.TIME, ns, text)


@pytest.mark.parametrize("text", ["SECONDS", "AUTO", "later", "-1", "nan", "inf", "9.3e9", ""])
def test_wrong_split_at(text: str) -> None:
    with pytest.raises(UsageError) as error:
        SplitAt.parse(text)
    assert str(error.value) == (
        f"--split-at {text}: use auto, recorded, control, end, never, or seconds of the trace's clock"
    )


@pytest.mark.parametrize(
    ("text", "kind", "number", "codes"),
    [
        ("recorded", ReschedKind.RECORDED, 0, (0, -1)),
        ("never", ReschedKind.NEVER, 0, (-1, -1)),
        ("every=3", ReschedKind.EVERY, 3, (3, -1)),
        ("seed=0", ReschedKind.SEED, 0, (0, 0)),
        (f"seed={MAX_NUMBER}", ReschedKind.SEED, MAX_NUMBER, (0, MAX_NUMBER)),
    ],
)
def test_resched(text: str, kind: ReschedKind, number: int, codes: tuple[int, int]) -> None:
    resched = Resched.parse(text)
    assert resched == Resched(kind, number, text)
    assert resched.codes == codes


@pytest.mark.parametrize(
    "text", ["every", "every=0", "every=-1", "seed=x", "recorded=1", "never=1", f"seed={MAX_NUMBER + 1}", ""]
)
def test_wrong_resched(text: str) -> None:
    with pytest.raises(UsageError) as error:
        Resched.parse(text)
    assert str(error.value).startswith(f"--resched {text}: use recorded, never, every=N or seed=S")


def test_what_is_given_replaces_and_the_rest_stays() -> None:
    first = Options().with_given(split_at="end", max_mmu_pages=64, nested="yes", kernel="6.1.176")
    second = first.with_given(resched="every=2", nested="no")
    assert first.kernel == KernelVersion(6, 1, 176)
    assert second == Options(
        SplitAt.parse("end"), Resched.parse("every=2"), 64, Nested.NO, kernel=KernelVersion(6, 1, 176)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nested": "maybe"}, "--nested maybe: use auto, yes or no"),
        ({"rmap_columns": "x"}, "--rmap-columns x: use auto, fls or ffs"),
        ({"max_mmu_pages": 0}, f"--max-mmu-pages 0: use 1 to {MAX_MMU_PAGES}"),
        ({"max_mmu_pages": MAX_MMU_PAGES + 1}, f"use 1 to {MAX_MMU_PAGES}"),
        ({"kernel": "blue"}, "--kernel blue: no version of KVM in it"),
    ],
)
def test_wrong_options(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Options().with_given(**given)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "ns"), [("4.6e9", 4_600_000_000 * 10**9), ("4.7e9", None), ("x", None)])
def test_nanoseconds(text: str, ns: int | None) -> None:
    assert nanoseconds(text) == ns


@pytest.mark.parametrize(("last_ns", "what"), [(11_008_999_000, "ends at 11.008999"), (None, "has no times")])
def test_time_that_the_trace_does_not_reach(last_ns: int | None, what: str) -> None:
    at = SplitAt.parse("11.009")
    at.check_reached(11_009_000_000)
    SplitAt.parse("end").check_reached(None)
    with pytest.raises(UsageError) as error:
        at.check_reached(last_ns)
    assert str(error.value) == f"--split-at 11.009: the trace {what}; 'end' splits there"
