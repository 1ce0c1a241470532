"""Files on disk and over HTTP, from a real server on this machine: whole, cut short, continued, wrong, missing."""

import gzip
import hashlib
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import pytest

from equipoise.data import files, load
from equipoise.errors import InputError

IMAGES, LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 4, 4), dtype=np.uint8)
DIGITS = (np.arange(40) % 3).astype(np.uint8)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


CONTENT = {IMAGES: idx(PIXELS), LABELS: idx(DIGITS)}
PACKED = {name: gzip.compress(content) for name, content in CONTENT.items()}


class Server:
    """Serves `PACKED` under /mnist/; `cuts` are the bytes after which the next answers for images break off."""

    def __init__(self):
        self.packed, self.ranges, self.cuts, self.asked = dict(PACKED), True, [], []
        self.pause = 0.0  # seconds before each byte
        self.header_pause = 0.0  # the same, of the headers
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()

    def handler(server):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        return Handler

    def answer(self, request):
        folder, _, name = urlsplit(request.path).path.lstrip("/").rpartition("/")
        wanted = request.headers.get("Range")
        self.asked.append((name, wanted))
        if folder != "mnist" or name not in self.packed:
            return request.send_error(404)
        if self.header_pause:
            return self.trickle_headers(request)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        body = self.packed[name][start:]
        if not body:
            return request.send_error(416)
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        cut = self.cuts.pop(0) if self.cuts and name == IMAGES else len(body)
        if not self.pause:
            request.wfile.write(body[:cut])
            return None
        with suppress(ConnectionError):
            for byte in body:
                time.sleep(self.pause)
                request.wfile.write(bytes([byte]))

    def trickle_headers(self, request):
        with suppress(ConnectionError):
            for byte in b"HTTP/1.0 200 OK\r\n" + b"X-Padding: 0\r\n" * 1000:
                time.sleep(self.header_pause)
                request.wfile.write(bytes([byte]))

    def asked_for(self, name):
        return [wanted for asked, wanted in self.asked if asked == name]


