"""A kubeconfig and the files that it names become credentials, or a sentence that says why not."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
import urllib3
from cryptography.hazmat.primitives import serialization

from ipvs_node_agent.kubeconfig.credentials import Credentials
from tests.support.apiserver import ApiServer
from tests.support.kubeconfigs import HOSTS, SECRET, URL, document, load, naming, refusal, write
from tests.support.pki import Pki, plain_kubeconfig

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

# What the fixture `node_pem` leaves beside a kubeconfig.
NODE_PEM = "kubelet-client-current.pem"
NODE_USER = "system:node:worker-1"
FORMS = {
    "PKCS8": serialization.PrivateFormat.PKCS8,
    "traditional": serialization.PrivateFormat.TraditionalOpenSSL,
}


def inline(data: bytes) -> str:
    return base64.b64encode(data).decode()


def shown(credentials: Credentials, pki: Pki) -> tuple[str | None, int | None]:
    """Whom a server sees: the user, and the serial number of the certificate."""
    with ApiServer(pki=pki) as server:
        credentials.pool.request(
            "GET", f"{server.url}/api/v1/services", headers=credentials.headers()
        )
        return server.requests[-1].user, server.requests[-1].serial


# 1. What is understood


def test_kubeadms_layout_gives_server_user_and_node(path: Path) -> None:
    credentials = load(path)
    assert credentials.server == URL
    assert credentials.user == NODE_USER
    assert credentials.node_name == "worker-1"
    assert not credentials.headers()


def test_connections_made_after_the_files_are_gone_use_what_was_loaded(
    path: Path, node_pem: Path, pki: Pki
) -> None:
    serial = pki.write_node_client(node_pem.resolve(), "worker-1")
    credentials = load(path)
    node_pem.resolve().unlink()
    node_pem.unlink()
    path.unlink()
    assert shown(credentials, pki) == (NODE_USER, serial)


def test_relative_paths_start_at_the_kubeconfig(
    node_pem: Path, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pki").mkdir()
    pki.write_ca(tmp_path / "pki" / "ca.crt")
    keys = {"client-certificate": node_pem.name, "certificate-authority": "pki/ca.crt"}
    path = write(tmp_path / "kubelet.conf", naming(**keys))
    monkeypatch.chdir(tmp_path / "pki")
    assert shown(load(path), pki)[0] == NODE_USER


def test_inline_data_needs_no_other_file(node_pem: Path, pki: Pki, tmp_path: Path) -> None:
    pem = inline(node_pem.read_bytes())
    keys = {"client-certificate-data": pem, "client-key-data": pem}
    authority = {"certificate-authority-data": inline(pki.ca_pem.encode())}
    path = write(tmp_path / "kubelet.conf", naming(**keys, **authority))
    node_pem.resolve().unlink()
    assert shown(load(path), pki)[0] == NODE_USER


def test_files_may_have_comments_in_any_language(node_pem: Path, pki: Pki, tmp_path: Path) -> None:
    """Bundles have them, in more than one encoding, and whoever uses OpenSSL takes them."""
    comments = "# Főtanúsítvány\n".encode() + b"# caf\xe9 \x00 \xff\n"
    (tmp_path / "ca.crt").write_bytes(comments + pki.ca_pem.encode() + comments)
    node_pem.write_bytes(comments + node_pem.read_bytes())
    keys = {"client-certificate": node_pem.name, "certificate-authority": "ca.crt"}
    credentials = load(write(tmp_path / "kubelet.conf", naming(**keys)))
    assert credentials.node_name == "worker-1"
    assert shown(credentials, pki)[0] == NODE_USER


def test_a_ca_file_may_hold_an_intermediate_authority_alone(tmp_path: Path) -> None:
    """As for Kubernetes' own clients, whose Go trusts each certificate in it."""
    between = trustme.CA().create_child_ca()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    between.issue_cert("127.0.0.1").configure_cert(server)
    (tmp_path / "ca.crt").write_bytes(between.cert_pem.bytes())
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with suppress(OSError), server.wrap_socket(plain, server_side=True) as one:
                one.recv(1000)
                one.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        content = document({}, server=url, **{"certificate-authority": "ca.crt"})
        credentials = load(write(tmp_path / "kubelet.conf", content))
        assert credentials.pool.request("GET", url).status == 204
        thread.join(10)


