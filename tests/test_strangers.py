"""What strangers bring: their encodings and line ends, names, links and litter."""

import pytest

from kit.files import read_text

TEXT = "[group]\nauthors = ['Zoé Œuvré', 'Åsa']  # 10 €\n"


@pytest.mark.parametrize(
    "saved",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),  # Notepad, until 2019
        TEXT.encode("utf-16"),  # PowerShell's >
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-32"),
        TEXT.encode("cp1252"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        TEXT.replace("\n", "\r").encode("cp1252"),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_text_is_the_same_whatever_editor_saved_it(tmp_path, saved):
    (tmp_path / "a.toml").write_bytes(saved)
    assert read_text(tmp_path / "a.toml") == TEXT


@pytest.mark.parametrize(
    "saved, text",
    [
        (b"", ""),
        (b"\xef\xbb\xbf", ""),
        (b"\xff\xfe", ""),
        ("ab".encode("utf-16") + b"c", "ab\ufffd"),  # cut in the middle of a letter
        (b"caf\xe9 \x81", "café \ufffd"),  # a byte that the code page has not
        (b"a\r\r\nb\n\rc", "a\n\nb\n\nc"),
    ],
)
def test_text_of_odd_bytes(tmp_path, saved, text):
    (tmp_path / "a.txt").write_bytes(saved)
    assert read_text(tmp_path / "a.txt") == text
