"""A kubeconfig is read in a process of its own, and what passes to and fro is whole."""

from __future__ import annotations

import base64
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.config import regularfile
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.kubeconfig import reader as kubeconfigreader
from ipvs_node_agent.kubeconfig.credentials import load_credentials
from ipvs_node_agent.kubeconfig.reader import Reader, Settings, settings
from ipvs_node_agent.processes.isolated import Child
from tests.support.apiclient import Asking
from tests.support.apiserver import ApiServer
from tests.support.execplugin import Hanging, hanging_plugin, plugin, saying
from tests.support.kubeconfigs import URL, document, naming, write
from tests.support.pki import Pki
from tests.support.processes import runs
from tests.support.waiting import eventually

# Far less than what hangs would take, and enough for a busy machine.
AT_ONCE = 3
TOKEN = {"authorization": "Bearer abc"}


def read(path: Path) -> Settings:
    return Reader(path).read()


def with_plugin(directory: Path, body: str, url: str = URL) -> Path:
    """A kubeconfig whose credentials this program makes."""
    return write(directory / "kubelet.conf", document(plugin(directory, body), server=url))


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    with hanging_plugin(tmp_path) as made:
        yield made


def test_both_ways_give_the_same(path: Path, node_pem: Path, pki: Pki) -> None:
    found = read(path)
    assert found == settings(path)
    assert found.authority is not None
    assert found.authority.text == pki.ca_pem
    assert found.user == "system:node:worker-1"
    assert found.valid is not None
    assert found.valid[0] < time.time() < found.valid[1]
    assert found.certificate is not None
    assert found.certificate.text == node_pem.read_text()
    assert not found.short_lived


def test_both_ways_give_the_same_error(tmp_path: Path) -> None:
    path = write(tmp_path / "kubelet.conf", naming(tokenFile="missing"))
    texts = []
    for way in (read, settings):
        with pytest.raises(kubeconfigreader.MissingError) as caught:
            way(path)
        texts.append(str(caught.value))
    wanted = f"kubeconfig {path}: cannot read {tmp_path}/missing: No such file or directory"
    assert texts == [wanted] * 2


def test_a_missing_kubeconfig_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(kubeconfigreader.MissingError) as caught:
        read(tmp_path / "missing.conf")
    assert str(caught.value).endswith("No such file or directory (is this node's kubelet set up?)")


@pytest.mark.parametrize("way", [read, settings])
def test_a_file_that_others_can_write_is_refused(way: Any, path: Path) -> None:
    """It may name a program, which would run as root."""
    path.chmod(0o620)
    with pytest.raises(RefusedError) as caught:
        way(path)
    assert str(caught.value) == (
        f"kubeconfig {path}: users other than its owner may write to it"
        f" (chmod go-w {path}, and read it again)"
    )


def test_a_file_of_another_user_is_refused(path: Path) -> None:
    os.chown(path, 4711, 4711)
    with pytest.raises(RefusedError, match="belongs to user 4711, who could change it"):
        read(path)


