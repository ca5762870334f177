"""A Ray cluster whose connections Ray encrypts, as docs/clusters.md has it: variables of every node and the driver."""

import shutil
import socket
import ssl
import subprocess

import pytest
import ray.util

from sweep.base.config import cache_directory
from tests.cluster.harness import SUBNET, RayCluster, Sweep
from tests.support.waiting import wait_until

REFUSAL = "Failed to connect to GCS"


def write_certificates(folder, *addresses):
    """Write an authority's certificate, and key and certificate for these addresses; return Ray's variables."""
    names = ",".join(f"IP:{address}" for address in addresses)
    (folder / "extensions").write_text(f"subjectAltName={names}\n")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "authority.key", "-out", "authority.crt")
    openssl(*new, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
    signed = ("-CA", "authority.crt", "-CAkey", "authority.key", "-CAcreateserial", "-days", "2")
    openssl("x509", "-req", "-in", "node.csr", *signed, "-extfile", "extensions", "-out", "node.crt")
    files = {"SERVER_CERT": "node.crt", "SERVER_KEY": "node.key", "CA_CERT": "authority.crt"}
    return {"RAY_USE_TLS": "1", **{f"RAY_TLS_{name}": str(folder / file) for name, file in files.items()}}


@pytest.mark.ray
@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
@pytest.mark.timeout(600)
def test_a_sweep_on_an_encrypted_ray(tmp_path, monkeypatch):
    # Ray replaces a loopback address by the machine's own.
    addresses = (f"{SUBNET}.1", f"{SUBNET}.2", "127.0.0.1", ray.util.get_node_ip_address())
    variables = write_certificates(tmp_path, *addresses)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with RayCluster(nodes=1) as cluster:
        trusted = ssl.create_default_context(cafile=variables["RAY_TLS_CA_CERT"])
        trusted.load_cert_chain(variables["RAY_TLS_SERVER_CERT"], variables["RAY_TLS_SERVER_KEY"])
        host, _, port = cluster.address.partition(":")
        with (
            socket.create_connection((host, int(port))) as plain,
            trusted.wrap_socket(plain, server_hostname=host) as head,
        ):
            assert head.version() is not None, "Ray's head speaks TLS, with the certificate of this authority"
        on = ("cluster=ray", f"cluster.address={cluster.address}", "load.batch_size=1,2")
        sweep = Sweep(tmp_path / "out", *on, cache=cache_directory(None))
        assert sweep.run() in (0, 1), sweep.said()  # 1: a busy machine limited the client
        assert sweep.measured() == {"ok": 2}
        stranger = Sweep(tmp_path / "plain", *on, cache=cache_directory(None), environment={"RAY_USE_TLS": "0"})
        stranger.start()
        try:
            # It goes on asking for minutes, so its end is not waited for.
            refused = lambda: REFUSAL in stranger.said() or not stranger.running()  # noqa: E731
            wait_until(refused, 180, "a driver without encryption is refused", poll=0.5)
            assert stranger.process.poll() != 0, stranger.said()
            assert REFUSAL in stranger.said(), stranger.said()
            assert not (stranger.out / "ledger.jsonl").exists(), "nothing was placed"
        finally:
            stranger.process.kill()
            stranger.process.wait()
