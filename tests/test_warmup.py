"""``replay warmup``: every kernel of the package, once."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from replay.errors import UsageError

PACKAGE = Path(__file__).parents[1] / "replay"


def run_warmup(**environment: str) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if name != "NUMBA_DISABLE_JIT"}
    return subprocess.run(
        [sys.executable, "-m", "replay", "warmup"],
        env={**without, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def kernels() -> set[str]:
    """The functions that the sources decorate with ``@kernel``."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [name.id for name in node.decorator_list if isinstance(name, ast.Name)]
                found |= {f"{module}.{node.name}"} if "kernel" in names else set()
    return found


def words(output: str) -> dict[str, set[str]]:
    pairs = (line.split(": ", 1) for line in output.splitlines())
    return {name: set(text.split(", ")) - {"none"} for name, text in pairs}


def test_every_kernel_is_kept() -> None:
    """In the cache of the tests themselves, which spares compiling anew."""
    first, second = run_warmup(), run_warmup()
    assert (first.returncode, first.stderr) == (0, "")
    said = words(first.stdout)
    assert said["compiled"] | said["found"] == kernels()
    assert words(second.stdout)["found"] == kernels()
    assert words(second.stdout)["compiled"] == set()
    [directory] = words(second.stdout)["stored in"]
    assert {path.suffix for path in Path(directory).rglob("*.nb?")} == {".nbi", ".nbc"}


def test_nothing_to_compile() -> None:
    done = run_warmup(NUMBA_DISABLE_JIT="1")
    message = "replay: error: NUMBA_DISABLE_JIT is set: nothing is compiled\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_nowhere_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from replay import warmup

    monkeypatch.setattr(warmup, "cache_directory", lambda: None)
    with pytest.raises(UsageError, match="no cache directory is writable"):
        warmup.warm_up()
