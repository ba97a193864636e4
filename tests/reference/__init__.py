"""Slow reference model of KVM's MMU with eager page splitting: an oracle for the fast engine.

Written from the kernel's own code (6.1 with the eager-splitting patch v2 20/26) and independent of
`replay.mmu`.
"""
