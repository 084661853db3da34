"""A cluster with certificates, tokens and an etcd that wants TLS and a password.

n1 and n2 are machines of their own to the others, in mount namespaces, so that they speak TCP.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aetcd import rpc

from elasticps.cli.client import Api
from elasticps.daemon.local_cluster import LocalCluster, Place
from elasticps.security.files import write_new
from elasticps.security.tls import TlsFiles
from elasticps.security.tokens import Role, create_token
from elasticps.store import Store, StoreConfig
from tests.integration.cluster.acts import Cluster
from tests.support.etcd import SINGLE_TIMING, EtcdServer, started_server
from tests.support.nodes import Authority

PASSWORD = "canary-of-the-password-in-etcd"
APART = ("unshare", "--mount", "--")
NODES = ("n1", "n2", "n3", "n4")
APART_NODES = NODES[:2]


class SecuredCluster(Cluster):
    """Acts as who has the token of ``role``."""

    def __init__(self, local: LocalCluster, directory: Path, files: SecretFiles) -> None:
        super().__init__(local, directory)
        self.files = files
        self.role = Role.ADMIN

    def api(self) -> Api:
        return self.api_of(self.files.tokens[self.role])

    def api_of(self, token: str | None) -> Api:
        return Api(self.url, ca=self.files.authority.ca, token=token)


class SecretFiles:
    """All that is secret, and where it lies."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "certs")
        self.nodes: dict[str, TlsFiles] = {name: self.authority.node(name) for name in NODES}
        self.token_file = directory / "tokens.json"
        self.tokens = {role: create_token(self.token_file, role.value, role) for role in Role}
        self.password_file = directory / "password"
        write_new(self.password_file, PASSWORD.encode() + b"\n")

    def options(self, node: str) -> tuple[str, ...]:
        files = self.nodes[node]
        return (
            f"--tls-ca={files.ca}",
            f"--tls-cert={files.cert}",
            f"--tls-key={files.key}",
            f"--tokens={self.token_file}",
            f"--etcd-ca={files.ca}",
            "--etcd-user=root",
            f"--etcd-password-file={self.password_file}",
        )

    def canaries(self) -> dict[str, str]:
        """Words that may be nowhere but in these files."""
        keys = [
            self.authority.directory / "ca-key.pem",
            *(each.key for each in self.nodes.values()),
        ]
        return {
            "the password of etcd": PASSWORD,
            **{f"the token {role.value}": token for role, token in self.tokens.items()},
            **{path.name: path.read_text().splitlines()[1] for path in keys},
        }


def secured_etcd(stack: ExitStack, directory: Path, files: SecretFiles) -> EtcdServer:
    signed = files.authority.node("etcd", "127.0.0.1")
    flags = (
        *SINGLE_TIMING,
        "--bcrypt-cost=4",
        f"--cert-file={signed.cert}",
        f"--key-file={signed.key}",
    )
    server = started_server(stack, directory, flags=flags, scheme="https")
    asyncio.run(_want_password(server.config(ca=files.authority.ca)))
    return server


async def _want_password(config: StoreConfig) -> None:
    async with Store(config) as store:
        for method, request in (
            ("RoleAdd", rpc.AuthRoleAddRequest(name="root")),
            ("UserAdd", rpc.AuthUserAddRequest(name="root", password=PASSWORD)),
            ("UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root")),
            ("AuthEnable", rpc.AuthEnableRequest()),
        ):
            await store.endpoints.call(
                lambda link, method=method: getattr(link.auth, method), request
            )


@asynccontextmanager
async def secured_cluster(
    nodes: int, directory: Path, etcd: EtcdServer, files: SecretFiles
) -> AsyncIterator[SecuredCluster]:
    if os.geteuid() != 0 or subprocess.run([*APART, "true"], check=False).returncode:
        pytest.skip("needs root and `unshare --mount`: nodes that are machines of their own")
    config = etcd.config(ca=files.authority.ca, username="root", password=PASSWORD)

    def place(name: str) -> Place:
        return Place(prefix=APART if name in APART_NODES else (), options=files.options(name))

    async with LocalCluster(
        nodes=nodes, directory=directory / "cluster", etcd=config, place=place
    ) as local:
        yield SecuredCluster(local, directory, files)
