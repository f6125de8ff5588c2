"""Its load is what the file "load" in the working directory says; its jobs are those of ``orders.py``."""

from __future__ import annotations

from pathlib import Path

from orders import entrypoint

__all__ = ["entrypoint"]


def load_fnc() -> float:
    return float(Path("load").read_text())