@pytest.mark.parametrize(
    ("keys", "token"),
    [
        ({"token": "old", "tokenFile": "token"}, SECRET),
        ({"token": SECRET, "tokenFile": "missing"}, SECRET),
    ],
)
def test_a_token_in_a_file_counts_where_there_are_two_as_in_client_go(
    keys: dict[str, str], token: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(SECRET)
    credentials = load(write(tmp_path / "kubeconfig", naming(**keys)))
    assert dict(credentials.headers()) == {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("text", [None, SECRET, f"{SECRET}\n", f"{SECRET} \r\n\n"])
def test_a_token_goes_along_as_a_header_without_the_white_space_around_it_in_a_file(
    text: str | None, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(text or "")
    keys = {"tokenFile": "token"} if text else {"token": SECRET}
    credentials = load(write(tmp_path / "kubeconfig", naming(**keys)))
    assert dict(credentials.headers()) == {"authorization": f"Bearer {SECRET}"}
    assert credentials.user is None
    assert credentials.node_name is None
    assert SECRET not in repr(credentials)


def test_plain_http_needs_no_credentials_and_is_warned_of(tmp_path: Path) -> None:
    plain_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:8080", "worker-1")
    credentials = load(tmp_path / "kubeconfig")
    assert credentials.server == "http://127.0.0.1:8080"
    assert credentials.user is None
    assert not credentials.headers()
    assert credentials.warning == (
        "the API server http://127.0.0.1:8080 is asked without TLS:"
        " an attacker on the network path can steer this node's traffic"
    )


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("verify", [True, False])
def test_a_server_is_only_taken_unseen_where_the_kubeconfig_says_so(
    verify: bool, tmp_path: Path
) -> None:
    content = document(**{"insecure-skip-tls-verify": not verify})
    credentials = load(write(tmp_path / "kubeconfig", content))
    assert ("is not verified" in credentials.warning) == (not verify)
    with ApiServer(host="0.0.0.0", pki=Pki()) as server:
        url = f"https://127.0.0.1:{server.port}/api/v1/services"
        if verify:
            with pytest.raises(urllib3.exceptions.SSLError):
                credentials.pool.request("GET", url)
        else:
            assert credentials.pool.request("GET", url).status == 401


def test_a_server_may_be_asked_for_under_another_name(
    node_pem: Path, pki: Pki, tmp_path: Path
) -> None:
    pki.write_ca(tmp_path / "ca.crt")
    keys = {"client-certificate": node_pem.name, "certificate-authority": "ca.crt"}
    content = naming(**keys, **{"tls-server-name": "kubernetes"})
    credentials = load(write(tmp_path / "kubeconfig", content))
    with ApiServer(host="0.0.0.0", pki=pki, names=["kubernetes"]) as server:
        url = f"https://127.0.0.1:{server.port}/api/v1/services"
        assert credentials.pool.request("GET", url).status == 200
    with ApiServer(pki=pki) as server, pytest.raises(urllib3.exceptions.SSLError):
        credentials.pool.request("GET", f"{server.url}/api/v1/services")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (None, ("127.0.0.1", 6443)),
        ("http://proxy.example.org/", ("proxy.example.org", 80)),
        (f"http://me:{SECRET}@[fd00::1]:3128", ("fd00::1", 3128)),
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


@pytest.mark.parametrize(
    ("user", "node"),
    [
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


# 2. What is refused


@pytest.mark.parametrize("key", HOSTS)
def test_a_host_that_is_none_is_refused(key: str, tmp_path: Path) -> None:
    value = "a..b" if key == "tls-server-name" else "http://a..b:1"
    path = write(tmp_path / "kubelet.conf", naming(**{key: value}))
    assert refusal(path) == f"kubeconfig {path}: its {key} has a host with an empty label"


@pytest.fixture
def odd_pems(node_pem: Path, pki: Pki) -> None:
    """Beside a good one."""
    (node_pem.parent / "broken").write_text("no certificate\n")
    certificate = node_pem.read_text().partition("-----END CERTIFICATE-----")[:2]
    (node_pem.parent / "alone").write_text("".join(certificate))
    pki.write_node_client(node_pem.parent / "other", "worker-2")
    key = serialization.load_pem_private_key(node_pem.read_bytes(), None)
    for name, form in FORMS.items():
        encryption = serialization.BestAvailableEncryption(SECRET.encode())
        encrypted = key.private_bytes(serialization.Encoding.PEM, form, encryption)
        (node_pem.parent / name).write_bytes(encrypted)


@pytest.mark.usefixtures("odd_pems")
@pytest.mark.parametrize(
    ("keys", "why"),
    [
        pytest.param({"certificate-authority": "broken"}, "", id="no authority"),
        pytest.param({"client-certificate": "broken"}, "", id="no certificate"),
        pytest.param({"client-certificate": "alone"}, "", id="no key"),
        pytest.param(
            {"client-certificate": NODE_PEM, "client-key": "other"},
            "KEY_VALUES_MISMATCH",
            id="another's key",
        ),
        # Nobody is asked for its password.
        *(
            pytest.param({"client-certificate": NODE_PEM, "client-key": form}, "", id=form)
            for form in FORMS
        ),
    ],
)
def test_files_that_cannot_be_used_are_the_ones_named(
    keys: dict[str, str], why: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "kubelet.conf", naming(**keys))
    files = " and ".join(str(tmp_path / name) for name in keys.values())
    text = refusal(path)
    assert text.startswith(f"kubeconfig {path}: cannot load {files}: ")
    assert text.endswith(why)


@pytest.mark.parametrize("token", ["one\ntwo", "to\0ken", "tök€n"])
def test_a_token_that_no_header_can_carry_is_refused(token: str, tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "kubelet.conf", naming(token=token)))
    assert "token" in text
    assert token not in text


# 3. Secrets stay secret


@pytest.mark.parametrize("key", ["server", "proxy-url"])
@pytest.mark.parametrize(
    "rest", ["", ":99999", "/?a#b", "@b", "\n", "\u3002", "..", ":7:7", "]", ".256", "\\"]
)
def test_no_message_about_a_url_holds_its_password(key: str, rest: str, tmp_path: Path) -> None:
    urls = [f"https://me:{SECRET}@a{rest}", f"https://{SECRET}{rest}@a..", f"me:{SECRET}@a{rest}"]
    for url in urls:
        assert SECRET not in refusal(write(tmp_path / "kubelet.conf", naming(**{key: url})))
