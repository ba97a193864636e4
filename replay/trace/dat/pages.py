"""Ring-buffer pages of many CPUs, each walked at once, and their records merged by time.

Pages: kernel/trace/ring_buffer.c, and libtraceevent's kbuffer-parse.c, with which trace-cmd report reads
them.  The order of records is that of trace-cmd report: by time, of equal times the lower CPU comes first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.trace.scan.lex import load64

# places of a row of ``streams``
(
    STREAM_CPU,
    STREAM_PAGE_SIZE,
    STREAM_WAITS,  # 1: to go on with its next page before anything else
    STREAM_IS_LAST,  # the window holds the end of the CPU's pages
    STREAM_PAGE,  # index of the next page
    STREAM_FILLED,  # index behind the window
    STREAM_CLOCK,  # time of the last record of the page at hand as recorded
    STREAM_LIST,  # where the records of the page at hand are listed
    STREAM_AT,  # place there of the record at hand
    STREAM_END,  # and behind the last one
    STREAM_LOST,  # events lost before the record at hand; -1: number unknown
    STREAM_PID,  # of the record before
    STREAM_TASK,
) = range(13)
STREAM = 13

LEAST_RECORD = 8
"""Bytes that a record takes at least in a page."""

_TIME_MSB = np.uint64(0xF8 << 56)
_TYPE_PADDING, _TYPE_TIME_EXTEND, _TYPE_TIME_STAMP = 29, 30, 31
_MISSED_EVENTS, _MISSED_STORED, _COMMIT_MASK = 1 << 31, 1 << 30, (1 << 27) - 1
NEVER = np.int64(1 << 62)
"""The time of a stream that has no more records."""

# what came of going on in a stream
LISTED, AT_END, NEEDS_PAGES, CORRUPT = range(4)

_ONE = np.uint64(1)


class Pages(NamedTuple):
    """What ``decode`` reads from, and where it is.

    ``data`` uint8: the windows of all streams, with PADDING bytes behind them.  ``streams`` int64[n, STREAM].
    ``times``, ``records`` and ``sizes`` int64: the records of each stream's page at hand, as a list: time in
    ns, index of the data, how long it is.
    ``tree`` int64[2 * 2**k, 2], 2**k of n or more: time and number of streams.  Stream n is at 2**k + n, and
    the earlier of 2 * m and 2 * m + 1 is at m, so that the first of all is at 1.
    ``head`` int64[3]: ``PageLayout``.  ``clock`` int64[3]: multiplier (0 none) and shift to ns, ns to add.
    ``pids`` int64[2**k, 2]: hash table of pid and task + 1, 0 free.  ``counts`` int64: records of each
    event's format, the last of unknown ones.  ``scratch`` uint8: room for a text, PADDING on both sides.
    ``markers`` uint64: addresses of the formats of trace_printk that make markers.
    """

    data: np.ndarray
    streams: np.ndarray
    times: np.ndarray
    records: np.ndarray
    sizes: np.ndarray
    tree: np.ndarray
    head: np.ndarray
    clock: np.ndarray
    pids: np.ndarray
    counts: np.ndarray
    scratch: np.ndarray
    markers: np.ndarray


@jit
def load32(data, at):
    """The 32-bit number at index ``at``."""
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
    return min(np.int64(time) + conversion[2], NEVER - 1)


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
def _list_records(pages, n, at, end):
    """List the records with data of ``data[at:end]``, the events of a page: false if it is corrupt."""
    data, conversion = pages.data, pages.clock
    times, records, sizes = pages.times, pages.records, pages.sizes
    clock, place = pages.streams[n, STREAM_CLOCK], pages.streams[n, STREAM_LIST]
    while at < end:
        if end - at < 4:
            return False
        word = load32(data, at)
        kind, delta = word & 31, word >> 5
        record, size = at + 4, kind * 4
        if kind == 0 or kind >= _TYPE_PADDING:
            if kind == _TYPE_PADDING and delta == 0:  # nothing but padding up to the page's end
                break
            if end - at < LEAST_RECORD:
                return False
            size = load32(data, at + 4)
            if kind == 0:
                record, size = at + 8, (size - 1) & ~3
            elif kind != _TYPE_PADDING:
                value = delta + (size << 27)
                clock = clock + value if kind == _TYPE_TIME_EXTEND else _absolute(value, clock)
                at += 8
                continue
        if size < 0 or size > end - record:
            return False
        clock += delta
        at = record + size
        if kind != _TYPE_PADDING:  # else discarded by a filter
            n_listed = np.uint64(place)
            times[n_listed], records[n_listed] = _to_ns(clock, conversion), record
            sizes[n_listed] = size
            place += 1
    pages.streams[n, STREAM_AT], pages.streams[n, STREAM_END] = pages.streams[n, STREAM_LIST], place
    return True


@jit
def list_page(pages, n):
    """List the records of the next page of stream ``n``: LISTED, AT_END, NEEDS_PAGES or CORRUPT."""
    data, streams, head = pages.data, pages.streams, pages.head
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
    streams[n, STREAM_PAGE] = page + size
    return LISTED if _list_records(pages, n, begin, begin + used) else CORRUPT


@jit
def set_time(tree, stream, time):
    """The record at hand of ``stream`` (unsigned) is of ``time`` now.

    Without branches: which CPU comes next cannot be foreseen.
    """
    first = np.int64(stream)
    place = np.uint64(len(tree) >> 1) + stream
    tree[place, 0], tree[place, 1] = time, first
    while place > _ONE:
        other, other_time = place ^ _ONE, tree[place ^ _ONE, 0]
        # of equal times the left one is the first
        is_other = np.int64(other_time < time + np.int64(place & _ONE))
        time += (other_time - time) * is_other
        first += (tree[other, 1] - first) * is_other
        place >>= _ONE
        tree[place, 0], tree[place, 1] = time, first
