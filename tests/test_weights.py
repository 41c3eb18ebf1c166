"""Weights that are named wrongly or are out of reach: told for what it is, at once."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from curation.scores.weights import Weights, hub_answers, is_path
from curation.settings import ConfigError

KIND = Weights("toy", "toys.checkpoint", "a folder", "or none")
HUB_ID = "owner/model"


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        KIND.check_place(name)
    return str(caught.value)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As on a user's machine; the gate itself never asks the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("/a", True), ("./a/b", True), ("~/a", True), ("a/b/c", True), ("a/b", False), ("a", False)],
)
def test_a_hub_id_has_one_slash_at_most(name: str, expected: bool) -> None:
    assert is_path(name) == expected


def test_a_path_is_told_for_what_it_is(tmp_path: Path, online: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.json").touch()
    online.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody is asked
    assert "there is no such folder" in refusal(str(tmp_path / "none"))
    assert "it is a file, and a folder is needed" in refusal(str(tmp_path / "file"))
    assert "the folder has no config.json" in refusal(str(tmp_path / "empty"))
    KIND.check_place(str(tmp_path / "whole"))
    online.setenv("HOME", str(tmp_path))
    KIND.check_place("~/whole")


def test_a_hub_out_of_reach_is_asked_once(online: pytest.MonkeyPatch) -> None:
    online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    told = refusal(HUB_ID)
    assert f"{constants.ENDPOINT} does not answer, and it is in no cache here" in told
    assert "hf download owner/model" in told


def test_what_is_cached_is_used_without_asking(tmp_path: Path) -> None:
    """In a process of its own: from then on it asks nothing, and nor do those that it starts."""
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("abc")
    code = f"""
import os
from curation.scores.weights import Weights
Weights("toy", "toys.checkpoint", "a folder", "or none").check_place({HUB_ID!r})
from huggingface_hub import constants, hf_hub_download
assert constants.HF_HUB_OFFLINE
print(hf_hub_download({HUB_ID!r}, "config.json"), os.environ["HF_HUB_OFFLINE"])
"""
    environment = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}
    environment |= {"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(snapshot / "config.json"), "1"]


def test_a_hub_that_answers_is_left_to_the_libraries(online: pytest.MonkeyPatch) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        KIND.check_place(HUB_ID)
        assert not constants.HF_HUB_OFFLINE
        # Through a proxy it is the proxy that has to answer.
        online.setattr(constants, "ENDPOINT", "http://hub.test")
        online.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        assert hub_answers()
        online.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
        assert not hub_answers()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
