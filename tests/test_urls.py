from __future__ import annotations

import pytest

from autodisc.urls import PASSWORD, public, redacted, with_password

SHOWN = [
    ("postgresql://ann:hunter2@db/runs", "postgresql://ann@db/runs"),
    ("postgresql+psycopg2://ann:hunter2@db:5432/runs", "postgresql+psycopg2://ann@db:5432/runs"),
    ("mysql://ann:hun/t@er2@db/runs", "mysql://ann@db/runs"),
    ("postgresql:/ann:hunter2@db/runs", "postgresql:/ann@db/runs"),  # mistyped, and a secret all the same
    ("postgresql://db/runs?user=ann&password=hunter2", "postgresql://db/runs?user=ann"),
    ("postgresql://db/runs?sslpassword=hunter2&user=ann", "postgresql://db/runs?user=ann"),
    ("postgresql://ann:hunter2@db/runs?a=1&password=hunter2&b=2", "postgresql://ann@db/runs?a=1&b=2"),
]


@pytest.mark.parametrize(("url", "shown"), SHOWN)
def test_what_is_shown_of_a_url_has_no_password(url, shown):
    assert public(url) == shown
    assert "hun" not in public(url)


@pytest.mark.parametrize(
    "url", ["sqlite:///runs/study.db", "runs/journal.log", "C:/runs/journal.log", "postgresql://db:5432/runs", "a?b&c"]
)
def test_what_has_no_password_is_shown_as_it_is(url):
    assert public(url) == url


def test_another_s_message_is_shown_without_the_password_that_it_quotes(monkeypatch):
    url = "postgresql://ann:hunter2@db/runs"
    assert (
        redacted(f"no such host in {url}; hunter2 is wrong", url)
        == "no such host in postgresql://ann@db/runs; *** is wrong"
    )
    monkeypatch.setenv(PASSWORD, "swordfish")
    assert redacted("swordfish is wrong", "postgresql://ann@db/runs") == "*** is wrong"


def test_a_url_without_its_password_is_opened_with_the_environment_s(monkeypatch):
    monkeypatch.delenv(PASSWORD, raising=False)
    assert with_password("postgresql://ann@db/runs") == "postgresql://ann@db/runs"
    monkeypatch.setenv(PASSWORD, "a/b@c")
    assert with_password("postgresql://ann@db/runs") == "postgresql://ann:a%2Fb%40c@db/runs"
    assert with_password("postgresql://ann:own@db/runs") == "postgresql://ann:own@db/runs"
    assert with_password("postgresql://db/runs") == "postgresql://db/runs"
    assert with_password("runs/journal.log") == "runs/journal.log"
