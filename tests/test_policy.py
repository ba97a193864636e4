"""Policies: presets, parsing, and the errors of a wrong knob."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replay.errors import InputError, UsageError
from replay.policy import (
    DESCRIPTIONS,
    PRESETS,
    ExistingChild,
    Flush,
    KnobCodes,
    OccupiedRmap,
    Policy,
    allowed_values,
)


def test_v2_is_the_patch_as_posted() -> None:
    assert PRESETS["v2"].knobs() == {
        "enabled": True,
        "min_free_pages": 5,
        "unsync": "skip",
        "existing_child": "skip",
        "occupied_rmap": "leave_nonpresent",
        "flush": "deferred_if_partial",
        "nested_only": False,
        "split_caches": "none",
        "desc_min": 513,
        "desc_capacity": 553,
        "page_capacity": 40,
        "clear_end": "inclusive",
        "rmap_order": "append",
        "spare_page": "leak",
        "lock_drop_traced": False,
        "alloc_failure": "unchecked",
        "pml": "auto",
        "fault_split": "auto",
    }


def changed(name: str, base: str) -> dict[str, object]:
    other = PRESETS[base].knobs()
    return {knob: value for knob, value in PRESETS[name].knobs().items() if value != other[knob]}


def test_presets_differ_where_their_patches_do() -> None:
    assert changed("v2-desc", "v2") == {
        "occupied_rmap": "grow",
        "spare_page": "keep",
        "alloc_failure": "drop_lock",
    }
    assert changed("v2-alias", "v2-desc") == {"existing_child": "reuse", "flush": "on_link_if_nonleaf"}
    assert changed("linux-6.0", "v2-alias") == {
        "nested_only": True,
        "split_caches": "merged",
        "lock_drop_traced": True,
    }
    assert changed("linux-2026", "linux-6.0") == {"flush": "on_link_always"}
    assert changed("off", "v2") == {"enabled": False}
    assert list(PRESETS) == list(DESCRIPTIONS)


def test_codes_are_plain_integers_in_the_order_of_the_knobs() -> None:
    policy = PRESETS["linux-6.0"]
    codes = policy.codes()
    assert all(type(code) is int for code in codes)
    assert codes.flush == Flush.ON_LINK_IF_NONLEAF
    assert codes.occupied_rmap == OccupiedRmap.GROW
    assert codes.nested_only == 1
    assert codes._asdict().keys() == policy.knobs().keys()


def test_parse_name_with_knobs() -> None:
    policy = Policy.parse("v2:existing_child=reuse,min_free_pages=7,enabled=false")
    assert policy.existing_child is ExistingChild.REUSE
    assert policy.min_free_pages == 7
    assert policy.enabled is False
    assert policy.name == "v2:existing_child=reuse,min_free_pages=7,enabled=false"
    assert Policy.parse("v2") is PRESETS["v2"]


def test_name_of_changed_policy_parses_back_to_it() -> None:
    policy = Policy.parse("v2:min_free_pages=0").with_settings(["flush=on_link_always", "min_free_pages=9"])
    assert policy.min_free_pages == 9
    assert Policy.parse(policy.name) == policy


def test_every_allowed_value_is_taken() -> None:
    for knob in KnobCodes._fields:
        for word in allowed_values(knob):
            policy = Policy.parse(f"v2:{knob}={word}")
            assert str(policy.knobs()[knob]).lower() == word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v3", "unknown policy 'v3': use auto, v2, v2-desc, v2-alias, linux-6.0, linux-2026, off"),
        ("v2:flush=never", "flush=never: use deferred_if_partial or on_link_always or on_link_if_nonleaf"),
        ("v2:nested_only=2", "nested_only=2: use false or true"),
        ("v2:min_free_pages=-1", "min_free_pages=-1: use a number"),
        ("v2:min_free_pages=99999999999", "use a number, 0 to"),
        ("v2:colour=red", "unknown knob 'colour': use one of enabled, min_free_pages"),
        ("v2:flush", "'flush' is not of the form KNOB=VALUE"),
        ("v2:", "'' is not of the form KNOB=VALUE"),
        ("linux-6.0:desc_capacity=100", "caches never fill"),
    ],
)
def test_wrong_policy_names_the_allowed_values(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Policy.parse(text)
    assert message in str(error.value)


def test_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'base = "linux-6.0"\ndesc_capacity = 1026\nnested_only = false\n[knobs]\nrmap_order = "head"\n'
    )
    policy = Policy.parse(str(file))
    assert policy.name == "mine"
    assert policy.desc_capacity == 1026
    assert policy.nested_only is False
    assert policy.knobs()["rmap_order"] == "head"
    assert policy.split_caches == PRESETS["linux-6.0"].split_caches


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"flush = ", "not a TOML file"),
        (b"\xff\xfe", "not UTF-8"),
        (b'base = "v9"', "unknown base 'v9'"),
        (b"name = 3", "name must be text"),
        (b"min_free_pages = true", "min_free_pages=True: use a number"),
        (b"base = [1]", "unknown base [1]"),
        (b"knobs = 1", "knobs a table"),
        (b"flush = 2020-01-01", "flush=2020-01-01: use deferred"),
        (b"unsync = {a = 1}", "unsync={'a': 1}: use skip or split"),
        (b"min_free_pages = nan", "min_free_pages=nan: use a number"),
        (b"min_free_pages = " + b"9" * 5000, "not a TOML file"),
        (b"min_free_pages = 0x" + b"f" * 9000, "min_free_pages=a number too large: use a number"),
        (b"a = " + b"[" * 5000, "nested too deep"),
    ],
)
def test_bad_toml_file(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises((InputError, UsageError)) as error:
        Policy.parse(str(file))
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_missing_toml_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Policy.parse(str(tmp_path / "none.toml"))


def test_import_brings_no_numba() -> None:
    code = "import sys, replay.policy; sys.exit('numba' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("knob", "value"), [("tdp_order", "before"), ("on_error", "next_head")])
def test_knob_that_is_gone(tmp_path: Path, knob: str, value: str) -> None:
    file = tmp_path / "old.toml"
    file.write_text(f'{knob} = "{value}"\n')
    for text, where in ((str(file), str(file)), (f"v2:{knob}={value}", f"policy 'v2:{knob}={value}'")):
        with pytest.raises(UsageError) as error:
            Policy.parse(text)
        assert str(error.value) == f"{where}: knob {knob!r} is gone, it never had an effect: leave it out"
