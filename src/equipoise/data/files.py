"""The files of MNIST and Fashion-MNIST: found, downloaded, continued, checked."""

import gzip
import hashlib
import http
import http.client
import os
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path

from equipoise.errors import InputError
from equipoise.stages import Stage, stage

TIMEOUT = 30.0
"""Seconds that a download waits for the headers, for the next bytes, and for the next `PACE` of them."""
PACE = 16 << 10
"""Bytes in `TIMEOUT` seconds, below which a mirror is given up: the next one is asked for the rest."""
PACKED = 32 << 20
"""Bytes of the largest file that is downloaded: the images of MNIST take a third of it."""
UNPACKED = 64 << 20
"""Bytes that a file may hold once unpacked: those images take 47 million."""
ATTEMPTS = 20
"""How often one mirror is asked for the rest of a file; an answer of a few bytes each would go on for ever."""


class Download(NamedTuple):
    """A file of a data set: its name, and the SHA-256 of what it holds once unpacked.

    Mirrors pack the same images with other gzip headers and levels, so the packed bytes say nothing.
    """

    file: str
    sha256: str


class Archive(NamedTuple):
    """A training set in two IDX files: its folder, its mirrors, its images and its labels."""

    folder: str
    mirrors: tuple[str, ...]
    images: Download
    labels: Download


