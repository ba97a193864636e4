"""Ring-buffer pages of many CPUs, walked record by record and merged by time.

Pages: kernel/trace/ring_buffer.c, and libtraceevent's kbuffer-parse.c, with which trace-cmd report reads
them.  The order of records is that of trace-cmd report: by time, of equal times the lower CPU comes first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.trace.lex import load64

# places of a row of ``streams``
(
    STREAM_CPU,
    STREAM_PAGE_SIZE,
    STREAM_WAITS,  # 1: not in the heap, to be advanced; 0: in the heap or at its end
    STREAM_IS_LAST,  # the window holds the end of the CPU's pages
    STREAM_PAGE,  # index of the next page
    STREAM_FILLED,  # index behind the window
    STREAM_AT,  # index of the next record of the page at hand
    STREAM_END,  # index behind its last
    STREAM_CLOCK,  # time of the record at hand as recorded
    STREAM_TIME,  # in ns
    STREAM_RECORD,  # index of the data of the record at hand
    STREAM_SIZE,  # and how long it is
    STREAM_LOST,  # events lost before it; -1: number unknown
    STREAM_PID,  # of the record before
    STREAM_TASK,
) = range(15)
STREAM = 15

_TIME_MSB = np.uint64(0xF8 << 56)
_TYPE_PADDING, _TYPE_TIME_EXTEND, _TYPE_TIME_STAMP = 29, 30, 31
_MISSED_EVENTS, _MISSED_STORED, _COMMIT_MASK = 1 << 31, 1 << 30, (1 << 27) - 1
# what came of going on in a stream
ADVANCED, AT_END, NEEDS_PAGES, CORRUPT = range(4)

_ONE = np.uint64(1)


class Pages(NamedTuple):
    """What ``decode`` reads from, and where it is.

    ``data`` uint8: the windows of all streams, with PADDING bytes behind them.  ``streams`` int64[n, STREAM].
    ``heap`` int64[n + 2, 2]: how many streams have a record at hand; time and number of each, earliest first.
    ``head`` int64[3]: ``PageLayout``.  ``clock`` int64[3]: multiplier (0 none) and shift to ns, ns to add.
    ``pids`` int64[2**k, 2]: hash table of pid and task + 1, 0 free.  ``counts`` int64: records of each
    event's format, the last of unknown ones.  ``scratch`` uint8: room for a text, PADDING on both sides.
    ``markers`` uint64: addresses of the formats of trace_printk that make markers.
    """

    data: np.ndarray
    streams: np.ndarray
    heap: np.ndarray
    head: np.ndarray
    clock: np.ndarray
    pids: np.ndarray
    counts: np.ndarray
    scratch: np.ndarray
    markers: np.ndarray


@jit
def load32(data, at):
    return np.int64(load64(data, at) & np.uint64(0xFFFFFFFF))


@jit
def _to_ns(clock, conversion):
    """Time in ns of a clock's reading: mul_u64_u32_shr() and the offset that was recorded."""
    time = np.uint64(clock)
    if conversion[0] != 0:
        mult, shift = np.uint64(conversion[0]), np.uint64(conversion[1])
        high = time >> np.uint64(32)
        time = ((time & np.uint64(0xFFFFFFFF)) * mult) >> shift
        time += (high * mult) << (np.uint64(32) - shift)
    return np.int64(time) + conversion[2]


@jit
def _begin_page(data, streams, n, head):
    """Begin the next page: ADVANCED, AT_END, NEEDS_PAGES or CORRUPT."""
    page, size = streams[n, STREAM_PAGE], streams[n, STREAM_PAGE_SIZE]
    room = streams[n, STREAM_FILLED] - page
    if room < size:
        if streams[n, STREAM_IS_LAST] == 0:
            return NEEDS_PAGES
        if room < head[2]:
            return AT_END if room <= 0 else CORRUPT
        size = room
    commit = np.int64(load64(data, page + head[0]))
    if head[1] == 4:
        commit &= 0xFFFFFFFF
    used = commit & _COMMIT_MASK
    begin = page + head[2]
    if head[2] + used > size:
        return CORRUPT
    if commit & _MISSED_EVENTS:
        lost = np.int64(-1)
        if commit & _MISSED_STORED and head[2] + used + head[1] <= size:
            lost = np.int64(load64(data, begin + used))
            if head[1] == 4:
                lost &= 0xFFFFFFFF
        streams[n, STREAM_LOST] = lost if lost > 0 else -1
    streams[n, STREAM_CLOCK] = np.int64(load64(data, page))
    streams[n, STREAM_AT], streams[n, STREAM_END] = begin, begin + used
    streams[n, STREAM_PAGE] = page + size
    return ADVANCED


