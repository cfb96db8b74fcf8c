"""Real servers on this machine: one that speaks S3, one that speaks HTTP and fails when told to."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

BUCKET = "features"


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3-compatible server with an empty bucket; gives its endpoint."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    s3fs.S3FileSystem.clear_instance_cache()  # of another server's clients
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="test", aws_secret_access_key="test",
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    try:
        yield endpoint
    finally:
        server.stop()


class FailingServer(ThreadingHTTPServer):
    """Serves a folder. Counts requests; can answer badly or slowly for files of a name.

    Attributes:
        requests: number of requests by (method, path).
        failures: how many GETs of a path are still to be answered by status 500.
        cut: paths whose answers break off halfway.
        stalls: how the answers to a path stall: "short" stops halfway, "slow" sends a byte now and
            then, "silent" sends nothing at all.
        pause_seconds: before each half of an answer's body.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.stalls: dict[str, str] = {}
        self.pause_seconds = 0.0
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: FailingServer

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.server.requests["HEAD", self.path] += 1
        if self.server.stalls.get(self.path) == "silent":
            wait_for_the_other_side(self.rfile)
        super().do_HEAD()

    def do_GET(self) -> None:
        self.server.requests["GET", self.path] += 1
        if self.server.stalls.get(self.path) == "silent":
            wait_for_the_other_side(self.rfile)
        if self.server.failures[self.path] > 0:
            self.server.failures[self.path] -= 1
            self.send_error(500)
            return
        super().do_GET()

    def copyfile(self, source, outputfile) -> None:
        content = source.read()
        half = len(content) // 2
        if stall := self.server.stalls.get(self.path):
            send_stalled(stall, content, outputfile, self.rfile)
        time.sleep(self.server.pause_seconds)
        outputfile.write(content[:half])
        outputfile.flush()
        time.sleep(self.server.pause_seconds)
        if self.server.cut[self.path] > 0:
            self.server.cut[self.path] -= 1
            self.close_connection = True
            return
        outputfile.write(content[half:])


def send_stalled(stall: str, content: bytes, out: BinaryIO, other: BinaryIO) -> None:
    """Half of `content`, or a byte now and then, until the other side closes."""
    if stall == "short":
        out.write(content[: len(content) // 2])
        wait_for_the_other_side(other)
    for start in range(len(content)):
        out.write(content[start : start + 1])
        out.flush()
        time.sleep(0.05)


def wait_for_the_other_side(stream: BinaryIO) -> None:
    """Do nothing until it closes the connection; then there is nobody to answer."""
    while stream.read(1):
        pass
    raise ConnectionAbortedError


class StallingProxy(socketserver.ThreadingTCPServer):
    """Passes connections on to another server.

    Attributes:
        is_stalling: Whether answers come a byte now and then from here on.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self.target, self.is_stalling = (host, int(port)), False
        super().__init__(("127.0.0.1", 0), _Relay)

    def handle_error(self, request, client_address) -> None:
        pass  # the side that stalls is left


class _Relay(socketserver.BaseRequestHandler):
    server: StallingProxy

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as target:
            threading.Thread(target=self._pass_on, args=(target,), daemon=True).start()
            while block := target.recv(65536):
                step = 1 if self.server.is_stalling else len(block)
                for start in range(0, len(block), step):
                    self.request.sendall(block[start : start + step])
                    time.sleep(0.05 if self.server.is_stalling else 0)

    def _pass_on(self, target: socket.socket) -> None:
        with suppress(OSError):
            while block := self.request.recv(65536):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def stalling_proxy(target: str) -> Iterator[StallingProxy]:
    """A `StallingProxy` in front of the server at `target`."""
    with StallingProxy(target) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        yield proxy
        proxy.shutdown()


@contextmanager
def http_server(folder: Path) -> Iterator[FailingServer]:
    """A `FailingServer` of a folder."""
    server = FailingServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def upload(store: Path, url: str) -> None:
    """Copy the files of a store to a URL, as they are."""
    from fsspec.core import url_to_fs

    filesystem, root = url_to_fs(url)
    for path in sorted(store.rglob("*")):
        if path.is_file() and path.name != ".writer.lock":
            target = f"{root}/{path.relative_to(store)}"
            filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(target, path.read_bytes())
