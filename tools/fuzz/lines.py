"""Changes of a trace's text: what a line says and where it stands, rather than noise in its bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

EXTREMES = (
    *(-1, 0, 1, 2, 5, 7, 63, 64, 511, 512, 513, 4095, 32767, 32768, 65535),
    *(1 << 18, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 36, 1 << 40, (1 << 40) - 1),
    *(
        (1 << 51) - 1,
        1 << 52,
        1 << 62,
        (1 << 63) - 1,
        1 << 63,
        (1 << 64) - 512,
        (1 << 64) - 1,
        1 << 64,
        10**25,
    ),
)
WORDS = (
    b"l1 l2 l3 l4 l5 q0 q1 q3 direct 8-byte 4-byte pae wux -ux --- nxe !nxe ad !ad smep guest_mode root sync "
    b"unsync new existing level errno gen gfn spte 0 1 2 3 4 -11 -12 -22 -28 -95"
).split()
MARKERS = (
    b"vm_create vm=fuzz pid={}",
    b"memslot id={} base_gfn={} npages={} flags={}",
    b"memslot id=1 base_gfn={} npages={} flags=0x1 as={} vm=fuzz",
    b"manual_dirty_log_protect2 arg={}",
    b"clear_dirty_log slot={} first_page={} num_pages={} mask={}",
    b"get_dirty_log slot={}",
    b"nr_mmu_pages n={}",
    b"resched",
    b"scenario fuzz begin",
)
PROBES = (
    b"change_mmu_pages: (f+0x0/0x0 [kvm]) goal={}",
    b"set_region: (f+0x0/0x0 [kvm]) slot={} flags={} gpa={} size={} uaddr={}",
    b"commit_region: (f+0x0/0x0 [kvm]) change={}",
    b"slot_try_split: (f+0x0/0x0 [kvm]) target_level={}",
    b"shadow_try_split: (f+0x0/0x0 [kvm]) start={} end={} target_level={}",
    b"tdp_try_split: (f+0x0/0x0 [kvm]) start={} end={} target_level={}",
    b"v2_lock_dropped: (f+0x0/0x0 [kvm]) gfn={} level={} reason={} flush={}",
    b"v2_range_yield: (f+0x0/0x0 [kvm]) gfn={} flush={} level={}",
    b"v2_alloc_failed: (f+0x0/0x0 [kvm]) gfn={} locked={}",
    b"v2_split_done: (f+0x0/0x0 [kvm]) huge_gfn={} huge_level={} present={} nonpresent={}",
    b"v2_split_nonpresent: (f+0x0/0x0 [kvm]) gfn={} level={} huge_gfn={}",
)
_NUMBER = re.compile(rb"(?<![\w.+-])-?(?:0x)?[0-9a-f]+(?![\w.])")
_HEADER = re.compile(rb"^(.*?:\s+)(?=[a-z_0-9]+: )", re.DOTALL)
_TASK = re.compile(rb"-(\d+)(\s+\()( *[\d-]+)(\))")
_INTERESTING = re.compile(rb"split|replay:|v2_|region|topup|flush_remote|unsync|zap|prepare")
_MOST_LINES = 400

Lines = list[bytes]


def cut(seed: bytes, rng: Random) -> bytes:
    """A piece of a trace around something of interest, after its header and the markers before it."""
    lines = seed.splitlines(keepends=True)
    size = rng.choice((20, 60, 120, 250))
    if len(lines) <= size:
        return seed
    places = [n for n, line in enumerate(lines) if _INTERESTING.search(line)] or range(len(lines))
    begin = max(0, rng.choice(places) - rng.randrange(size))
    head = [line for line in lines[:30] if line.startswith(b"#")]
    head += [line for line in lines[:begin] if b"vm_create" in line or b"memslot" in line][-12:]
    return b"".join(head + lines[begin : begin + size])


def _places(lines: Lines, rng: Random) -> tuple[int, int]:
    begin = rng.randrange(len(lines))
    return begin, min(len(lines), begin + rng.choice((1, 1, 1, 2, 4, 16, 60)))


def _drop(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    begin, end = _places(lines, rng)
    return lines[:begin] + lines[end:]


def _double(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    begin, end = _places(lines, rng)
    return lines[:end] + lines[begin:end] * rng.choice((1, 1, 1, 3)) + lines[end:]


def _move(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    begin, end = _places(lines, rng)
    rest = lines[:begin] + lines[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + lines[begin:end] + rest[at:]


def _swap(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return lines


def _turn(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    begin, end = _places(lines, rng)
    return lines[:begin] + lines[begin:end][::-1] + lines[end:]


def _begin(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    return lines[rng.randrange(len(lines)) :]


def _end(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    return lines[: rng.randrange(len(lines)) + 1]


def _splice(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    other = cut(rng.choice(others), rng).splitlines(keepends=True)
    at = rng.randrange(len(lines) + 1)
    if rng.random() < 0.3:  # line by line, as of two hosts
        both = [line for pair in zip(lines[at:], other, strict=False) for line in pair]
        return lines[:at] + both
    begin, end = _places(other, rng)
    return lines[:at] + other[begin:end] + lines[at:]


def _number(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    """One number of what an event says becomes an extreme, a neighbour, or one of another line."""
    at = rng.randrange(len(lines))
    numbers = list(_NUMBER.finditer(lines[at], _body(lines[at])))
    if numbers:
        found = rng.choice(numbers)
        lines[at] = lines[at][: found.start()] + _other(found[0], lines, rng) + lines[at][found.end() :]
    return lines


def _body(line: bytes) -> int:
    header = _HEADER.match(line)
    return header.end() if header else 0


def _other(text: bytes, lines: Lines, rng: Random) -> bytes:
    chance = rng.random()
    if chance < 0.3:
        line = rng.choice(lines)
        found = _NUMBER.findall(line, _body(line))
        return bytes(rng.choice(found)) if found else text
    is_hex = text.lstrip(b"-").startswith(b"0x")
    value = int(text, 16)
    if chance < 0.6:
        value += rng.choice((-512, -1, 1, 8, 512, 1 << 18))
    elif chance < 0.7:
        value ^= 1 << rng.randrange(64)
    else:
        value = rng.choice(EXTREMES)
    if is_hex:
        return b"%#x" % value
    return b"%x" % value if rng.random() < 0.7 else b"%d" % value


def _word(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    at = rng.randrange(len(lines))
    words = lines[at].split(b" ")
    place = rng.randrange(len(words))
    words[place : place + 1] = rng.choice(([], [words[place]] * 2, [rng.choice(WORDS)], [rng.choice(WORDS)]))
    lines[at] = b" ".join(words)
    return lines


def _task(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    """The task or the process of some lines becomes that of another line, or one not seen before."""
    begin, end = _places(lines, rng)
    known = _TASK.search(rng.choice(lines))
    task, process = (known[1], known[3]) if known and rng.random() < 0.7 else (b"77", b"77")
    for at in range(begin, end):
        lines[at] = _TASK.sub(rb"-%s\2%s\4" % (task, process), lines[at], count=1)
    return lines


def _insert(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    """A marker or a probe with any numbers, in the name of the task of another line."""
    known = rng.choice(lines)
    text = b"tracing_mark_write: replay: " + rng.choice(MARKERS) if rng.random() < 0.5 else rng.choice(PROBES)
    while b"{}" in text:
        line = rng.choice(lines)
        found = _NUMBER.findall(line, _body(line))
        value = rng.choice(found) if found and rng.random() < 0.6 else b"%#x" % abs(rng.choice(EXTREMES))
        text = text.replace(b"{}", value if value.startswith(b"0x") else b"0x" + value.lstrip(b"-"), 1)
    at = rng.randrange(len(lines) + 1)
    return [*lines[:at], known[: _body(known)] + text + b"\n", *lines[at:]]


def _lost(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    at = rng.randrange(len(lines) + 1)
    return [*lines[:at], b"CPU:%d [LOST %d EVENTS]\n" % (rng.randrange(4), rng.choice(EXTREMES)), *lines[at:]]


def _bytes(lines: Lines, rng: Random, others: Sequence[bytes]) -> Lines:
    at = rng.randrange(len(lines))
    lines[at] = noise(lines[at], rng)
    return lines


def noise(data: bytes, rng: Random) -> bytes:
    """A byte changed, a few of them dropped, doubled, or set to one value; or the end cut off."""
    if not data:
        return bytes([rng.randrange(256)])
    at = rng.randrange(len(data))
    length = rng.choice((1, 1, 2, 4, 8, 64))
    piece = data[at : at + length]
    chance = rng.random()
    if chance < 0.35:
        piece = bytes([piece[0] ^ 1 << rng.randrange(8)]) + piece[1:]
    elif chance < 0.6:
        piece = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) * len(piece)
    elif chance < 0.75:
        piece = b""
    elif chance < 0.9:
        piece *= 2
    else:
        return data[:at]
    return data[:at] + piece + data[at + length :]


_CHANGES: tuple[tuple[int, Callable[[Lines, Random, Sequence[bytes]], Lines]], ...] = (
    (12, _number),
    (4, _insert),
    (3, _word),
    (2, _drop),
    (2, _double),
    (2, _move),
    (2, _task),
    (1, _swap),
    (1, _turn),
    (1, _begin),
    (1, _end),
    (1, _splice),
    (1, _lost),
    (1, _bytes),
)


def change(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """``data`` with one change; ``seeds`` are whole traces to take lines from."""
    lines = data.splitlines(keepends=True)[:_MOST_LINES]
    if not lines:
        return rng.choice(seeds)[:2000]
    weights, changes = zip(*_CHANGES, strict=True)
    (chosen,) = rng.choices(changes, weights)
    return b"".join(chosen(lines, rng, seeds))
