"""The questions by name, in the order of the review, and the document with their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from replay.errors import UsageError
from replay.review import access, flushes, memory, pages, walks
from replay.review.answer import Answer
from replay.review.runs import Runs
from replay.run import Progress, Request

if TYPE_CHECKING:
    from replay.trace.trace import Trace

REVIEW_SCHEMA = "replay.review/1"


class Question(NamedTuple):
    asks: str
    answer: Callable[[Runs], Answer]


QUESTIONS: dict[str, Question] = {
    "A2": Question("Can *spp be set on entry to prepare, and what is leaked then?", pages.leaked),
    "A3": Question(
        "Can the children be mapped with other permissions than the huge page?", access.permissions
    ),
    "A4": Question(
        "Is the existing-SP check redundant, given the rmap check of each child?", access.existing_child_check
    ),
    "A5": Question("What would it cost to allocate all rmap descriptors up front?", memory.up_front),
    "A6": Question("Are TLBs always flushed before the MMU lock is dropped?", flushes.before_lock_drop),
    "A7": Question("Do unsync shadow pages ever hold huge SPTEs?", access.unsync),
    "A8": Question("What does the limit of shadow pages leave huge?", pages.limit),
    "B1": Question(
        "Compute the exact number of descriptors of a split, or always fill?", memory.exact_or_full
    ),
    "B5": Question("How much work is done under one hold of the MMU lock?", walks.lock_holds),
    "B7": Question("Are flushes rare when existing children are reused?", flushes.reuse),
    "B9": Question("What is lost by splitting pages of nested MMUs only?", walks.nested_only),
    "B11": Question("How often does the capacity of the descriptor cache drop the lock?", memory.capacity),
    "B12": Question("How common are rmaps with more than one entry?", memory.rmap_lengths),
    "B13": Question("Does splitting cost 4 KiB per VM?", memory.per_vm),
    "B18": Question("How many hash collisions does a look-up of the child have?", pages.collisions),
    "B19": Question("What did the off-by-one end of KVM_CLEAR_DIRTY_LOG miss?", walks.clear_end),
    "B20": Question("How many more flushes does flushing at every link cost?", flushes.every_link),
    "B21": Question("How much is split that is never written?", pages.never_written),
    "B22": Question("What does a repeated KVM_CLEAR_DIRTY_LOG cost?", walks.repeated_clear),
}


def chosen(names: Sequence[str]) -> list[str]:
    """The questions of ``names``, each once, in the order of the review; all if there is none.

    Raises ``UsageError`` for a name that is no question.
    """
    for name in names:
        if name.upper() not in QUESTIONS:
            raise UsageError(f"unknown question {name!r}: use {', '.join(QUESTIONS)}")
    asked = {name.upper() for name in names} or QUESTIONS.keys()
    return [name for name in QUESTIONS if name in asked]


def review_trace(
    trace: str | Trace, names: Sequence[str], request: Request, progress: Progress | None = None
) -> dict[str, Any]:
    """The ``replay.review/1`` document: the answers of the questions ``names``, of all if it is empty.

    The policy of ``request``, v2 if it names none, is the one under review.  Raises ``ReplayError``
    for whatever a user can cause.
    """
    asked = chosen(names)
    runs = Runs(trace, request, progress)
    document = runs.reviewed.run.document
    return {
        "schema": REVIEW_SCHEMA,
        "trace": document["trace"],
        "policy": document["policy"] | ({} if request.policy else {"reason": "the default of a review"}),
        "answers": [
            {"question": name, "asks": QUESTIONS[name].asks, **QUESTIONS[name].answer(runs).document()}
            for name in asked
        ],
    }
