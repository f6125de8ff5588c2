"""Runs a part of a bench in a process of its own: the stock way in the user's environment, ours in ours.

Thread teams read their settings once, when the library is loaded, so both cannot share a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from report import ROOT

from host.config import inference_environment

_MARK = "result: "


def in_process(script: str, *arguments: str, ours: bool) -> Any:
    """Run ``script`` with ``arguments`` and return what it gave to ``give_back``.

    ``ours``: in the environment that the host starts its inference process in.
    """
    environment = inference_environment() if ours else dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        [sys.executable, script, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    results = [line for line in process.stdout.splitlines() if line.startswith(_MARK)]
    if process.returncode != 0 or not results:
        raise SystemExit(f"{script} {' '.join(arguments)} ended with {process.returncode}")
    return json.loads(results[-1].removeprefix(_MARK))


def give_back(result: object) -> None:
    """What the process was run for. Call it last."""
    print(f"{_MARK}{json.dumps(result)}", flush=True)
