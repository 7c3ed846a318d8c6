"""How requests follow the credentials' files, and that no secret comes out of them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Callable

import pytest

from ipvs_node_agent.apiserver import client
from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.kubeconfig.credentials import Credentials
from ipvs_node_agent.kubeconfig.reader import Reader
from tests.support.apiclient import (
    TOKEN,
    NodeFiles,
    failure,
    get,
    token_kubeconfig,
    warnings,
    watched,
    watching,
)
from tests.support.apiserver import ApiServer
from tests.support.pki import Pki, point_to

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")


def shown(api: Api, server: ApiServer) -> int | None:
    """The serial number of the certificate that a request shows now."""
    get(api)
    return server.requests[-1].serial


# 1. Credentials that come late


def test_credentials_are_read_as_soon_as_they_are_there(
    files: NodeFiles, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    aside = files.kubeconfig.with_suffix(".aside")
    files.kubeconfig.rename(aside)
    api = Api(files.kubeconfig)
    for _ in range(3):
        assert not api.refresh()
        with pytest.raises(RefusedError, match="is this node's kubelet set up"):
            get(api)
    # Whoever asked for them got the error, and says it.
    assert not warnings(caplog)
    aside.rename(files.kubeconfig)
    assert shown(api, server) == files.serial


def test_credentials_that_come_late_are_news(files: NodeFiles, server: ApiServer) -> None:
    files.current.unlink()
    api = Api(files.kubeconfig)
    with pytest.raises(RefusedError):
        api.credentials()
    files.rotate()
    assert api.refresh()
    assert shown(api, server) == files.serial


# 2. Rotation


def test_nothing_is_read_again_while_nothing_changes(api: Api) -> None:
    before = api.credentials()
    assert not api.refresh()
    assert api.credentials() is before


def test_each_rotation_ends_the_open_watch_and_puts_the_new_certificate_to_use(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    for _ in range(3):
        with watched(api, server) as watch:
            assert server.requests[-1].serial == files.serial
            files.rotate()
            assert api.refresh()
            assert isinstance(watch.got(), Superseded)
            server.wait_for(lambda: server.watches("services") == 0)
            assert shown(api, server) == files.serial
            assert not api.refresh()


def test_a_new_server_in_the_kubeconfig_is_used(
    api: Api, server: ApiServer, files: NodeFiles, pki: Pki
) -> None:
    get(api)
    with ApiServer(pki=pki) as other:
        pki.write_kubeconfig(files.kubeconfig, other.url, files.current)
        assert api.refresh()
        get(api)
        assert len(server.requests) == len(other.requests) == 1


@pytest.mark.parametrize("closed", [False, True], ids=["rotation", "closing"])
def test_a_request_that_has_no_answer_yet_is_ended(
    closed: bool, api: Api, server: ApiServer, files: NodeFiles
) -> None:
    server.hang()
    watch = watching(api)
    server.wait_for(lambda: len(server.requests) == 1)
    if closed:
        api.close()
    else:
        files.rotate()
        assert api.refresh()
    server.heal()
    assert isinstance(watch.got(), Superseded)


def test_a_rotation_just_before_a_request_is_no_failure(
    api: Api, files: NodeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = api.credentials().pool
    connection_pool = pool.connection_from_host

    def rotated(*args: Any, **options: Any) -> Any:
        made = connection_pool(*args, **options)
        files.rotate()
        assert api.refresh()
        return made

    monkeypatch.setattr(pool, "connection_from_host", rotated)
    with pytest.raises(Superseded):
        get(api)
    get(api)


def test_a_watch_that_the_server_breaks_off_is_not_superseded(api: Api, server: ApiServer) -> None:
    with watched(api, server) as watch:
        server.drop_watches()
        assert isinstance(watch.got(), ApiError)


# 3. Rotation that goes wrong


def test_a_file_that_is_missing_for_a_moment_is_no_error(
    api: Api, server: ApiServer, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    get(api)
    aside = files.current.with_suffix(".aside")
    for _ in range(3):
        files.current.rename(aside)
        assert not api.refresh()
        aside.rename(files.current)
        assert not api.refresh()
    old, dated = files.serial, files.issue()
    files.current.unlink()
    assert not api.refresh()
    assert shown(api, server) == old
    point_to(files.current, dated)
    assert api.refresh()
    assert shown(api, server) == files.serial
    assert not warnings(caplog)


def break_by_removal(files: NodeFiles) -> None:
    files.current.unlink()


def break_certificate(files: NodeFiles) -> None:
    files.current.write_text("no certificate\n")


def break_key(files: NodeFiles) -> None:
    certificate, other = files.issue().read_text(), files.issue().read_text()
    key = "-----BEGIN" + other.rpartition("-----BEGIN")[2]
    files.current.write_text(certificate.rpartition("-----BEGIN")[0] + key)


def break_kubeconfig(files: NodeFiles) -> None:
    files.kubeconfig.write_text("users: [")


@pytest.mark.parametrize(
    "break_files", [break_by_removal, break_certificate, break_key, break_kubeconfig]
)
def test_a_broken_file_that_stays_is_said_once_and_the_old_credentials_go_on(
    break_files: Callable[[NodeFiles], None],
    api: Api,
    server: ApiServer,
    files: NodeFiles,
    pki: Pki,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = files.serial
    with watched(api, server):
        break_files(files)
        for _ in range(5):
            assert not api.refresh()
        assert server.watches("services") == 1
        assert shown(api, server) == old
    (warning,) = warnings(caplog)
    assert warning.startswith(
        "cannot read the changed credentials, using the old ones: kubeconfig "
    )
    assert "\n" not in warning

    pki.write_kubeconfig(files.kubeconfig, server.url, files.current)
    files.rotate()
    assert api.refresh()
    assert shown(api, server) == files.serial
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(("seconds", "tries"), [(0.0, 10), (60.0, 2)])
def test_what_could_not_be_loaded_for_a_passing_reason_is_tried_again(
    seconds: float,
    tries: int,
    api: Api,
    server: ApiServer,
    files: NodeFiles,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    get(api)
    files.rotate()
    tried: list[Reader] = []

    def fails(reader: Reader) -> Credentials:
        tried.append(reader)
        raise RefusedError("kubeconfig", "cannot start a process to read it")

    monkeypatch.setattr(client, "_RELOAD_SECONDS", seconds)
    with monkeypatch.context() as passing:
        passing.setattr(client, "load_credentials", fails)
        assert not any(api.refresh() for _ in range(10))
    assert len(tried) == tries
    assert len(warnings(caplog)) == 1
    # The files are the same, and nothing keeps them from being loaded any more.
    monkeypatch.setattr(api, "_again", 0.0)
    assert api.refresh()
    assert shown(api, server) == files.serial


def test_a_file_that_breaks_in_another_way_is_said_again(
    api: Api, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    get(api)
    for break_files in (break_certificate, break_kubeconfig):
        break_files(files)
        for _ in range(3):
            assert not api.refresh()
    assert len(warnings(caplog)) == 2


def test_what_makes_credentials_unsafe_is_said_once_for_all_rotations(
    api: Api, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    text = files.kubeconfig.read_text()
    unsafe = re.sub("certificate-authority-data: .*", "insecure-skip-tls-verify: true", text)
    files.kubeconfig.write_text(unsafe)
    for _ in range(3):
        files.rotate()
        assert api.refresh()
    (said,) = warnings(caplog)
    assert "is not verified" in said


# 4. Secrets stay secret


def test_no_log_holds_a_key(
    api: Api, server: ApiServer, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    get(api)
    for break_files in (break_key, break_certificate, NodeFiles.rotate):
        break_files(files)
        api.refresh()
        api.refresh()
        get(api)
    server.fail(401)
    said = caplog.text + str(failure(api))
    assert "read the credentials" in said
    assert len(files.secrets) > 10
    for secret in filter(None, files.secrets):
        assert secret not in said


def test_no_log_and_no_error_holds_a_token(
    server: ApiServer, pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = token_kubeconfig(tmp_path / "token.conf", server, pki)
    text = path.read_text()
    api = Api(path)
    get(api)
    said = []
    for status in (401, 403, 500):
        server.fail(status, times=1)
        said.append(str(failure(api)))
    server.stop()
    said.append(str(failure(api)))
    for changed in (text + "# changed\n", text.replace("user:\n", "usr:\n")):
        path.write_text(changed)
        api.refresh()
        api.refresh()
    assert len(warnings(caplog)) == 1
    assert TOKEN in text
    assert TOKEN not in caplog.text + "".join(said)
