"""How requests follow the credentials' files, and that no secret comes out of them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Callable

import pytest

from ipvs_node_agent.apiserver.answer import Superseded
from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.errors import AgentError, RefusedError
from tests.support.apiclient import (
    TOKEN,
    NodeFiles,
    Watch,
    failure,
    get,
    warnings,
    watching,
    write_token_kubeconfig,
)
from tests.support.apiserver import ApiServer
from tests.support.pki import Pki, point_to

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")


# 1. Credentials that come late


def test_credentials_are_read_as_soon_as_they_are_there(
    files: NodeFiles, server: ApiServer
) -> None:
    aside = files.kubeconfig.with_suffix(".aside")
    files.kubeconfig.rename(aside)
    api = Api(files.kubeconfig)
    with pytest.raises(RefusedError, match="is this node's kubelet set up"):
        get(api)
    assert not api.refresh()
    aside.rename(files.kubeconfig)
    assert b"ServiceList" in get(api)


def test_credentials_that_come_late_are_news(files: NodeFiles) -> None:
    files.current.unlink()
    api = Api(files.kubeconfig)
    with pytest.raises(RefusedError):
        api.credentials()
    files.rotate()
    assert api.refresh()
    assert b"ServiceList" in get(api)


# 2. Rotation


def test_nothing_is_read_again_while_nothing_changes(api: Api) -> None:
    before = api.credentials()
    assert not api.refresh()
    assert api.credentials() is before


@pytest.mark.parametrize("in_place", [False, True], ids=["by a symlink", "in place"])
def test_a_new_certificate_is_used_from_then_on(
    in_place: bool, api: Api, server: ApiServer, files: NodeFiles
) -> None:
    get(api)
    old = files.serial
    if in_place:
        files.current.write_bytes(files.issue().read_bytes())
    else:
        files.rotate()
    assert api.refresh()
    get(api)
    assert [request.serial for request in server.requests] == [old, files.serial]
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


def test_a_rotation_ends_the_open_watch(api: Api, server: ApiServer, files: NodeFiles) -> None:
    with watching(api, server) as watch:
        files.rotate()
        assert api.refresh()
        assert isinstance(watch.ended(), Superseded)
        server.wait_for(lambda: server.watches("services") == 0)
    with watching(api, server):
        assert server.requests[-1].serial == files.serial


def test_a_request_under_way_does_not_outlive_a_rotation(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    server.hang()
    watch = Watch(api)
    server.wait_for(lambda: len(server.requests) == 1)
    files.rotate()
    assert api.refresh()
    server.heal()
    assert isinstance(watch.ended(), Superseded)


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


def test_closing_ends_what_is_under_way(api: Api, server: ApiServer) -> None:
    with watching(api, server) as watch:
        api.close()
        assert isinstance(watch.ended(), Superseded)


def test_closing_ends_a_request_that_has_no_answer_yet(api: Api, server: ApiServer) -> None:
    server.hang()
    watch = Watch(api)
    server.wait_for(lambda: len(server.requests) == 1)
    api.close()
    server.heal()
    assert isinstance(watch.ended(), Superseded)


def test_a_watch_that_the_server_breaks_off_is_not_superseded(api: Api, server: ApiServer) -> None:
    with watching(api, server) as watch:
        server.drop_watches()
        assert isinstance(watch.ended(), ApiError)


def test_many_rotations_leave_the_last_certificate_in_use(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    for _ in range(5):
        with watching(api, server) as watch:
            files.rotate()
            assert api.refresh()
            assert isinstance(watch.ended(), Superseded)
            server.wait_for(lambda: server.watches("services") == 0)
            get(api)
            assert server.requests[-1].serial == files.serial


# 3. Rotation that goes wrong


def test_a_file_that_is_missing_for_a_moment_is_no_error(
    api: Api, server: ApiServer, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    get(api)
    old, dated = files.serial, files.issue()
    files.current.unlink()
    assert not api.refresh()
    get(api)
    assert server.requests[-1].serial == old
    point_to(files.current, dated)
    assert api.refresh()
    get(api)
    assert server.requests[-1].serial == files.serial
    assert not warnings(caplog)


def test_a_file_that_is_often_missing_for_a_moment_is_no_error(
    api: Api, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    get(api)
    aside = files.current.with_suffix(".aside")
    for _ in range(3):
        files.current.rename(aside)
        api.refresh()
        aside.rename(files.current)
        api.refresh()
    assert not warnings(caplog)


def test_a_moment_does_not_end_the_open_watch(
    api: Api, server: ApiServer, files: NodeFiles
) -> None:
    with watching(api, server):
        files.current.unlink()
        assert not api.refresh()
        assert not api.refresh()
        assert server.watches("services") == 1


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
    get(api)
    old = files.serial
    break_files(files)
    for _ in range(5):
        assert not api.refresh()
    (warning,) = warnings(caplog)
    assert warning.startswith("the credentials changed and cannot be read, going on: kubeconfig ")
    assert "\n" not in warning
    get(api)
    assert server.requests[-1].serial == old

    pki.write_kubeconfig(files.kubeconfig, server.url, files.current)
    files.rotate()
    assert api.refresh()
    get(api)
    assert server.requests[-1].serial == files.serial
    assert len(warnings(caplog)) == 1


def test_a_file_that_breaks_in_another_way_is_said_again(
    api: Api, files: NodeFiles, caplog: pytest.LogCaptureFixture
) -> None:
    get(api)
    for break_files in (break_certificate, break_kubeconfig):
        break_files(files)
        for _ in range(3):
            assert not api.refresh()
    assert len(warnings(caplog)) == 2


def test_nothing_is_said_about_credentials_that_were_never_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = Api(tmp_path / "kubelet.conf")
    for _ in range(3):
        assert not api.refresh()
        with pytest.raises(AgentError):
            api.credentials()
    # Whoever asked for them got the error, and says it.
    assert not warnings(caplog)


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
    api: Api,
    server: ApiServer,
    files: NodeFiles,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    get(api)
    for break_files in (break_key, break_certificate, NodeFiles.rotate):
        break_files(files)
        api.refresh()
        api.refresh()
        get(api)
    server.fail(401, times=1)
    said = caplog.text + str(failure(api))
    assert "read the credentials" in said
    assert len(files.secrets) > 10
    for secret in filter(None, files.secrets):
        assert secret not in said


@pytest.mark.parametrize("status", [200, 401, 403, 500, 0])
def test_no_log_and_no_error_holds_a_token(
    status: int,
    server: ApiServer,
    pki: Pki,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "token.conf"
    write_token_kubeconfig(path, server, pki)
    api = Api(path)
    if status == 200:
        get(api)
        said = ""
    elif status:
        server.fail(status)
        said = str(failure(api))
    else:
        server.stop()
        said = str(failure(api))
    path.write_text(path.read_text() + "# changed\n")
    api.refresh()
    path.write_text(path.read_text().replace("user:\n", "usr:\n"))
    api.refresh()
    api.refresh()
    assert caplog.text
    assert TOKEN not in said + caplog.text
