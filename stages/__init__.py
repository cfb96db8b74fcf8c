"""One file per stage: `run(settings)` unpacks settings, calls the package, writes the files.

No logic of their own: `python cli.py NAME` is the one way to run a stage, and DVC runs that.
"""