def test_a_certificate_alone_does_not_wait_for_the_package(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = settings(path)
    assert plain.headers == {}
    for name in [name for name in sys.modules if name.partition(".")[0] == "kubernetes"]:
        monkeypatch.delitem(sys.modules, name)
    # None has an import fail.
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert settings(path) == plain
    with pytest.raises(ImportError):
        settings(write(tmp_path / "token.conf", naming(token="abc")))


def test_the_package_would_have_nothing_to_say_of_it() -> None:
    assert kubeconfigreader._headers_of({}) == {}
    assert kubeconfigreader._headers_of({"token": "abc"}) == TOKEN


@pytest.mark.parametrize("name", ["kubelet.conf", "kubelet-client-current.pem"])
def test_what_only_root_may_read_is_asked_for_as_root(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly = regularfile.read

    def denied(path: str | os.PathLike[str], private: bool = False) -> bytes:
        if os.fspath(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plainly(path, private)

    monkeypatch.setattr(regularfile, "read", denied)
    with pytest.raises(RefusedError, match=r"Permission denied \(run it as root\)$"):
        settings(path)


def test_a_relative_path_and_another_directorys_modules_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "kubernetes.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write(tmp_path / "relative.conf", naming(token="abc"))
    assert read(Path("relative.conf")).headers == TOKEN


# Programs


def counting(directory: Path, seconds: float = 0.0) -> str:
    """A plugin's body that gives the number of its run as the token."""
    said = saying(token="$(wc -l < RUNS)").replace("<<'END'", "<<END")
    body = f"echo noise >&2; echo >> RUNS; sleep {seconds}\n{said}"
    return body.replace("RUNS", f"{directory}/runs")


def test_a_program_is_asked_for_each_request(tmp_path: Path) -> None:
    credentials = load_credentials(Reader(with_plugin(tmp_path, counting(tmp_path))))
    shown = [credentials.headers()["authorization"] for _ in range(2)]
    assert shown == ["Bearer 2", "Bearer 3"]


def test_a_plugins_certificate_is_used(node_pem: Path, tmp_path: Path) -> None:
    pem = node_pem.read_text()
    found = read(with_plugin(tmp_path, saying(clientCertificateData=pem, clientKeyData=pem)))
    assert found.user == "system:node:worker-1"
    assert found.short_lived
    assert found.certificate is not None
    assert found.key is not None
    assert found.certificate.text == found.key.text == pem
    assert not found.headers


def test_a_plugin_runs_where_the_kubeconfig_is(tmp_path: Path) -> None:
    user = plugin(tmp_path, saying(token="abc"))
    user["exec"]["command"] = "./plugin"
    assert read(write(tmp_path / "exec.conf", document(user))).headers == TOKEN


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("exit 1", id="nothing"),
        pytest.param("echo hello", id="no JSON"),
        pytest.param("echo '[]'", id="a list"),
        pytest.param(saying(), id="no status"),
        pytest.param(saying(token=7), id="a number"),
        pytest.param(saying(clientCertificateData="a", clientKeyData=["b"]), id="a list as key"),
        pytest.param(saying(token="abc").replace("v1beta1", "v1"), id="another version"),
    ],
)
def test_a_plugin_that_gives_something_else_is_refused(body: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="its exec plugin gave no credentials"):
        settings(with_plugin(tmp_path, body))


# Programs that hang


def test_a_program_that_hangs_is_given_up_and_ended(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeconfigreader, "_TIME_LIMIT", 3)
    said = Child.said

    def once_it_hangs(child: Child, seconds: float) -> bytes:
        # A busy machine takes as long to start it.
        eventually(hanging.started, timeout=60)
        return said(child, seconds)

    monkeypatch.setattr(Child, "said", once_it_hangs)
    with pytest.raises(RefusedError, match=r"was not read within 3 s \(a slow exec plugin\?\)"):
        read(hanging.path)
    hanging.is_over()


def test_closing_ends_a_reading_at_once_and_all_later_ones(hanging: Hanging) -> None:
    reader = Reader(hanging.path)
    asking = [Asking(reader.read) for _ in range(3)]
    eventually(hanging.started)
    before = time.monotonic()
    reader.close()
    assert time.monotonic() - before < AT_ONCE
    for each in asking:
        assert str(each.got()) == f"kubeconfig {hanging.path}: the agent has stopped reading it"
    hanging.is_over()
    with pytest.raises(RefusedError, match="the agent has stopped reading it"):
        reader.read()
    assert len(hanging.started()) == 2


def test_an_api_is_closed_while_a_token_is_made(tmp_path: Path) -> None:
    """For each request anew, which may hang as well."""
    path = with_plugin(tmp_path, saying(token="abc"))
    api = Api(path)
    assert api.credentials().short_lived
    with hanging_plugin(tmp_path) as later:
        later.path.replace(path)
        asking = Asking(lambda: api.post("/", {}, "create Events", 5))
        eventually(later.started)
        api.close()
        assert isinstance(asking.got(), RefusedError)
        later.is_over()


def test_who_needs_no_credentials_waits_for_nobody_who_reads_them(tmp_path: Path) -> None:
    """Two threads' requests, of which one ends while the other's program hangs."""
    with ApiServer() as server, hanging_plugin(tmp_path / "later", server.url) as later:
        path = with_plugin(tmp_path, saying(token="abc"), server.url)
        api = Api(path)
        with api.get("/api/v1/services", {"watch": "true"}, "watch services", 10):
            server.fail(401, times=1)
            with pytest.raises(ApiError):
                api.post("/api/v1/namespaces/default/events", {}, "create Events", 10)
            later.path.replace(path)
            asking = Asking(api.credentials)
            eventually(later.started)
            before = time.monotonic()
        assert api.expires is None
        api.close()
        assert time.monotonic() - before < AT_ONCE
        assert isinstance(asking.got(), RefusedError)
        later.is_over()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_ends_with_the_process_that_asks_for_it(number: int, hanging: Hanging) -> None:
    """However that ends."""
    code = (
        "import pathlib, sys; from ipvs_node_agent.kubeconfig.reader import Reader;"
        " Reader(pathlib.Path(sys.argv[1])).read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(hanging.path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        eventually(hanging.started)
        process.send_signal(number)
        assert process.wait(10) != 0
    hanging.is_over()


def test_a_program_that_goes_on_in_the_background_ends_as_well(tmp_path: Path) -> None:
    body = f"sleep 1000 >/dev/null 2>&1 &\necho $! > {tmp_path}/started\n{saying(token='abc')}"
    assert read(with_plugin(tmp_path, body)).headers
    number = int((tmp_path / "started").read_text())
    eventually(lambda: not runs(number), timeout=5)


# Several who ask


def test_who_asks_at_the_same_time_gets_the_same(tmp_path: Path) -> None:
    reader = Reader(with_plugin(tmp_path, counting(tmp_path, seconds=1)))
    asking = [Asking(reader.read) for _ in range(4)]
    assert [each.got().headers for each in asking] == [{"authorization": "Bearer 1"}] * 4
    assert reader.read().headers == {"authorization": "Bearer 2"}


def test_who_asks_for_files_that_have_changed_gets_what_they_say_now(tmp_path: Path) -> None:
    path = with_plugin(tmp_path, counting(tmp_path, seconds=1))
    reader = Reader(path)
    first = Asking(reader.read)
    eventually(lambda: (tmp_path / "runs").exists())
    write(path, naming(token="abc"))
    second = Asking(reader.read)
    assert first.got().headers == {"authorization": "Bearer 1"}
    assert second.got().headers == TOKEN


# What has begun before anybody asks


def begun(path: Path) -> Reader:
    """A reader that has come to its end before it is asked."""
    reader = Reader(path)
    reader.begin()
    assert reader._reading is not None
    wait([reader._reading[1]])
    return reader


def test_what_has_begun_is_for_who_asks_first(tmp_path: Path) -> None:
    reader = begun(with_plugin(tmp_path, counting(tmp_path)))
    assert [reader.read().headers["authorization"] for _ in range(2)] == ["Bearer 1", "Bearer 2"]


def test_what_has_begun_is_for_all_who_ask_meanwhile(tmp_path: Path) -> None:
    reader = Reader(with_plugin(tmp_path, counting(tmp_path, seconds=1)))
    reader.begin()
    asking = [Asking(reader.read) for _ in range(3)]
    assert [each.got().headers for each in asking] == [{"authorization": "Bearer 1"}] * 3


def test_all_who_need_credentials_at_a_start_have_them_read_once(tmp_path: Path) -> None:
    """What has begun is over when they come, and only the first one is given it."""
    path = with_plugin(tmp_path, counting(tmp_path))
    api = Api(path, begun(path))
    ready = threading.Barrier(6)

    def ask() -> Any:
        ready.wait()
        return api.credentials()

    found = [each.got() for each in [Asking(ask) for _ in range(6)]]
    assert len({id(each) for each in found}) == 1
    assert (tmp_path / "runs").read_text() == "\n"


def test_what_has_begun_is_for_nobody_once_a_file_is_another_one(tmp_path: Path) -> None:
    path = with_plugin(tmp_path, counting(tmp_path))
    reader = begun(path)
    write(path, naming(token="abc"))
    assert reader.read().headers == TOKEN


def test_what_has_begun_in_vain_is_said_once(tmp_path: Path) -> None:
    reader = begun(tmp_path / "kubelet.conf")
    write(reader.path, naming(token="abc"))
    assert reader.read().headers == TOKEN
    reader = begun(tmp_path / "gone.conf")
    for _ in range(2):
        with pytest.raises(kubeconfigreader.MissingError):
            reader.read()


def test_closing_ends_what_has_begun(hanging: Hanging) -> None:
    reader = Reader(hanging.path)
    reader.begin()
    eventually(hanging.started)
    reader.close()
    with pytest.raises(RefusedError, match="the agent has stopped reading it"):
        reader.read()
    hanging.is_over()


# Nothing on a disk


def test_no_key_comes_near_a_file(
    node_pem: Path, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any, **__: Any) -> Any:
        raise AssertionError("a temporary file")

    for name in ("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(f"tempfile.{name}", made)
    pem = node_pem.read_text()
    inline, authority = (base64.b64encode(text.encode()).decode() for text in (pem, pki.ca_pem))
    users = [
        {"client-certificate-data": inline, "client-key-data": inline},
        plugin(tmp_path, saying(clientCertificateData=pem, clientKeyData=pem)),
    ]
    for user in users:
        content = document(user, **{"certificate-authority-data": authority})
        found = settings(write(tmp_path / "kubelet.conf", content))
        assert found.key is not None
        assert found.key.text == pem


def test_a_reader_that_is_killed_leaves_no_key_behind(
    node_pem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    inline = base64.b64encode(node_pem.read_bytes()).decode()
    keys = {"client-certificate-data": inline, "client-key-data": inline}
    with hanging_plugin(tmp_path, **keys) as hanging:
        reader = Reader(hanging.path)
        asking = Asking(reader.read)
        eventually(hanging.started)
        reader.close()
        asking.got()
        hanging.is_over()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_reader_that_dies_is_an_error_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "kubelet.conf").touch()
    with pytest.raises(RefusedError, match="the process that reads it ended without a result"):
        read(tmp_path / "kubelet.conf")


def test_settings_do_not_show_their_secrets(tmp_path: Path) -> None:
    found = settings(write(tmp_path / "kubelet.conf", naming(token="s3cret")))
    assert "s3cret" not in repr(found)
