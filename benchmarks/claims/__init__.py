"""What is this head worth, and do the paper's claims hold? Trainings, figures, pages.

    python -m benchmarks.claims run         # everything, from rendering on, in runs/claims (hours)
    python -m benchmarks.claims document    # write docs/claims.md, paper-claims.md, README's table
    python -m benchmarks.claims check       # are they what docs/claims/*.json say?

Which head for new classes (docs/claims.md): our default beside the probes, every head with the same
search, on maps of backbones that never saw the classes. The paper's claims (docs/paper-claims.md):
two embedded data sets by two kinds of frozen backbone, one that was trained on the same classes
with clips of its own (the paper's regime: DSTS is a correction that starts at zero), and one that
never saw them (the head learns them all).
"""
