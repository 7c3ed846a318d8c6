"""A kubeconfig and the files that it names become credentials, or a sentence that says why not."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import urllib3
from cryptography.hazmat.primitives import serialization

from ipvs_node_agent.kubeconfig.credentials import Credentials
from tests.support.apiserver import ApiServer
from tests.support.kubeconfigs import HOSTS, SECRET, URL, document, load, refusal, write
from tests.support.pki import Pki, plain_kubeconfig

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")


def inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def shown(credentials: Credentials, pki: Pki) -> tuple[str | None, int | None]:
    """Whom a server sees: the user, and the serial number of the certificate."""
    with ApiServer(pki=pki) as server:
        credentials.pool.request("GET", f"{server.url}/version", headers=credentials.headers())
        return server.requests[-1].user, server.requests[-1].serial


# 1. What is understood


def test_kubeadms_layout_gives_server_user_and_node(path: Path) -> None:
    credentials = load(path)
    assert credentials.server == URL
    assert credentials.user == "system:node:worker-1"
    assert credentials.node_name == "worker-1"
    assert not credentials.headers()


def test_the_certificate_behind_the_symlink_is_shown_to_the_server(
    path: Path, pki: Pki, tmp_path: Path
) -> None:
    serial = pki.write_node_client(tmp_path / "kubelet-client-2026-01-05-08-00-00.pem", "worker-1")
    assert shown(load(path), pki) == ("system:node:worker-1", serial)


def test_connections_made_after_the_files_are_gone_use_what_was_loaded(
    path: Path, node_pem: Path, pki: Pki
) -> None:
    credentials = load(path)
    node_pem.resolve().unlink()
    node_pem.unlink()
    path.unlink()
    assert shown(credentials, pki)[0] == "system:node:worker-1"


def test_relative_paths_start_at_the_kubeconfig(
    node_pem: Path, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / "elsewhere").mkdir()
    pki.write_ca(tmp_path / "pki" / "ca.crt")
    user = {"client-certificate": node_pem.name, "client-key": node_pem.name}
    path = write(
        tmp_path / "kubelet.conf", document(user, **{"certificate-authority": "pki/ca.crt"})
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert shown(load(path), pki)[0] == "system:node:worker-1"


def test_inline_data_needs_no_other_file(node_pem: Path, pki: Pki, tmp_path: Path) -> None:
    user = {"client-certificate-data": inline(node_pem), "client-key-data": inline(node_pem)}
    authority = base64.b64encode(pki.ca_pem.encode()).decode()
    path = write(
        tmp_path / "kubelet.conf", document(user, **{"certificate-authority-data": authority})
    )
    node_pem.resolve().unlink()
    credentials = load(path)
    assert credentials.node_name == "worker-1"
    assert shown(credentials, pki)[0] == "system:node:worker-1"


def test_a_token_goes_along_as_a_header(tmp_path: Path) -> None:
    credentials = load(write(tmp_path / "kubeconfig", document({"token": SECRET})))
    assert dict(credentials.headers()) == {"authorization": f"Bearer {SECRET}"}
    assert credentials.user is None
    assert credentials.node_name is None


@pytest.mark.parametrize("text", [SECRET, f"{SECRET}\n", f"{SECRET} \r\n\n"])
def test_a_token_is_read_from_its_file_without_the_white_space_around_it(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(text)
    path = write(tmp_path / "kubeconfig", document({"tokenFile": "token"}))
    assert dict(load(path).headers()) == {"authorization": f"Bearer {SECRET}"}


def test_plain_http_needs_no_credentials(tmp_path: Path) -> None:
    plain_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:8080", "worker-1")
    credentials = load(tmp_path / "kubeconfig")
    assert credentials.server == "http://127.0.0.1:8080"
    assert credentials.user is None
    assert not credentials.headers()
    assert credentials.warning == (
        "the API server http://127.0.0.1:8080 is asked without TLS:"
        " anybody on the way can steer this node's traffic"
    )


def test_a_server_of_another_authority_is_refused(path: Path) -> None:
    credentials = load(path)
    with ApiServer(pki=Pki()) as server, pytest.raises(urllib3.exceptions.SSLError):
        credentials.pool.request("GET", f"{server.url}/version")


def test_a_server_whose_certificate_is_for_another_name_is_refused(path: Path, pki: Pki) -> None:
    credentials = load(path)
    with ApiServer(host="0.0.0.0", pki=pki) as server:
        url = f"https://127.0.0.1:{server.port}/version"
        with pytest.raises(urllib3.exceptions.SSLError):
            credentials.pool.request("GET", url)
        named = credentials.pool.request("GET", f"https://localhost:{server.port}/version")
        assert named.status == 200


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_a_server_is_only_taken_unseen_where_the_kubeconfig_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "kubeconfig", document({}, **{"insecure-skip-tls-verify": True}))
    credentials = load(path)
    with ApiServer(host="0.0.0.0", pki=Pki()) as server:
        url = f"https://127.0.0.1:{server.port}/version"
        assert credentials.pool.request("GET", url).status == 401


def test_a_server_may_be_asked_for_under_another_name(node_pem: Path, pki: Pki) -> None:
    user = {"client-certificate": node_pem.name, "client-key": node_pem.name}
    pki.write_ca(node_pem.with_name("ca.crt"))
    cluster = {"certificate-authority": "ca.crt", "tls-server-name": "kubernetes"}
    path = write(node_pem.with_name("kubeconfig"), document(user, **cluster))
    credentials = load(path)
    with ApiServer(host="0.0.0.0", pki=pki, names=["kubernetes"]) as server:
        url = f"https://127.0.0.1:{server.port}/version"
        assert credentials.pool.request("GET", url).status == 200
    with ApiServer(pki=pki) as server, pytest.raises(urllib3.exceptions.SSLError):
        credentials.pool.request("GET", f"{server.url}/version")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (None, ("127.0.0.1", 6443)),
        ("http://proxy.example.org:3128", ("proxy.example.org", 3128)),
        ("http://proxy.example.org/", ("proxy.example.org", 80)),
        ("http://me:s3cret@[fd00::1]:3128", ("fd00::1", 3128)),
    ],
)
def test_connections_are_opened_to_the_proxy_where_there_is_one(
    url: str | None, address: tuple[str, int], tmp_path: Path
) -> None:
    cluster = {"proxy-url": url} if url else {}
    credentials = load(write(tmp_path / "kubeconfig", document(**cluster)))
    assert credentials.address == address
    assert isinstance(credentials.pool, urllib3.ProxyManager) == bool(url)
    assert SECRET not in repr(credentials)


@pytest.mark.parametrize("verify", [True, False])
def test_a_server_that_is_taken_unseen_is_warned_of(verify: bool, tmp_path: Path) -> None:
    cluster = {"insecure-skip-tls-verify": not verify}
    credentials = load(write(tmp_path / "kubeconfig", document(**cluster)))
    assert ("is not verified" in credentials.warning) == (not verify)


# 2. The Node's name


@pytest.mark.parametrize(
    ("user", "node"),
    [
        ("system:node:worker-1", "worker-1"),
        ("system:node:worker-1.example.org", "worker-1.example.org"),
        ("system:nodes:worker-1", None),
        ("admin", None),
    ],
)
def test_the_node_is_the_one_that_the_certificate_was_made_out_to(
    user: str, node: str | None, pki: Pki, tmp_path: Path
) -> None:
    pki.write_client(tmp_path / "client.pem", user, "system:nodes")
    pki.write_kubeconfig(tmp_path / "kubeconfig", URL, tmp_path / "client.pem")
    credentials = load(tmp_path / "kubeconfig")
    assert credentials.user == user
    assert credentials.node_name == node


# 3. What is refused


def test_a_missing_kubeconfig_is_asked_about(tmp_path: Path) -> None:
    assert refusal(tmp_path / "kubelet.conf").endswith(
        "No such file or directory (is this node's kubelet set up?)"
    )


@pytest.mark.parametrize("url", ["socks5://p:1", "https://p:1", "p:1"])
def test_a_proxy_of_another_kind_is_refused(url: str, tmp_path: Path) -> None:
    path = write(tmp_path / "kubelet.conf", document(**{"proxy-url": url}))
    assert "its proxy-url is not of the form http://HOST:PORT" in refusal(path)


@pytest.mark.parametrize("key", HOSTS)
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a..b", "has a host with an empty label"),
        ("a" * 64, "has a host of more than 253 characters, or 63 in a label"),
        ("a\u3002b", "(U+3002)"),
        ("a\nb", "(U+000A)"),
    ],
)
def test_a_host_that_is_none_is_refused(key: str, name: str, why: str, tmp_path: Path) -> None:
    value = name if key == "tls-server-name" else f"http://{name}:1"
    text = refusal(write(tmp_path / "kubelet.conf", document(**{key: value})))
    assert f": its {key} has " in text
    assert why in text


def test_an_authority_may_have_comments_in_any_language(pki: Pki, tmp_path: Path) -> None:
    """Bundles have them, in more than one encoding, and whoever uses OpenSSL takes them."""
    comments = "# Főtanúsítvány\n".encode() + b"# caf\xe9 \x00 \xff\n"
    (tmp_path / "ca.crt").write_bytes(comments + pki.ca_pem.encode() + comments)
    pki.write_node_client(tmp_path / "node.pem", "worker-1")
    node = (tmp_path / "node.pem").read_bytes()
    (tmp_path / "node.pem").write_bytes(comments + node)
    user = {"client-certificate": "node.pem", "client-key": "node.pem"}
    path = write(tmp_path / "kubelet.conf", document(user, **{"certificate-authority": "ca.crt"}))
    credentials = load(path)
    assert credentials.node_name == "worker-1"
    assert shown(credentials, pki)[0] == "system:node:worker-1"


def test_an_exec_plugin_that_gives_nothing_is_refused(tmp_path: Path) -> None:
    exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/no/such/plugin"}
    path = write(tmp_path / "kubelet.conf", document({"exec": exec_}))
    assert "exec plugin gave no credentials" in refusal(path) or "/no/such" in refusal(path)


def test_a_key_of_another_certificate_is_refused(node_pem: Path, pki: Pki, tmp_path: Path) -> None:
    pki.write_node_client(tmp_path / "other.pem", "worker-2")
    user = {"client-certificate": node_pem.name, "client-key": "other.pem"}
    text = refusal(write(tmp_path / "kubelet.conf", document(user)))
    assert f"cannot load {node_pem}" in text
    assert "other.pem" in text
    assert text.endswith("KEY_VALUES_MISMATCH")


@pytest.mark.parametrize(
    "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL]
)
def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(
    form: serialization.PrivateFormat, node_pem: Path, tmp_path: Path
) -> None:
    key = serialization.load_pem_private_key(node_pem.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(SECRET.encode())
    encrypted = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    (tmp_path / "encrypted.key").write_bytes(encrypted)
    user = {"client-certificate": node_pem.name, "client-key": "encrypted.key"}
    text = refusal(write(tmp_path / "kubelet.conf", document(user)))
    assert "cannot load" in text
    assert "encrypted.key" in text


@pytest.mark.parametrize("key", ["certificate-authority", "client-certificate"])
def test_a_file_without_a_certificate_is_the_one_named(
    key: str, node_pem: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.pem").write_text("no certificate\n")
    user = {"client-certificate": node_pem.name, "client-key": node_pem.name}
    cluster = {}
    if key in user:
        user[key] = "broken.pem"
    else:
        cluster[key] = "broken.pem"
    path = write(tmp_path / "kubelet.conf", document(user, **cluster))
    assert f"cannot load {tmp_path / 'broken.pem'}" in refusal(path)


def test_a_certificate_without_its_key_is_refused(node_pem: Path, tmp_path: Path) -> None:
    certificate, key = node_pem.read_text().split("-----BEGIN", 2)[1:]
    assert "PRIVATE KEY" in key
    (tmp_path / "alone.pem").write_text(f"-----BEGIN{certificate}")
    path = write(tmp_path / "kubelet.conf", document({"client-certificate": "alone.pem"}))
    assert "cannot load" in refusal(path)


@pytest.mark.parametrize("token", ["one\ntwo", "to\0ken", "tök€n"])
def test_a_token_that_no_header_can_carry_is_refused(token: str, tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "kubelet.conf", document({"token": token})))
    assert "token" in text
    assert token not in text


# 4. Secrets stay secret


@pytest.mark.parametrize(
    "users",
    [
        pytest.param([{"name": "u", "usr": {"token": SECRET}}], id="a misspelt user"),
        pytest.param([{"name": "u", "user": None, "token": SECRET}], id="a null user"),
        pytest.param([{"nam": "u", "user": {"token": SECRET}}], id="a misspelt name"),
        pytest.param([{"name": "u", "user": SECRET}], id="a bare token"),
        pytest.param([SECRET], id="a list of tokens"),
        pytest.param(SECRET, id="nothing but a token"),
        pytest.param({"u": {"token": SECRET}}, id="a mapping"),
        pytest.param(
            [
                {
                    "name": "u",
                    "user": {"client-certificate-data": SECRET, "client-key-data": SECRET},
                }
            ],
            id="no base64",
        ),
    ],
)
def test_no_message_holds_a_secret(users: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "kubelet.conf", {**document(), "users": users})
    assert SECRET not in refusal(path)


@pytest.mark.parametrize("key", ["server", "proxy-url"])
@pytest.mark.parametrize(
    "rest", ["", ":99999", "/?a#b", "@b", "\n", "\u3002", "..", ":7:7", "]", ".256", "\\"]
)
def test_no_message_about_a_url_holds_its_password(key: str, rest: str, tmp_path: Path) -> None:
    urls = [f"https://me:{SECRET}@a{rest}", f"https://{SECRET}{rest}@a..", f"me:{SECRET}@a{rest}"]
    for url in urls:
        assert SECRET not in refusal(write(tmp_path / "kubelet.conf", document(**{key: url})))


def test_a_server_with_a_password_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "kubelet.conf", document(server=f"https://me:{SECRET}@127.0.0.1:1"))
    assert refusal(path) == (
        f"kubeconfig {path}: its server holds a user or a password, which no API server takes"
    )


@pytest.mark.parametrize("text", [f"token: [{SECRET}", f"- {SECRET}: {SECRET}: x", f"\t{SECRET}"])
def test_no_message_about_yaml_holds_a_secret(text: str, tmp_path: Path) -> None:
    assert SECRET not in refusal(write(tmp_path / "kubelet.conf", text))


def test_credentials_do_not_show_their_token(tmp_path: Path) -> None:
    credentials = load(write(tmp_path / "kubeconfig", document({"token": SECRET})))
    assert SECRET not in repr(credentials)
