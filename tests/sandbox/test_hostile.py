"""All that a hostile agent tries, as root and as an ordinary user, in both networks."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.sandbox.attempts import ATTEMPTS
from tests.sandbox.hostile import Row, both, play_as_user, unboxed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

USERS = ["root", "ordinary user"]


def can_be_another_user() -> bool:
    """Whether a view of one's own can be made, in which an ordinary user reads this repository."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    return done.returncode == 0


@pytest.fixture(scope="module")
def found() -> dict[str, list[Row]]:
    if os.geteuid() == 0 and not can_be_another_user():
        pytest.skip("root that cannot be an ordinary user as well; see tests.sandbox.hostile")
    return both()


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", [attempt.name for attempt in ATTEMPTS])
def test_it_is_blocked_unless_it_is_inherent(
    found: dict[str, list[Row]], user: str, name: str
) -> None:
    if user not in found:
        pytest.skip(f"these tests do not run as {user}")
    (row,) = [row for row in found[user] if row.name == name]
    assert not row.failed, row.successes


def test_without_a_box_they_succeed() -> None:
    """So that what blocks them is the box, and no mistake in how they are tried."""
    if os.geteuid() == 0 and not can_be_another_user():
        pytest.skip("too much for root to be tried without a box")
    (rows,) = unboxed().values()
    assert len(rows) > 10
    assert [row.name for row in rows if row.failed] == []


def test_an_attempt_that_succeeds_fails_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_be_another_user():
        pytest.skip("needs another user")
    (row,) = play_as_user("change its own home")
    assert row.inherent == ["model", "open"]
    assert not row.failed
    row.inherent = []
    assert row.failed
    assert row.cell == "SUCCEEDS"