@jit
def _absolute(value, before):
    """rb_fix_abs_ts(): an absolute time stamp lacks the five highest bits."""
    time, old = np.uint64(value), np.uint64(before)
    if old & _TIME_MSB:
        time |= old & _TIME_MSB
        if time < old:
            time += _ONE << np.uint64(59)
    return np.int64(time)


@jit
def advance(data, streams, n, head, conversion):
    """Go to the stream's next record with data: ADVANCED, AT_END, NEEDS_PAGES or CORRUPT."""
    while True:
        at, end = streams[n, STREAM_AT], streams[n, STREAM_END]
        if at >= end:
            status = _begin_page(data, streams, n, head)
            if status != ADVANCED:
                return status
            continue
        if end - at < 4:
            return CORRUPT
        word = load32(data, at)
        kind, delta = word & 31, word >> 5
        record, size = at + 4, kind * 4
        if kind == 0 or kind >= _TYPE_PADDING:
            if kind == _TYPE_PADDING and delta == 0:  # nothing but padding up to the page's end
                streams[n, STREAM_AT] = end
                continue
            if end - at < 8:
                return CORRUPT
            size = load32(data, at + 4)
            if kind == 0:
                record, size = at + 8, (size - 1) & ~3
            elif kind != _TYPE_PADDING:
                value = delta + (size << 27)
                if kind == _TYPE_TIME_EXTEND:
                    streams[n, STREAM_CLOCK] += value
                else:
                    streams[n, STREAM_CLOCK] = _absolute(value, streams[n, STREAM_CLOCK])
                streams[n, STREAM_AT] = at + 8
                continue
        if size < 0 or size > end - record:
            return CORRUPT
        streams[n, STREAM_CLOCK] += delta
        streams[n, STREAM_AT] = record + size
        if kind != _TYPE_PADDING:  # else discarded by a filter
            streams[n, STREAM_RECORD], streams[n, STREAM_SIZE] = record, size
            streams[n, STREAM_TIME] = _to_ns(streams[n, STREAM_CLOCK], conversion)
            return ADVANCED


@jit
def _is_before(heap, place, time, stream):
    """True if what is at ``place`` comes before ``stream`` at ``time``."""
    return heap[place, 0] < time or (heap[place, 0] == time and heap[place, 1] < stream)


@jit
def _move(heap, place, other):
    heap[other, 0], heap[other, 1] = heap[place, 0], heap[place, 1]


@jit
def sift_down(heap, time):
    """Restore the order of the heap: the time of its first is ``time`` now."""
    count, place, stream = heap[0, 0], 1, heap[1, 1]
    while 2 * place <= count:
        child = 2 * place
        if child < count and _is_before(heap, child + 1, heap[child, 0], heap[child, 1]):
            child += 1
        if not _is_before(heap, child, time, stream):
            break
        _move(heap, child, place)
        place = child
    heap[place, 0], heap[place, 1] = time, stream


@jit
def push(heap, time, stream):
    """Add a stream whose record at hand is of ``time``."""
    place = heap[0, 0] + 1
    heap[0, 0] = place
    while place > 1 and not _is_before(heap, place >> 1, time, stream):
        _move(heap, place >> 1, place)
        place >>= 1
    heap[place, 0], heap[place, 1] = time, stream


@jit
def pop(heap):
    """Remove the first."""
    last = heap[0, 0]
    heap[1, 1] = heap[last, 1]
    heap[0, 0] = last - 1
    sift_down(heap, heap[last, 0])
