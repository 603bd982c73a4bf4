import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from certbench.errors import CertbenchError
from certbench.models import download as module
from certbench.models.download import download, public_url, sha256_file, torch_cache

BODY = bytes(i * 7919 % 251 for i in range(300_000))
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one body with Range, If-Range and ETag, and misbehaves on request."""

    def do_GET(self):
        site = self.server.site
        site.requests.append(dict(self.headers))
        fault = site.faults.pop(0) if site.faults else None
        if isinstance(fault, int):
            self.send_response(fault)
            for name, value in site.fault_headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, start = site.body, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        current = self.headers.get("If-Range") in (None, site.etag) or site.ignores_if_range
        if asked and site.ranges and current:
            start = int(asked.group(1))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            if fault == "wrong range":
                start = 0
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if fault == "slow":
            time.sleep(1.5)
        rest = body[start:]
        if fault == "drop":
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)
        if fault == "stall":
            self.server.released.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.released = threading.Event()
    server.site = SimpleNamespace(
        body=BODY,
        etag='"v1"',
        ranges=True,
        length=True,
        ignores_if_range=False,
        faults=[],
        fault_headers={},
        requests=[],
        url=f"http://127.0.0.1:{server.server_port}/weights.bin",
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.site
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def get(site, target, **options):
    return download(site.url, target, backoff_s=0.01, **{"sha256": SHA, **options})


def test_a_good_file_arrives_whole_and_leaves_nothing_beside_it(site, tmp_path):
    told = []
    path = get(site, tmp_path / "w.bin", tick=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["w.bin"]


def test_a_file_that_is_there_is_verified_and_not_fetched_again(site, tmp_path):
    (tmp_path / "w.bin").write_bytes(BODY)
    get(site, tmp_path / "w.bin")
    assert site.requests == []


def test_a_file_with_other_content_is_fetched_again(site, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"old")
    assert get(site, tmp_path / "w.bin").read_bytes() == BODY


def test_a_wrong_sha256_is_refused_and_nothing_takes_the_name(site, tmp_path):
    with pytest.raises(CertbenchError, match=f"has sha256 {SHA}, expected {'0' * 64}"):
        get(site, tmp_path / "w.bin", sha256="0" * 64)
    assert not (tmp_path / "w.bin").exists()
    assert not (tmp_path / "w.bin.part").exists()


def test_a_wrong_sha256_leaves_the_old_file_as_it_was(site, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"old")
    with pytest.raises(CertbenchError):
        get(site, tmp_path / "w.bin", sha256="0" * 64)
    assert (tmp_path / "w.bin").read_bytes() == b"old"


def test_a_connection_dropped_in_the_middle_is_resumed_where_it_broke(site, tmp_path):
    site.faults = ["drop"]
    assert get(site, tmp_path / "w.bin").read_bytes() == BODY
    assert [r.get("Range") for r in site.requests] == [None, f"bytes={len(BODY) // 2}-"]
    assert site.requests[1]["If-Range"] == '"v1"'


def test_a_server_without_ranges_is_read_from_the_start_again(site, tmp_path):
    site.faults, site.ranges = ["drop"], False
    assert get(site, tmp_path / "w.bin").read_bytes() == BODY


def test_every_attempt_continues_where_the_last_one_broke(site, tmp_path):
    site.body = BODY * 2
    site.faults = ["drop", "drop"]
    sha = hashlib.sha256(site.body).hexdigest()
    assert get(site, tmp_path / "w.bin", sha256=sha).read_bytes() == site.body
    asked = [r.get("Range") for r in site.requests]
    assert asked == [None, "bytes=300000-", "bytes=450000-"]


def test_a_stalled_connection_ends_after_the_timeout(site, tmp_path):
    site.faults = ["stall"]

    # The header promises more than the server sends before it falls silent.
    class Silent(Handler):
        def send_header(self, name, value):
            if name == "Content-Length":
                value = str(int(value) + 10)
            super().send_header(name, value)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    server.released, server.site = threading.Event(), site
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/w"
        with pytest.raises(CertbenchError, match="timed out"):
            download(url, tmp_path / "w", sha256=SHA, timeout_s=0.3, attempts=1)
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_new_process_goes_on_where_a_killed_one_stopped(site, tmp_path):
    site.faults = ["drop"]
    with pytest.raises(CertbenchError, match=r"150000 bytes are kept"):
        get(site, tmp_path / "w.bin", attempts=1)
    script = (
        "from certbench.models.download import download;"
        f"download({site.url!r}, {str(tmp_path / 'w.bin')!r}, sha256={SHA!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert site.requests[-1]["Range"] == "bytes=150000-"
    assert (tmp_path / "w.bin").read_bytes() == BODY


def test_a_file_that_changed_between_two_attempts_is_not_glued_together(site, tmp_path):
    site.faults = ["drop"]
    with pytest.raises(CertbenchError):
        get(site, tmp_path / "w.bin", sha256=None, attempts=1)
    site.body, site.etag = BODY[::-1], '"v2"'
    assert get(site, tmp_path / "w.bin", sha256=None).read_bytes() == BODY[::-1]


def test_a_server_that_ignores_if_range_is_found_out_by_the_entity_tag(site, tmp_path):
    site.faults = ["drop"]
    with pytest.raises(CertbenchError):
        get(site, tmp_path / "w.bin", sha256=None, attempts=1)
    site.body, site.etag, site.ignores_if_range = BODY[::-1], '"v2"', True
    assert get(site, tmp_path / "w.bin", sha256=None).read_bytes() == BODY[::-1]


def test_a_damaged_partial_file_costs_one_new_copy_and_no_error(site, tmp_path):
    site.faults = ["drop"]
    with pytest.raises(CertbenchError):
        get(site, tmp_path / "w.bin", attempts=1)
    part = tmp_path / "w.bin.part"
    part.write_bytes(bytes(part.stat().st_size))
    assert get(site, tmp_path / "w.bin").read_bytes() == BODY
    assert [r.get("Range") for r in site.requests] == [None, "bytes=150000-", None]


def test_without_digest_and_entity_tag_a_partial_file_is_never_continued(site, tmp_path):
    site.faults, site.etag = ["drop"], None
    assert get(site, tmp_path / "w.bin", sha256=None).read_bytes() == BODY
    assert [r.get("Range") for r in site.requests] == [None, None]


def test_without_digest_and_length_a_file_is_refused(site, tmp_path):
    site.length = False
    with pytest.raises(CertbenchError, match="does not tell the length"):
        get(site, tmp_path / "w.bin", sha256=None)
    assert get(site, tmp_path / "w.bin").read_bytes() == BODY


def test_a_part_that_is_complete_already_needs_no_byte_more(site, tmp_path):
    site.faults = ["drop"]
    with pytest.raises(CertbenchError):
        get(site, tmp_path / "w.bin", attempts=1)
    (tmp_path / "w.bin.part").write_bytes(BODY)
    assert get(site, tmp_path / "w.bin").read_bytes() == BODY
    assert [r.get("Range") for r in site.requests] == [None, "bytes=300000-"]


def test_a_part_longer_than_the_file_is_thrown_away(site, tmp_path):
    site.faults = ["drop"]
    with pytest.raises(CertbenchError):
        get(site, tmp_path / "w.bin", attempts=1)
    (tmp_path / "w.bin.part").write_bytes(BODY + b"more")
    assert get(site, tmp_path / "w.bin").read_bytes() == BODY


def test_an_answer_that_starts_at_the_wrong_byte_is_not_appended(site, tmp_path):
    site.faults = ["drop", "wrong range"]
    assert get(site, tmp_path / "w.bin", sha256=None).read_bytes() == BODY
    assert [r.get("Range") for r in site.requests] == [None, "bytes=150000-", None]


def test_a_busy_server_is_asked_again_after_the_pause_it_names(site, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    site.faults, site.fault_headers = [503, 429], {"Retry-After": "7"}
    assert get(site, tmp_path / "w.bin").read_bytes() == BODY
    assert pauses == [7.0, 7.0]


def test_pauses_double_up_to_a_minute(site, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    site.faults = [500] * 9
    with pytest.raises(CertbenchError, match="HTTP 500"):
        download(site.url, tmp_path / "w.bin", sha256=SHA, backoff_s=1, attempts=9)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("code", "hint"), [(404, "typing error"), (403, "terms"), (401, "login"), (410, "removed")]
)
def test_a_refusal_of_the_server_is_told_at_once(site, tmp_path, code, hint):
    site.faults = [code] * 9
    with pytest.raises(CertbenchError, match=f"(?s)HTTP {code}.*{hint}"):
        get(site, tmp_path / "w.bin")
    assert len(site.requests) == 1


def test_no_network_is_told_with_the_remedy(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/w.bin"
    with pytest.raises(CertbenchError, match=r"(?s)refused.*2 attempts.*login nodes") as caught:
        download(url, tmp_path / "w.bin", attempts=2, backoff_s=0.01, where="model 'm'")
    assert str(caught.value).startswith("model 'm': ")


def test_a_name_that_does_not_resolve_is_told(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(CertbenchError, match=r"nowhere\.invalid cannot be resolved"):
        download("https://nowhere.invalid/w", tmp_path / "w", attempts=1)


def test_a_web_page_is_refused_after_its_first_bytes(site, tmp_path):
    site.body = b"\n<!DOCTYPE html><html>Please log in</html>" + BODY
    with pytest.raises(CertbenchError, match="HTML page instead of the file"):
        get(site, tmp_path / "w.bin", sha256=None)
    assert not (tmp_path / "w.bin").exists()


def test_a_disk_without_room_is_told_before_the_download(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CertbenchError, match="needs 0 MB, 0 MB are free"):
        get(site, tmp_path / "w.bin")


def test_a_full_disk_is_told_and_not_tried_again(site, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    (tmp_path / "w.bin.part").symlink_to("/dev/full")
    transfer = module._Transfer(site.url, tmp_path / "w.bin.part", True, None, "w", 5)
    transfer.discard = lambda: None
    with pytest.raises(CertbenchError, match="no space left"):
        transfer.attempt()


@pytest.mark.parametrize("url", ["ftp://host/w", "w.bin", "file:///etc/passwd", "https://"])
def test_other_addresses_are_refused(url, tmp_path):
    with pytest.raises(CertbenchError, match="no http or https address"):
        download(url, tmp_path / "w")


def test_processes_at_once_download_a_file_once(site, tmp_path):
    site.faults = ["slow"]
    script = (
        "import sys;from certbench.models.download import download;"
        f"download({site.url!r}, {str(tmp_path / 'w.bin')!r}, sha256={SHA!r})"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [worker.wait(30) for worker in workers] == [0, 0, 0]
    assert len(site.requests) == 1


def test_a_password_in_the_address_is_not_shown():
    assert public_url("https://me:secret@host:8/w.pt?x=1") == "https://host:8/w.pt?x=1"


def test_sha256_file_is_that_of_the_standard_library(tmp_path):
    (tmp_path / "w").write_bytes(BODY)
    assert sha256_file(tmp_path / "w") == SHA


def test_the_digits_in_a_published_name_are_checked(site, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    base = site.url.rpartition("/")[0]
    good = torch_cache(f"{base}/net-{SHA[:8]}.pth")
    assert good == tmp_path / "hub" / "checkpoints" / f"net-{SHA[:8]}.pth"
    with pytest.raises(CertbenchError, match=r"(?s)expected 0a0a0a0a.*reads it from"):
        torch_cache(f"{base}/net-0a0a0a0a.pth")
    good.write_bytes(b"damaged")
    with pytest.raises(CertbenchError, match="does not have the sha256 that its name states"):
        torch_cache(f"{base}/net-{SHA[:8]}.pth")


def test_a_date_in_a_published_name_is_no_digest(site, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    base = site.url.rpartition("/")[0]
    assert torch_cache(f"{base}/net-20220801.pth").read_bytes() == BODY