@pytest.fixture
def server(monkeypatch, tmp_path):
    names = {name: files.Download(name, hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()}
    monkeypatch.setitem(files.ARCHIVES, "mnist", files.Archive("mnist", (), names[IMAGES], names[LABELS]))
    monkeypatch.delenv("EQUIPOISE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    server = Server()
    monkeypatch.setenv("EQUIPOISE_MIRROR", server.url)
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "equipoise" / "mnist"
    folder.mkdir(parents=True)
    return folder


def loads_right():
    images, labels = files.read("mnist")
    np.testing.assert_array_equal(images, PIXELS)
    np.testing.assert_array_equal(labels, DIGITS)


def test_downloaded_once(server, cache):
    loads_right()
    loads_right()
    assert server.asked == [(IMAGES, None), (LABELS, None)]
    assert {path.name for path in cache.iterdir() if path.suffix != ".lock"} == {IMAGES, LABELS}


def test_load_scales_bytes_to_the_unit_interval(server):
    X, y = load("mnist", classes=(2, 0))
    np.testing.assert_array_equal(X, PIXELS[DIGITS != 1].reshape(-1, 16) / 255)
    np.testing.assert_array_equal(y, np.where(DIGITS[DIGITS != 1] == 2, -1, 1))


def test_truncated_answers_are_continued(server):
    server.cuts = [100, 50]
    loads_right()
    assert server.asked_for(IMAGES) == [None, "bytes=100-", "bytes=150-"]


def test_interrupted_download_is_continued(server, cache):
    (cache / f"{IMAGES}.part").write_bytes(PACKED[IMAGES][:300])
    loads_right()
    assert server.asked_for(IMAGES) == ["bytes=300-"]


def test_download_interrupted_just_before_its_end(server, cache):
    (cache / f"{IMAGES}.part").write_bytes(PACKED[IMAGES])
    loads_right()
    assert server.asked_for(IMAGES) == [f"bytes={len(PACKED[IMAGES])}-"]


def test_server_without_ranges_begins_again(server, cache):
    server.ranges = False
    (cache / f"{IMAGES}.part").write_bytes(PACKED[IMAGES][:300])
    loads_right()
    assert server.asked_for(IMAGES) == ["bytes=300-"]
    assert (cache / IMAGES).read_bytes() == PACKED[IMAGES]


def test_server_that_always_breaks_off_is_given_up(server, cache):
    server.ranges, server.cuts = False, [100] * 10
    with pytest.raises(
        InputError, match=r"images-idx3-ubyte.gz: the answer ends after 100 bytes; run again to continue"
    ):
        load("mnist")
    assert not (cache / IMAGES).exists()
    assert (cache / f"{IMAGES}.part").read_bytes() == PACKED[IMAGES][:100]


def test_part_of_another_file_is_dropped(server, cache):
    (cache / f"{IMAGES}.part").write_bytes(b"x" * 50)
    loads_right()
    assert server.asked_for(IMAGES) == ["bytes=50-", None]


def test_other_packing_of_the_same_content(server):
    server.packed[IMAGES] = gzip.compress(CONTENT[IMAGES], compresslevel=1, mtime=12345)
    assert server.packed[IMAGES] != PACKED[IMAGES]
    loads_right()


def test_second_mirror_when_the_first_has_nothing(server, monkeypatch):
    archive = files.ARCHIVES["mnist"]._replace(mirrors=(f"{server.url}/nowhere", f"{server.url}/mnist"))
    monkeypatch.setitem(files.ARCHIVES, "mnist", archive)
    monkeypatch.delenv("EQUIPOISE_MIRROR")
    loads_right()


def refusal(message):
    with pytest.raises(InputError, match=message) as error:
        load("mnist")
    assert "\n" not in str(error.value)


def test_wrong_content_is_refused_and_nothing_is_kept(server, cache):
    server.packed[IMAGES] = gzip.compress(idx(PIXELS[::-1]))
    found = hashlib.sha256(idx(PIXELS[::-1])).hexdigest()
    refusal(f"{IMAGES} with content of SHA-256 [0-9a-f]{{64}}; found http.*{IMAGES}: {found}; run again")
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_not_found(server):
    del server.packed[LABELS]
    refusal(f"{LABELS} with content .*; found http://.*/mnist/{LABELS}: HTTP Error 404: Not Found; run again")


def test_offline(server, monkeypatch):
    server.httpd.server_close()
    refusal(f"{IMAGES} with content .*Connection refused.*put the file into .*equipoise/mnist")


def test_senseless_mirror(server, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_MIRROR", "nowhere")
    refusal("unknown url type: 'nowhere/mnist/images-idx3-ubyte.gz'")


def test_cache_that_cannot_be_made(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refusal("a folder .*file/equipoise/mnist to download to; found .*Not a directory.*set XDG_CACHE_HOME")


@pytest.mark.parametrize("place", ["cache", "EQUIPOISE_DATA"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PACKED[IMAGES][:-20], f"the whole gzip file in .*{IMAGES}; found a file that ends after"),
        (gzip.compress(idx(PIXELS + 1)), f"content with SHA-256 [0-9a-f]{{64}} in .*{IMAGES}; found [0-9a-f]{{64}}"),
        (b"<html>not here</html>", f"a gzip file in .*{IMAGES}; found Not a gzipped file"),
        (PACKED[IMAGES][:40] + b"x" * 9 + PACKED[IMAGES][49:], f"in .*{IMAGES}; found"),
        (b"", f"in .*{IMAGES}; found"),
    ],
)
def test_damaged_file_is_named_and_left_alone(server, cache, monkeypatch, place, content, message):
    if place == "EQUIPOISE_DATA":
        monkeypatch.setenv("EQUIPOISE_DATA", str(cache.parent))
    (cache / IMAGES).write_bytes(content)
    refusal(message)
    assert (cache / IMAGES).read_bytes() == content
    assert server.asked == []


def test_folder_of_the_users_own(server, cache, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DATA", str(cache.parent))
    refusal(f"the file .*{IMAGES}; found nothing there; .*unset EQUIPOISE_DATA")
    for name, packed in PACKED.items():
        (cache / name).write_bytes(packed)
    loads_right()
    assert server.asked == []


def test_downloads_are_bounded(server, monkeypatch):
    monkeypatch.setattr(files, "PACKED", 100)
    with pytest.raises(InputError, match="bytes"):
        load("mnist")
    assert len(server.asked_for(IMAGES)) == 2


def test_a_mirror_is_not_asked_for_ever(server, monkeypatch):
    monkeypatch.setattr(files, "ATTEMPTS", 3)
    server.cuts = [1] * 50
    with pytest.raises(InputError, match="ends after"):
        load("mnist")
    assert len(server.asked_for(IMAGES)) == 6


def test_a_mirror_that_trickles_is_given_up_and_continued_later(server, cache, monkeypatch):
    """A byte now and then: no wait for the next one is long, and the file would take hours."""
    monkeypatch.setattr(files, "TIMEOUT", 0.5)
    server.pause = 0.02
    with pytest.raises(InputError, match=r"less than 16 kB in 0.5 seconds; run again to continue"):
        load("mnist")
    assert len(server.asked_for(IMAGES)) == 2  # the only mirror, twice: not as often as it would give a few bytes
    had = (cache / f"{IMAGES}.part").stat().st_size
    assert 0 < had < len(PACKED[IMAGES])
    server.pause = 0.0
    loads_right()
    assert server.asked_for(IMAGES)[2:] == [f"bytes={had}-"]


def test_headers_that_trickle_have_one_limit_together(server, monkeypatch):
    """A byte of them every now and then: no wait for the next one is long, and all would take minutes."""
    monkeypatch.setattr(files, "TIMEOUT", 0.5)
    server.header_pause = 0.02
    with pytest.raises(InputError, match=r"no complete headers in 0.5 seconds; run again to continue"):
        load("mnist")
    assert len(server.asked_for(IMAGES)) == 2  # the only mirror, twice
    server.header_pause = 0.0
    loads_right()


def test_what_a_gzip_unpacks_to_is_bounded(server, monkeypatch):
    monkeypatch.setattr(files, "UNPACKED", 1000)
    server.packed[IMAGES] = gzip.compress(b"\0" * 10**6)
    with pytest.raises(InputError, match="more"):
        load("mnist")
