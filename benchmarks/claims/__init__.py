"""Do the paper's claims hold on data that we control? The trainings, their figures, the page.

    python -m benchmarks.claims run         # everything, from rendering on, in runs/claims (hours)
    python -m benchmarks.claims document    # write docs/claims.md and the README's table
    python -m benchmarks.claims check       # are both what docs/claims/*.json say?

Four regimes, two embedded data sets by two kinds of frozen backbone: one that was trained on the
same classes with clips of its own (the paper's regime: DSTS is a correction that starts at zero),
and one that never saw the classes (the head learns them all).
"""
