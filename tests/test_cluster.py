"""Whose session a statement of the harness runs in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from tests.harness.cluster import Cluster

PID = "SELECT pg_backend_pid()"


def test_a_session_for_each_statement(cluster: Cluster) -> None:
    assert cluster.value(PID) != cluster.value(PID)


def test_one_session_where_it_is_kept(cluster: Cluster) -> None:
    """Of this thread, as this user, in this database."""
    cluster.sql("CREATE ROLE other LOGIN")
    with cluster.connected():
        pid = cluster.value(PID)
        with cluster.connected():
            assert cluster.value(PID) == pid
        assert cluster.value(PID) == pid
        assert cluster.value(PID, database="template1") != pid
        assert cluster.sql(PID, user="other") != [(pid,)]
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(cluster.value, PID).result() != pid
    assert cluster.value(PID) != pid


def test_a_script_leaves_nothing_in_a_session_that_is_kept(cluster: Cluster) -> None:
    with cluster.connected():
        pid = cluster.value(PID)
        cluster.sql("CREATE TABLE sessions (pid int)")
        cluster.script(
            [
                "SET search_path = nowhere, public",
                "CREATE TEMPORARY TABLE mine ()",
                "INSERT INTO sessions SELECT pg_backend_pid()",
            ]
        )
        assert cluster.sql("SELECT pid FROM sessions") == [(pid,)]
        assert cluster.value("SHOW search_path") == '"$user", public'
        assert cluster.value("SELECT to_regclass('pg_temp.mine')") is None


def test_a_session_that_died_is_not_used_again(cluster: Cluster) -> None:
    with cluster.connected():
        pid = cluster.value(PID)
        with pytest.raises(psycopg.OperationalError):
            cluster.sql("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)")
        assert cluster.value(PID) != pid
