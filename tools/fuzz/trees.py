"""Changes of golden files and of TOML: values of other types and sizes, keys that go, come twice or swap."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from random import Random
from typing import Any

from tools.fuzz.lines import EXTREMES, noise

_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        "v2",
        "end",
        "\ud800",
        "0x",
        "0xffffffffffffffffff",
        "-1",
        "\x1b[2J",
        "nan",
        1.5,
    ),
    *(1e300, float("nan"), float("inf"), [], {}, [[]], [None], {"": ""}, {"a": {"b": {}}}, "x" * 3000),
)
_TOML_ODD = (
    *(
        '""',
        '"2m"',
        "true",
        "[]",
        "{}",
        "1.5",
        "inf",
        "nan",
        "-1",
        "1979-05-27",
        "[[]]",
        '"\\ud7ff"',
        "[1, 2]",
    ),
    *('"read"', '"write"', '"4k"', '"1g"', '"l1"', '"no"'),
)
_VALUE = re.compile(rb"(=\s*)(\"[^\"\n]*\"|-?(?:0x)?[0-9a-f_]+|true|false)")


def change_golden(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A golden file with one change."""
    if rng.random() < 0.15:
        return noise(data, rng)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return noise(data, rng)
    if rng.random() < 0.02:
        depth = rng.choice((100, 1000, 100_000))
        return data[:-3] + b', "deep": ' + b"[" * depth + b"]" * depth + b"}\n"
    places = list(_places(content))
    if not places:
        return noise(data, rng)
    parent, key = rng.choice(places)
    chance = rng.random()
    if chance < 0.15:
        del parent[key]
    elif chance < 0.3:
        other, name = rng.choice(places)
        parent[key], other[name] = other[name], parent[key]
        if len(text := _dumped(content)) < 1_000_000:
            return text
        return data
    elif chance < 0.65:
        parent[key] = rng.choice(EXTREMES)
    else:
        parent[key] = rng.choice(_ODD)
    return _dumped(content)


def _dumped(content: Any) -> bytes:
    try:
        return json.dumps(content, indent=1).encode()
    except (ValueError, RecursionError):  # two that were swapped hold each other
        return b"{}"


def _places(node: Any) -> Any:
    """Every value of a document, as what holds it and its key there."""
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key])


def change_toml(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A policy or a scenario with one change."""
    chance = rng.random()
    values = list(_VALUE.finditer(data))
    if chance < 0.6 and values:
        found = rng.choice(values)
        (old,) = found.groups()[1:]
        if rng.random() < 0.5:
            new = b"%d" % rng.choice(EXTREMES)
        elif rng.random() < 0.5:
            new = rng.choice(values)[2]
        else:
            new = rng.choice(_TOML_ODD).encode()
        return data[: found.end() - len(old)] + new + data[found.end() :]
    lines = data.splitlines(keepends=True)
    if chance < 0.95 and lines:
        at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
        what = rng.randrange(5)
        if what == 0:
            del lines[at]
        elif what == 1:
            lines.insert(to, lines[at])
        elif what == 2:
            lines[at], lines[to] = lines[to], lines[at]
        elif what == 3:
            lines[at:at] = rng.choice(seeds).splitlines(keepends=True)[to : to + 5]
        else:
            words = lines[at].split(b" ")
            words[rng.randrange(len(words))] = rng.choice(rng.choice(lines).split(b" "))
            lines[at] = b" ".join(words)
        return b"".join(lines)
    return noise(data, rng)
