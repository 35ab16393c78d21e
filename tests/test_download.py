"""Downloads from a local server that works, fails or is absent."""

import errno
import hashlib
import http.client
import http.server
import io
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from conftest import GOLDEN

import jclip
from jclip import download

CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT and records the Range of each request; after `cut` bytes it closes the connection."""

    daemon_threads = True
    cut = None
    ignores_range = False
    raw_response = None  # bytes sent instead of HTTP

    def __init__(self):
        self.ranges = []
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.server_address[1]}/ViT-B-32.pt"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        requested = self.headers.get("Range")
        self.server.ranges.append(requested)
        if "absent" in self.path:
            return self.send_error(404)
        start = int(requested[len("bytes=") : -1]) if requested and not self.server.ignores_range else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        if self.server.raw_response:
            return self.wfile.write(self.server.raw_response)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "ViT-B-32.pt"


def fetch(server, target, digest=DIGEST):
    return download.download(server.url(), digest, target)


def test_a_file_is_downloaded_once(server, target):
    assert fetch(server, target) == target and target.read_bytes() == CONTENT
    fetch(server, target)
    assert server.ranges == [None] and [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_connection_that_ends_early_is_resumed(server, target):
    server.cut = 100_000
    with pytest.raises(jclip.ClipError, match="100000 of 512000 bytes.*run the same command again"):
        fetch(server, target)
    assert not target.exists() and target.with_name("ViT-B-32.pt.part").stat().st_size == 100_000
    server.cut = None
    fetch(server, target)
    assert target.read_bytes() == CONTENT and server.ranges == [None, "bytes=100000-"]


def test_a_server_without_range_requests_sends_the_whole_file_again(server, target):
    target.parent.mkdir()
    target.with_name("ViT-B-32.pt.part").write_bytes(b"x" * 1000)
    server.ignores_range = True
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_a_complete_part_is_used_and_one_that_is_too_long_is_not(server, target, part):
    target.parent.mkdir()
    target.with_name("ViT-B-32.pt.part").write_bytes(part)
    if part == CONTENT:
        fetch(server, target)
        assert target.read_bytes() == CONTENT
    else:
        with pytest.raises(jclip.ClipError, match="SHA-256"):
            fetch(server, target)
        assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    "raw_response",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300,
    ],
)
def test_a_server_that_does_not_speak_http_is_a_clear_error(server, target, raw_response):
    server.raw_response = raw_response
    with pytest.raises(jclip.ClipError, match="cannot download|SHA-256") as raised:
        fetch(server, target)
    assert str(raised.value).isprintable() and not target.exists()


def test_a_download_without_end_is_given_up(server, target, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 200_000)
    with pytest.raises(jclip.ClipError, match="more than 200000 bytes"):
        fetch(server, target)
    assert not target.exists() and target.with_name("ViT-B-32.pt.part").stat().st_size == 0


def test_a_wrong_hash_leaves_nothing(server, target):
    with pytest.raises(jclip.ClipError, match="does not have the SHA-256"):
        fetch(server, target, "0" * 64)
    assert list(target.parent.iterdir()) == []


def test_a_file_in_the_way_is_left_alone(server, target):
    target.parent.mkdir()
    target.write_text("mine")
    with pytest.raises(jclip.ClipError, match="not the official file"):
        fetch(server, target)
    assert target.read_text() == "mine"


def test_an_absent_file_and_an_absent_server_are_clear_errors(server, target):
    with pytest.raises(jclip.ClipError, match="cannot download .*Not Found"):
        download.download(server.url().replace("ViT", "absent"), DIGEST, target)
    with pytest.raises(jclip.ClipError, match="cannot download .*refused"):
        download.download("http://127.0.0.1:9/ViT-B-32.pt", DIGEST, target)
    assert list(target.parent.iterdir()) == []


class OldTimeout(OSError):
    """socket.timeout in Python 3.9, where it is no TimeoutError."""


@pytest.mark.parametrize(
    "error",
    [
        OldTimeout("timed out"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        ssl.SSLError(1, "[SSL] bad record"),
        http.client.BadStatusLine("x"),
    ],
)
@pytest.mark.parametrize("when", ["before", "between"])
def test_whatever_the_network_raises_says_how_to_go_on(target, monkeypatch, error, when):
    class Response(io.BytesIO):
        status, headers = 200, {}

        def read(self, n):
            block = super().read(n)
            if not block:
                raise error
            return block

    def urlopen(*_, **__):
        if when == "before":
            raise error
        return Response(CONTENT)

    monkeypatch.setattr(download.urllib.request, "urlopen", urlopen)
    with pytest.raises(
        jclip.ClipError, match="cannot download http.*go on" if when == "between" else "cannot download http"
    ) as raised:
        download.download("http://a.example/ViT-B-32.pt", DIGEST, target)
    assert str(error.args[-1]) in str(raised.value)
    assert not target.exists() and (when == "before" or target.with_name("ViT-B-32.pt.part").read_bytes() == CONTENT)


def test_a_disk_that_fails_is_named_and_not_the_network(server, target):
    part = target.with_name("ViT-B-32.pt.part")
    target.parent.mkdir()
    if Path("/dev/full").exists():
        part.symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left on device.*ViT-B-32.pt.part"):
            fetch(server, target)
        part.unlink()
    part.mkdir()
    with pytest.raises(OSError, match="Is a directory.*ViT-B-32.pt.part"):
        fetch(server, target)


def test_tls_is_verified_although_jittor_switches_it_off(server, target, tmp_path, monkeypatch):
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, to make a certificate")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-days",
            "2",
            "-keyout",
            tmp_path / "key.pem",
            "-out",
            tmp_path / "certificate.pem",
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    # as Jittor does when it is imported
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    with pytest.raises(jclip.ClipError, match="CERTIFICATE_VERIFY_FAILED"):
        download.download(server.url("https"), DIGEST, target)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    assert download.download(server.url("https"), DIGEST, target).read_bytes() == CONTENT


def test_official_names_load_from_the_cache(tmp_path, monkeypatch):
    """`jclip.weights_file` returns the verified file of an official name; here it is a tiny one."""
    tiny = GOLDEN / "weights" / "release.pt"
    monkeypatch.setitem(download.OFFICIAL, "ViT-B/32", (hashlib.sha256(tiny.read_bytes()).hexdigest(), "ViT-B-32.pt"))
    (tmp_path / "ViT-B-32.pt").write_bytes(tiny.read_bytes())
    assert download.official("ViT-B/32", Path(tmp_path)) == tmp_path / "ViT-B-32.pt"
    for name in ("ViT-B/32", Path("ViT-B/32"), tmp_path / "ViT-B-32.pt"):
        assert jclip.weights_file(name, str(tmp_path)) == tmp_path / "ViT-B-32.pt"
    monkeypatch.setattr(download, "CACHE", tmp_path)
    assert jclip.weights_file("ViT-B/32") == tmp_path / "ViT-B-32.pt"
    assert "ViT-B/32" in jclip.available_models() and "RN50" not in jclip.available_models()


def test_the_table_has_openais_hash():
    assert download.OFFICIAL["ViT-B/32"][0] == "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
