"""The synthetic KVM: a small model of Linux 6.1 arch/x86/kvm/mmu that prints what its tracepoints would.

It knows what tracepoints print, not what eager page splitting does: ``eager_page_split=N``.
Silent actions of KVM (write protection, dropped SPTEs) change the state and print nothing; where
the TDP MMU prints its change, so does the model.  Functions named after kernel functions do what
those do, as far as a trace shows it.
"""
