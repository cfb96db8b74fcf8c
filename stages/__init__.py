"""One file per family of commands: inputs are opened, the package is called, outputs are written.

`python cli.py NAME` is the one way to run a stage, and DVC runs that. A file's main stage is `run`.
No file imports another one but common.py; what a stage needs of another is handed in by cli.py.
"""