ARCHIVES = {
    "mnist": Archive(
        "mnist",
        ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
        Download("train-images-idx3-ubyte.gz", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        Download("train-labels-idx1-ubyte.gz", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    ),
    "fashion_mnist": Archive(
        "fashion-mnist",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        ),
        Download("train-images-idx3-ubyte.gz", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        Download("train-labels-idx1-ubyte.gz", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    ),
}


def folder() -> Path:
    """The folder that data sets are read from: EQUIPOISE_DATA, else the user's cache."""
    given = os.environ.get("EQUIPOISE_DATA")
    return Path(given) if given else user_cache_path("equipoise")


def missing(name: str) -> list[Path]:
    """The files of a training set that are not in the folder."""
    archive = ARCHIVES[name]
    paths = [folder() / archive.folder / wanted.file for wanted in (archive.images, archive.labels)]
    return [path for path in paths if not path.is_file()]


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a training set, as stored: bytes of shape (n, height, width) and (n,).

    The files are taken from the folder EQUIPOISE_DATA, else from the user's cache, where they are downloaded when
    missing: from EQUIPOISE_MIRROR if that is set, an address with the same folders below it. An interrupted download
    goes on where it stopped, and nothing wrong is ever kept.

    Raises `InputError` that names the file when it is missing, truncated, wrong or out of reach.
    """
    archive = ARCHIVES[name]
    return _idx(_content(archive, archive.images)), _idx(_content(archive, archive.labels))


def _idx(content: bytes) -> np.ndarray:
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _content(archive: Archive, wanted: Download) -> bytes:
    """The content of the file: from EQUIPOISE_DATA, else from the cache, downloaded when it is not there."""
    path = folder() / archive.folder / wanted.file
    if os.environ.get("EQUIPOISE_DATA"):
        if not path.exists():
            raise InputError(
                expected=f"the file {path}",
                found="nothing there",
                remedy="put it there, or unset EQUIPOISE_DATA to download",
            )
        return _unpack(path, wanted.sha256)
    if not path.exists():
        _download(archive, wanted, path)
    return _unpack(path, wanted.sha256)


def _unpack(path: Path, sha256: str) -> bytes:
    try:
        with gzip.open(path) as file:
            content = file.read(UNPACKED + 1)
    except EOFError:
        raise _bad_file(path, "the whole gzip file", f"a file that ends after {path.stat().st_size} bytes") from None
    except (OSError, zlib.error) as error:
        raise _bad_file(path, "a gzip file", str(error)) from None
    if len(content) > UNPACKED:
        raise _bad_file(path, f"at most {UNPACKED >> 20} MB, unpacked,", "more")
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise _bad_file(path, f"content with SHA-256 {sha256}", found)
    return content


def _bad_file(path: Path, expected: str, found: str) -> InputError:
    return InputError(expected=f"{expected} in {path}", found=found, remedy="delete it, and it can be downloaded again")


def _download(archive: Archive, wanted: Download, path: Path) -> None:
    """Download to `path`, which appears once its content is right and not before."""
    mirror = os.environ.get("EQUIPOISE_MIRROR")
    bases = [f"{mirror.rstrip('/')}/{archive.folder}"] if mirror else archive.mirrors
    urls = [f"{base}/{wanted.file}" for base in bases]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            failures = [] if path.exists() else _try_mirrors(urls, path, wanted.sha256)
    except OSError as error:
        raise InputError(
            expected=f"a folder {path.parent} to download to", found=str(error), remedy="set XDG_CACHE_HOME to another"
        ) from None
    if failures:
        raise InputError(
            expected=f"{wanted.file} with content of SHA-256 {wanted.sha256}",
            found="; ".join(dict.fromkeys(failures)),
            remedy=f"run again to continue the download, or put the file into {path.parent}",
        )


def _try_mirrors(urls: list[str], path: Path, sha256: str) -> list[str]:
    """Nothing once the file is in its place, else what went wrong at each mirror."""
    part = path.with_name(f"{path.name}.part")
    failures = []
    # twice, because a part that was begun at one mirror may not continue at another: it is dropped, then fetched anew
    for url in urls * 2:
        try:
            _transfer(url, part)
            _unpack(part, sha256)
            os.replace(part, path)
            return []
        except InputError as error:
            part.unlink(missing_ok=True)
            failures.append(f"{url}: {error.found}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
    return failures


def _transfer(url: str, part: Path) -> None:
    """Append to `part` until the answer is complete, asking again for the rest as long as it grows."""
    before, size = -1, _size(part)
    for _ in range(ATTEMPTS):
        if _request(url, part):
            return
        before, size = size, _size(part)
        if size <= before:
            break
    raise ConnectionError(f"the answer ends after {size} bytes")


def _request(url: str, part: Path) -> bool:
    """Ask for what is missing of `part`, and whether it is all there now."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = _opened(request)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is missing, or the part is longer than the file: its content decides
        raise
    with answer, open(part, "ab") as file:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            file.seek(0)  # a server that does not know ranges begins again
            file.truncate()
        total = file.tell() + int(answer.headers.get("Content-Length", 0))
        slow = False
        with (
            suppress(ConnectionError, TimeoutError, http.client.IncompleteRead),
            stage(f"downloading {part.stem} (MB)", total / 2**20) as current,
        ):
            slow = _receive(answer, file, total, current)
        if max(total, file.tell()) > PACKED:
            raise _bad_file(part, f"at most {PACKED >> 20} MB", f"{max(total, file.tell())} bytes")
        file.flush()
        os.fsync(file.fileno())
        if slow:
            raise TimeoutError(f"less than {PACE >> 10} kB in {TIMEOUT:g} seconds")
        return file.tell() >= total


def _opened(request: urllib.request.Request) -> http.client.HTTPResponse:
    """The answer once its headers are there: all within `TIMEOUT`, however often a byte of them arrives."""
    connected: list[socket.socket] = []
    late = threading.Event()

    def give_up() -> None:
        late.set()
        for each in connected:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # ends the wait for the next byte

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(_recorded(http.client.HTTPConnection, connected), req)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(_recorded(http.client.HTTPSConnection, connected), req)

    timer = threading.Timer(TIMEOUT, give_up)
    timer.daemon = True
    timer.start()
    try:
        answer = urllib.request.build_opener(Plain, Secure).open(request, timeout=TIMEOUT)
    except (OSError, ValueError, http.client.HTTPException):
        if not late.is_set():
            raise
        answer = None
    finally:
        timer.cancel()
    if answer is not None and not late.is_set():
        return answer
    if answer is not None:
        answer.close()
    raise TimeoutError(f"no complete headers in {TIMEOUT:g} seconds")


def _recorded(kind: type[http.client.HTTPConnection], connected: list[socket.socket]) -> Any:
    """A class of connections that adds their sockets to a list."""

    class Recorded(kind):
        def connect(self) -> None:
            super().connect()
            connected.append(self.sock)

    return Recorded


def _receive(answer: http.client.HTTPResponse, file: IO[bytes], total: int, current: Stage) -> bool:
    """Write the answer to a file of at most `total` bytes; whether it was given up because it comes too slowly."""
    since, had = time.monotonic(), file.tell()
    while (piece := answer.read1(1 << 16)) and total <= PACKED and file.tell() <= PACKED:
        file.write(piece)
        current.update(file.tell() / 2**20)
        if time.monotonic() - since > TIMEOUT:
            if file.tell() - had < PACE and file.tell() < total:
                return True
            since, had = time.monotonic(), file.tell()
    return False


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
