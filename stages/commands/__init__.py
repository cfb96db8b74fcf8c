"""The commands of cli.py by concern: thin, a function each, registered on one Typer app.

Heavy imports happen inside the commands (`running.run_stage`), so that `--help` answers at once.
"""
