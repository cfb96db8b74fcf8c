"""Fixtures of the store's tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def unhurried_disk(monkeypatch):
    """No waiting for the disk: what fsync is for, a power cut, no test here can cause.

    Writers in processes of their own (test_store_interruption.py) keep the real one.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
