"""Clients that send half a request, or a byte a second: they are cut off, and are in nobody's way."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import test_page
from test_page import Slow, encoded, tone

from tests.classifier_cases import clustered, write_embeddings

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from classifiers import lookup
from classifiers.charts.projection import Pca
from classifiers.lookup import Lookup
from classifiers.service.app import make_app
from classifiers.service.corpus_map import CorpusMap
from classifiers.service.server import server_of, warm_up
from classifiers.service.uploads import Limits

run = test_page.run  # the fixture
WAIT = 30  # seconds for what takes a fraction of one
HEAD, BODY = 0.5, 1.0  # seconds: the limits here
POST = (
    b"POST /api/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\nContent-Length: 9999\r\n\r\n"
)


@contextmanager
def serving(opened: Lookup, limits: Limits) -> Iterator[int]:
    """A server on loopback, by its port."""
    server = server_of(make_app(opened, "pca", limits), limits)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(run: Path) -> Iterator[int]:
    with serving(lookup.open(run), Limits(head=HEAD, body=BODY)) as port:
        yield port


@contextmanager
def connected(port: int, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as client:
        client.sendall(sent)
        yield client


def everything(client: socket.socket) -> bytes:
    """Until the other side closes the connection, which is waited for."""
    got = b""
    while piece := client.recv(4096):
        got += piece
    return got


def asked(port: int) -> str:
    """The nearest row to a recording that is sent in one piece."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/query", encoded(tone(600)))
    request.add_header("Content-Type", "audio/wav")
    with urllib.request.urlopen(request, timeout=WAIT) as answer:
        return str(json.load(answer)["neighbours"][0]["id"])


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    with connected(port) as client:
        assert everything(client) == b""


@pytest.mark.parametrize(
    "half", [b"GET /api/r", b"GET /api/run HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: localhost\r\n"]
)
@pytest.mark.parametrize("before", [b"", b"GET /api/run HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_half_a_request_and_then_silence_is_closed(port: int, before: bytes, half: bytes) -> None:
    """Behind a whole one, which is answered, too."""
    with connected(port, before + half) as client:
        answers = everything(client)
    assert answers.startswith(b"HTTP/1.1 200 " if before else b"HTTP/1.1 408 ")
    assert b"HTTP/1.1 408 " in answers


@pytest.mark.parametrize("path", [b"/api/query", b"/api/run", b"/nowhere"])
def test_a_body_that_dribbles_is_cut(port: int, path: bytes) -> None:
    """Each byte comes well within the limit; together they would take hours."""
    until = time.monotonic() + WAIT
    with connected(port, POST.replace(b"/api/query", path)) as client:
        client.settimeout(BODY / 10)
        got = b""
        while time.monotonic() < until:
            try:
                client.sendall(b"R")
                piece = client.recv(4096)
                if not piece:
                    break
                got += piece
            except TimeoutError:
                continue
            except OSError:  # it is closed while a byte is on its way
                break
        else:
            raise AssertionError("it is still open")
    assert got.startswith(b"HTTP/1.1 408 " if path == b"/api/query" else b"HTTP/1.1 40")


def test_slow_clients_are_in_nobodys_way(run: Path) -> None:
    """Twice as many as may be looked up at once, of each kind; their time is not up yet."""
    limits = Limits(head=60.0, body=60.0, at_once=4)
    with serving(lookup.open(run), limits) as port, ExitStack() as stack:
        sent = [POST + b"RIFF"] * 8 + [b"GET /"] * 8
        opened = [stack.enter_context(connected(port, each)) for each in sent]
        assert [asked(port) for _ in range(3)] == ["r2"] * 3
        for client in opened[:8]:
            client.sendall(b"R")  # all are open still


def test_what_uploads_hold_together_is_bounded(run: Path) -> None:
    limits = Limits(held_bytes=20_000, body=60.0)
    with serving(lookup.open(run), limits) as port:
        with connected(port, POST.replace(b"9999", b"99999") + bytes(30_000)) as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
        with connected(port, POST + bytes(9_000)):
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/api/run", timeout=WAIT).status == 200


def test_a_client_that_hangs_up_leaves_no_traceback(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does one whose body is no HTTP."""
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(lookup.open(run), Limits()) as port:
        with connected(port, POST + b"RIFF"):
            time.sleep(0.2)
        for path in (b"/api/query", b"/nowhere"):
            with connected(port, head % path + b"ZZ\r\n") as client:
                assert b"HTTP/1.1 4" in everything(client)
        assert asked(port) == "r2"
    assert "Traceback" not in capfd.readouterr().err


def test_the_model_and_the_map_are_there_before_the_first_visitor(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, said = Slow(run), list[str]()
    opened.go.set()
    drawn = CorpusMap(opened, "pca")  # type: ignore[arg-type]
    placed: list[int] = []
    monkeypatch.setattr(Pca, "place", lambda _, units: placed.append(len(units)) or np.zeros((1, 2)))
    drawn.fitted()
    placed.clear()  # of fitting
    warm_up(opened, drawn, said.append)  # type: ignore[arg-type]
    assert placed == [1], "what places a query is compiled at its first use"
    assert opened._encode._encode is not None
    assert drawn._fitted is not None
    assert [line.split()[0] for line in said] == ["loading", "drawing"]


def test_a_run_whose_model_is_not_at_hand_is_served_and_that_is_said(tmp_path: Path) -> None:
    vectors, labels = clustered(9, 4)
    opened, said = lookup.open(write_embeddings(tmp_path / "run", vectors, labels)), list[str]()
    drawn = CorpusMap(opened, "pca")
    warm_up(opened, drawn, said.append)
    assert any("cannot be looked up here" in line and "--model" in line for line in said)
    assert drawn._fitted is not None
