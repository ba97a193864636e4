"""The manifest of a dataset: the version of replay, the options and the policies that its rows are of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import replay
from replay.bulk.storage import Storage
from replay.errors import UsageError
from replay.text_files import parse_json
from replay.trace.files import MANIFEST

SCHEMA = "replay.dataset/1"
MAX_MANIFEST_BYTES = 16 << 20


def _is_manifest(content: Any) -> bool:
    """``content`` is of the form that ``Dataset`` gives ``_replay.json``."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return False
    options, policies = content.get("options"), content.get("policies")
    return (
        isinstance(content.get("version"), str)
        and isinstance(options, dict)
        and isinstance(policies, dict)
        and all(knobs is None or isinstance(knobs, dict) for knobs in policies.values())
    )


def results_version() -> str:
    """Changes when the same trace may give other results: a hash of the sources that they come from."""
    package = Path(replay.__file__).parent
    files = [path for room in ("trace", "mmu", "verdict") for path in (package / room).rglob("*.py")]
    names = ("schema.py", "policy.py", "kernel.py", "options.py", "run.py", "arrow.py", "bulk/rows.py")
    files += [package / name for name in names]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def read_manifest(storage: Storage, options: Mapping[str, Any], policies: Mapping[str, Any]) -> Any:
    """The manifest of the dataset in ``storage``; None where it has none yet.

    Raises ``UsageError`` where it was begun with other ``options``, or other knobs of one of ``policies``.
    """
    if not storage.exists(MANIFEST):
        return None
    with storage.reading(MANIFEST) as file:
        try:
            known = parse_json(file.read(MAX_MANIFEST_BYTES).decode())
        except ValueError:
            known = {}
    where = storage.url
    if not _is_manifest(known):
        raise UsageError(f"{where}: {MANIFEST} is not of schema {SCHEMA!r}: use another directory")
    for name, value in options.items():
        if known["options"].get(name) != value:
            raise UsageError(
                f"{where}: holds results with {name} = {known['options'].get(name)!r}, "
                f"not {value!r}: use another directory"
            )
    for label, knobs in policies.items():
        if known["policies"].get(label, knobs) != knobs:
            raise UsageError(f"{where}: policy {label} had other knobs then: use another directory")
    return known
