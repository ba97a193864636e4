"""perf.data goes through the perf that is installed; here mostly through one that is written for the test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import zstandard

from replay.errors import TraceError
from replay.trace.reader import read_trace
from tests.trace.test_forms import FORMS, TIME, assert_same_rows

TEXT = FORMS / "linux-6.1" / "perf-script-F.txt.zst"


def perf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a program ``perf`` alone on the PATH; gives the path of a perf.data file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "perf").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "perf").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    data = tmp_path / "a perf.data"
    data.write_bytes(b"PERFILE2" + bytes(100))
    return data


def test_text_of_perf_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text"
    text.write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(TEXT.read_bytes()))
    said = "echo 'Processed 9 events and lost 3 chunks!' >&2"
    kernel = "echo '# os release : 6.1.0-50-amd64'"
    cat = shutil.which("cat")
    check = f'test "$1" = script && test "$*" != "${{*#*-i {tmp_path}/a perf.data}}" || exit 9'
    data = perf(tmp_path, monkeypatch, f"{check}\n{kernel}\n{said}\n{cat} {text}")
    trace = read_trace(str(data))
    assert (trace.format, trace.kernel, trace.lost_events) == ("perf.data", "6.1.0-50-amd64", 3)
    assert_same_rows(read_trace(str(TEXT)), trace, ("vm",))


def test_only_tracepoints_are_asked_for_their_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """perf refuses a field of all events that the samples of one of them lack."""
    said = "Samples for 'cpu-clock' event do not have CPU attribute set. Cannot print 'cpu' field."
    sample = "vmm 152 7.864600: 250000 cpu-clock: ffffffff8160f478 __mmap_region+0x768 ([kernel.kallsyms])"
    event = "vmm 152/152 [001] 7.864608: kvmmmu:kvm_mmu_set_dirty_bit: gpa 1000"
    script = f"""case "$*" in
*" -F trace:comm,pid,tid,cpu,time,event,trace "*) echo "{sample}"; echo "{event}";;
*) echo "{said}" >&2; exit 234;;
esac"""
    trace = read_trace(str(perf(tmp_path, monkeypatch, script)))
    assert (trace.events, trace.kvmmmu_events, trace.malformed_lines) == (1, 1, 0)


def test_a_field_that_tracepoints_lack_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Samples for 'kvm:kvm_exit' event do not have CPU attribute set. Cannot print 'cpu' field."
    event = "vmm 152/152 7.864608: kvmmmu:kvm_mmu_set_dirty_bit: gpa 1000"
    lost = "Processed 9 events and lost 3 chunks!"
    script = f"""case "$*" in
*,cpu,*) echo "{said}" >&2; echo "{lost}" >&2; exit 234;;
*,tid,time,*) echo "{lost}" >&2; echo "{event}";;
*) exit 1;;
esac"""
    trace = read_trace(str(perf(tmp_path, monkeypatch, script)))
    assert (trace.events, trace.malformed_lines, trace.lost_events) == (1, 0, 3)
    assert next(trace.batches()).ts_ns.tolist() == [7864608000]


def test_a_perf_that_lacks_what_it_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Samples for 'x' event do not have TRACE attribute set. Cannot print 'trace' field."
    data = perf(tmp_path, monkeypatch, f'echo "{said}" >&2; exit 1')
    with pytest.raises(TraceError, match=r"cannot read this perf\.data file: Samples for 'x'"):
        read_trace(str(data))


@pytest.mark.skipif(shutil.which("perf") is None, reason="there is no perf")
def test_the_perf_that_is_installed(tmp_path: Path) -> None:
    packed = FORMS / "linux-5.10" / "perf.data.zst"
    data = tmp_path / "perf.data"
    data.write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(packed.read_bytes()))
    trace = read_trace(str(data))
    assert trace.kernel == "5.10.0-46-amd64"
    assert trace.malformed == []
    if not trace.losses:  # a perf with libtraceevent's plugin
        reference = read_trace(str(FORMS / "linux-5.10" / "perf-script-F.txt.zst"))
        with_probes = trace.ignored_events.pop("pte_list_add_ret", 0)
        assert with_probes
        assert_same_rows(reference, trace, (*TIME, "vm"))


def test_without_perf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = perf(tmp_path, monkeypatch, "")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(TraceError, match=r"a perf.data file, and there is no perf: install it"):
        read_trace(str(data))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo warning >&2; echo incompatible file format >&2; exit 255", "incompatible file format$"),
        ("exit 3", "exit code 3$"),
        ("kill -9 $$", "exit code -9$"),
    ],
)
def test_perf_fails(script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = perf(tmp_path, monkeypatch, script)
    with pytest.raises(TraceError, match=message):
        read_trace(str(data))


def test_a_perf_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = perf(tmp_path, monkeypatch, "")
    (tmp_path / "bin" / "perf").write_bytes(b"\x7fELF")
    with pytest.raises(TraceError, match="Exec format error"):
        read_trace(str(data))


def test_a_perf_that_is_not_done_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event = "vmm 152 [001] 7.864608: kvmmmu:kvm_mmu_set_dirty_bit: 123 gpa nonsense"
    data = perf(tmp_path, monkeypatch, f"echo '{event}'; exec {shutil.which('yes')} '{event}'")
    with pytest.raises(TraceError, match="malformed event"):
        read_trace(str(data), strict=True)


def test_a_packed_perf_data_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"a compressed perf\.data file: decompress it first"):
        read_trace(str(FORMS / "linux-5.10" / "perf.data.zst"))
