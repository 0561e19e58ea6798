"""Downloads from a local server that is honest, stalls, cuts off or lies."""

import hashlib
import http.server
import io
import tarfile
import threading
import time

import pytest

from core import cifar100


def archive(extra=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in (*extra, *(f"cifar-100-python/{member}" for member in cifar100.CIFAR100_MD5)):
            content = f"content of {name}".encode() * 1000
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def serve():
    """Start a server on loopback; return the address of each behaviour."""
    servers = []

    def start(body):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                kind = self.path.strip("/")
                if kind == "missing":
                    return self.send_error(404)
                content = b"<html>not the dataset</html>" * 50 if kind == "lies" else body
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                if kind == "cuts":
                    return self.connection.close()
                if kind == "stalls":
                    time.sleep(5)
                self.wfile.write(content[len(content) // 2 :])

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return lambda kind: f"http://127.0.0.1:{server.server_port}/{kind}"

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize("kind", ["stalls", "cuts", "lies", "missing"])
def test_a_bad_mirror_is_passed_over(project, serve, kind):
    body = archive()
    url = serve(body)
    start = time.monotonic()
    folder = cifar100.download_cifar100([url(kind), url("honest")], hashlib.sha256(body).hexdigest(), timeout=0.5)
    assert time.monotonic() - start < 5
    assert (folder / "meta").read_bytes().startswith(b"content of cifar-100-python/meta")
    assert [path.name for path in (project / "data").iterdir()] == ["cifar-100-python"]


def test_all_mirrors_bad_leaves_nothing_and_says_everything(project, serve):
    url = serve(archive())
    with pytest.raises(cifar100.DownloadError) as error:
        cifar100.download_cifar100([url("lies"), url("cuts")], "0" * 64, timeout=0.5)
    for part in (
        url("lies"),
        url("cuts"),
        "0" * 64,
        str(project / "data"),
        "CIFAR100_DIR",
        "shapes100",
        *cifar100.CIFAR100_MD5.values(),
    ):
        assert part in str(error.value)
    assert list((project / "data").iterdir()) == []


def test_a_folder_that_lacks_files_is_filled(project, serve):
    body, folder = archive(), project / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(b"damaged")
    (folder / "notes.txt").write_text("mine")
    assert cifar100.find_cifar100() is None
    assert cifar100.download_cifar100([serve(body)("honest")], hashlib.sha256(body).hexdigest()) == folder
    assert (folder / "train").read_bytes().startswith(b"content of")
    assert (folder / "notes.txt").read_text() == "mine"
    assert cifar100.find_cifar100() == folder
    (folder / "meta").unlink()
    with pytest.raises(cifar100.DownloadError):
        cifar100.download_cifar100([serve(body)("missing")], hashlib.sha256(body).hexdigest())


def test_members_outside_are_never_written(project, serve):
    body = archive(extra=("../evil", "/tmp/evil-absolute", "cifar-100-python/../../evil"))
    cifar100.download_cifar100([serve(body)("honest")], hashlib.sha256(body).hexdigest())
    assert sorted(path.name for path in project.rglob("*") if path.is_file()) == ["meta", "test", "train"]


def test_two_downloads_at_once(project, serve):
    body = archive()
    url, results = serve(body)("honest"), []
    sha256 = hashlib.sha256(body).hexdigest()
    threads = [threading.Thread(target=lambda: results.append(cifar100.download_cifar100([url], sha256))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [project / "data" / "cifar-100-python"] * 4
    assert [path.name for path in (project / "data").iterdir()] == ["cifar-100-python"]
