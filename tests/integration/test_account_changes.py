"""What a host hears of accounts that others change, and what of it can wait."""

from __future__ import annotations

import threading

from shmcache.database.connection import connect
from shmcache.identifiers import new_id
from syncer.account_changes import AccountChanges
from tests.integration.charging import wait_for


def test_what_other_hosts_settle_can_wait_and_what_they_lack_or_others_change_cannot(database_url: str) -> None:
    own, other = new_id(), new_id()
    woken = threading.Event()
    changes = AccountChanges(database_url, own, woken.set)
    try:
        with connect(database_url, application_name="test") as connection:

            def tell(payload: str) -> None:
                connection.execute("SELECT pg_notify('shmcache_accounts', %s)", (payload,))

            assert changes.listening.wait(60)
            assert changes.take(settled=True) == (set(), True)
            woken.clear()
            tell(f"{own} mine")
            tell(f"{other} settled,too")
            wait_for(lambda: changes._settled)
            assert changes.take(settled=False) == (set(), False)
            assert not woken.is_set()
            assert changes.take(settled=True) == ({"settled", "too"}, False)
            for payload in (f"{other} user wanted", " user"):
                tell(payload)
                assert woken.wait(60)
                assert changes.take(settled=False) == ({"user"}, False)
                woken.clear()
    finally:
        changes.stop()
