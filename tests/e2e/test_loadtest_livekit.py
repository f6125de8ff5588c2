"""``host loadtest`` through a real livekit-server: callers in WebRTC, processes of their own, made-up engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from livekit_server import KEY, SECRET, LiveKitServer

pytestmark = pytest.mark.e2e

HOST = str(Path(sys.executable).parent / "host")
OPTIONS = [
    "--transport",
    "livekit",
    "--rooms",
    "2",
    "--places",
    "2",
    "--duration",
    "18",
    "--cycle-s",
    "6",
    "--call-s",
    "12",
    "--out",
    "out",
]


def test_callers_in_rooms_of_a_server(tmp_path: Path, livekit: LiveKitServer) -> None:
    (tmp_path / "roomful.toml").write_text('[inference]\nengines = "fake"\n')
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LIVEKIT_", "ROOMFUL_"))}
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [HOST, "loadtest", *OPTIONS],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        cwd=tmp_path,
        env={
            **kept,
            "TMPDIR": str(tmp_path / "tmp"),
            "LIVEKIT_URL": livekit.url,
            "LIVEKIT_API_KEY": KEY,
            "LIVEKIT_API_SECRET": SECRET,
        },
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (curve,) = report["curves"]
    (point,) = curve["points"]
    talk = point["conversations"]
    assert (point["refused"], point["failed"], point["cross_talk"], curve["left_over"]) == ([], [], [], [])
    assert talk["turns"] >= 3
    assert talk["lost"] == 0
    assert 0.2 < talk["response"]["p50"] < 5
    # Stages come from the jobs that the server gave; two callers are two processes.
    assert point["stages"]["endpointing"]["count"] >= 1
    assert sum(use["kind"] == "callers" for use in point["processes"]) == 2
    assert list((tmp_path / "tmp").iterdir()) == []
