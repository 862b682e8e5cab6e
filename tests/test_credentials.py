"""Where a key for Kaggle is looked for."""

import json
import sys
import types

import pytest
from support.kaggle_server import (
    KEY,
    TOKEN,
)
from support.kaggle_user import XRAY, fails, left, no_secret

from kit import download


@pytest.fixture
def colab(monkeypatch):
    """colab(secrets) puts a stand-in for google.colab in place; an exception as
    `secrets` is raised.
    """

    def install(secrets=()):
        def get(name):
            if isinstance(secrets, Exception):
                raise secrets
            return dict(secrets)[name]  # Colab raises for a secret that is not there

        module = types.ModuleType("google.colab")
        module.userdata = types.SimpleNamespace(get=get)
        monkeypatch.setitem(sys.modules, "google.colab", module)
        monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=module))

    return install


def test_credentials_are_looked_for_in_this_order(user, monkeypatch, colab):
    files = user / ".kaggle"
    files.mkdir()
    (files / "access_token").write_text(f"{TOKEN}\n")
    (files / "kaggle.json").write_text(json.dumps({"username": "student", "key": KEY}))
    for name, value in {"API_TOKEN": TOKEN, "USERNAME": "student", "KEY": KEY}.items():
        monkeypatch.setenv(f"KAGGLE_{name}", value)
    secrets = {"KAGGLE_USERNAME": "student", "KAGGLE_KEY": KEY}
    colab({"KAGGLE_API_TOKEN": TOKEN, **secrets})
    found = [download.find_credentials()]
    for remove in (
        lambda: monkeypatch.delenv("KAGGLE_API_TOKEN"),
        lambda: monkeypatch.delenv("KAGGLE_KEY"),
        (files / "access_token").unlink,
        (files / "kaggle.json").unlink,
        lambda: colab(secrets),
    ):
        remove()
        found.append(download.find_credentials())
    assert [each.account for each in found] == [
        "KAGGLE_API_TOKEN",
        "KAGGLE_KEY",
        "the token of ~/.kaggle/access_token",
        "the key of ~/.kaggle/kaggle.json",
        "the Colab secret KAGGLE_API_TOKEN",
        "the Colab secret KAGGLE_KEY",
    ]
    assert all(
        each.token == TOKEN or (each.username, each.key) == ("student", KEY)
        for each in found
    )
    assert KEY not in repr(found) and TOKEN not in repr(found)


@pytest.mark.parametrize("way", ["token", "token file", "secret"])
def test_token_opens_kaggle(
    way, server, user, place, monkeypatch, colab, capfd, tmp_path
):
    monkeypatch.delenv("KAGGLE_KEY")
    if way == "secret":
        colab({"KAGGLE_API_TOKEN": TOKEN})
    elif way == "token file":
        (user / ".kaggle").mkdir()
        (user / ".kaggle" / "access_token").write_text(TOKEN)
    else:
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    download.install(XRAY, place)
    assert left(place) == {"chest_xray"}
    no_secret("".join(capfd.readouterr()), place.parent)


@pytest.mark.parametrize("value", ["two words", "ligne\nbrisée", "clé"])
def test_key_that_no_header_can_carry(value, server, place, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", value)
    fault = fails(place)
    assert fault.kind == "no key" and value not in str(fault) and server.asked == []


def test_key_file_uploaded_to_colab_is_found(
    server, user, place, monkeypatch, colab, capfd
):
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setattr(download, "COLAB", user)
    file = user / "kaggle.json"
    file.write_text(json.dumps({"username": "student", "key": KEY}))
    assert fails(place).kind == "no credentials"  # elsewhere it is not looked for there
    colab(RuntimeError("not in this page"))
    download.install(XRAY, place)
    no_secret("".join(capfd.readouterr()), user)


@pytest.mark.parametrize("content", [b"[1]", b"\xff", b'{"username": 1, "key": 2}'])
def test_key_file_that_holds_no_key(content, user, place):
    (user / ".kaggle").mkdir()
    (user / ".kaggle" / "kaggle.json").write_bytes(content)
    assert fails(place).kind == "no key"


def test_secrets_are_not_asked_for_where_nobody_looks(user, place, monkeypatch, colab):
    monkeypatch.setenv("COURSE_UNATTENDED", "1")  # as course.py run does
    colab({"KAGGLE_API_TOKEN": TOKEN})  # in truth it would wait for a page, for ever
    assert fails(place).kind == "no credentials"
