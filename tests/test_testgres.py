"""Tests that others write with testgres work on this PostgreSQL, ptrack included."""

from __future__ import annotations

import shlex
import socket
from typing import TYPE_CHECKING

import pytest
from testgres import NodeStatus, PostgresNode

from ptrack_build.host import server_user
from tests.harness import system

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.factory import Factory
    from tests.harness.install import Install


def _programs(install: Install, directory: Path) -> Path:
    """A bin directory whose programs become the server's user, for a testgres run by root."""
    user = server_user()
    if user is None:
        return install.bindir
    directory.mkdir()
    become = f"setpriv --reuid={user.uid} --regid={user.gid} --clear-groups"
    for program in install.bindir.iterdir():
        script = directory / program.name
        script.write_text(f'#!/bin/sh\nexec {become} {shlex.quote(str(program))} "$@"\n')
        script.chmod(0o755)
    return directory


@pytest.mark.filterwarnings("default")
def test_node(factory: Factory, install: Install) -> None:
    """A node with the library preloaded answers in every life; what it says is others' matter."""
    home = factory.empty("testgres").root
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    node = PostgresNode(
        name="node",
        base_dir=str(home / "node"),
        port=port,
        bin_dir=str(_programs(install, home / "bin")),
    )
    system.make_dir(home / "node")
    try:
        node.init(initdb_params=["--no-sync", "-U", "postgres"])
        node.append_conf(shared_preload_libraries="ptrack", **{"ptrack.map_size": "1MB"})
        system.own_tree(home / "node")
        node.start()
        assert node.status() == NodeStatus.Running

        def ask(query: str) -> str:
            found = node.safe_psql(query, dbname="postgres", username="postgres")
            text: str = found.decode() if isinstance(found, bytes) else found
            return text.strip()

        ask("CREATE EXTENSION ptrack")
        ask("CHECKPOINT")
        redo = ask("SELECT redo_lsn FROM pg_control_checkpoint()")
        ask("CREATE TABLE t AS SELECT generate_series(1, 1000)")
        node.restart()
        path = ask("SELECT pg_relation_filepath('t')")
        assert path in ask(f"SELECT path FROM ptrack_get_pagemapset('{redo}')").splitlines()
    finally:
        node.stop(["-m", "immediate"])
