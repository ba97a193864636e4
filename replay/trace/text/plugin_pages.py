"""PAGE events in the words of libtraceevent's kvm plugin, plugins/plugin_kvm.c, rewritten for the scanner.

A page's role goes on as the word that the form tells (see ``replay.trace.roles``).  A PAGE event without
gfn cannot be replayed: it gets a name of its own, one of ``INCOMPLETE_NAMES``, and is counted as lost.
"""

from __future__ import annotations

import re

from replay.trace.scan.role_words import PLUGIN_WORD, RAW_WORD

WITHOUT = "_without_"
"""Between the name of an event and the field that its lines lack."""
INCOMPLETE_NAMES = (
    "kvm_mmu_sync_page_without_gfn",
    "kvm_mmu_unsync_page_without_gfn",
    "kvm_mmu_prepare_zap_page_without_gfn",
    "kvm_mmu_set_spte_without_sptep",
)

# plugin_kvm.c: kvm_mmu_print_role; the levels of guest tables and "pge" are those of its first version
_PLUGIN_PAGE = re.compile(
    rb"(?:(?P<created>new|existing) sp gfn (?P<gfn>[0-9a-f]+) )?"
    rb"(?:(?P<level>\d+)(?:/\d+)? q(?P<quadrant>\d)(?P<direct> direct)?"
    rb" (?P<access>[-wux]{3})(?P<invalid> invalid)?"
    rb" (?P<pae>!?)p[ag]e (?P<nxe>!?)nxe(?: (?P<wp>!?)wp)?(?P<smep> smep)?(?P<smap> smap)?(?P<smm> smm)?"
    rb" root (?P<root>-?\d+) (?P<sync>un)?sync|WORD: (?P<word>[0-9a-f]+))[\0\s]*"
)
_PAGE = re.compile(
    rb"(kvm_mmu_(?:get|sync|unsync|prepare_zap)_page)(: +)"
    rb"(?=new |existing |\d+(?:/\d+)? q|WORD)([^\n]*)"
)


def _plugin_word(page: re.Match[bytes]) -> int:
    """The lower 16 bits of the role, and smm, that a text of the plugin was printed from."""
    if page["word"]:  # a file of the other byte order
        return RAW_WORD | int(page["word"], 16) & ~(RAW_WORD | PLUGIN_WORD)
    word = PLUGIN_WORD | int(page["level"]) & 15 | int(page["quadrant"]) << 5
    flags = (not page["pae"], page["direct"], page["invalid"], not page["nxe"], page["wp"] == b"")
    for bit, is_set in zip((4, 7, 11, 12, 13), flags, strict=True):
        word |= 1 << bit if is_set else 0
    for bit, name in ((14, "smep"), (15, "smap"), (24, "smm")):
        word |= 1 << bit if page[name] else 0
    for bit, letter in ((8, b"x"), (9, b"w"), (10, b"u")):
        word |= 1 << bit if letter in page["access"] else 0
    return word


def _page_text(match: re.Match[bytes]) -> bytes:
    """One PAGE event in the words that the scanner reads: ``sp [gen G ]gfn X role WORD root R sync ...``."""
    name, colon, text = match.groups()
    page = _PLUGIN_PAGE.fullmatch(text)
    if not page:
        return match[0]
    gfn = page["gfn"]
    if gfn is None and b"get" in name:
        return match[0]
    if gfn is None:
        return name + WITHOUT.encode() + b"gfn: ?"
    word, root, sync = _plugin_word(page), page["root"] or b"0", page["sync"] or b""
    text = (name, colon, gfn, word, root, sync, page["created"] or b"")
    return b"%s%ssp gfn %s role %x root %s %ssync %s" % text


def rewrite_pages(text: bytes) -> bytes:
    """``text`` with its PAGE events as the scanner reads them."""
    return _PAGE.sub(_page_text, text)
