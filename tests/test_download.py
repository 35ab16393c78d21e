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
    with pytest.raises(jclip.ClipError, match="expected a file, a folder or one of RN50, RN101, .*ViT-L/14@336px"):
        jclip.weights_file("RN51")


OPENAI = """
afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt
8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt
7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt
52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt
be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt
40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt
5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt
b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt
3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt
"""  # the ends of the URLs in openai/CLIP clip/clip.py, in its order


def test_the_official_models_and_their_hashes_are_openais(monkeypatch, tmp_path):
    expected = OPENAI.split()
    asked = []
    monkeypatch.setattr(download, "download", lambda *arguments: asked.append(arguments))
    assert len(jclip.available_models()) == 9
    for name in jclip.available_models():
        download.official(name, tmp_path)
    assert [url for url, _, _ in asked] == [f"{download.HOST}/{end}" for end in expected]
    assert [f"{digest}/{target.name}" for _, digest, target in asked] == expected
    assert [target.name for _, _, target in asked] == [
        f"{name.replace('/', '-').replace('@', '-')}.pt" for name in jclip.available_models()
    ]
