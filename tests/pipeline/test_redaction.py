"""No secret of a URL is left in stored text, and everything else is kept."""

from __future__ import annotations

import pytest
from equiscreen.pipeline.errors import EquiscreenError, SourceError, detail
from equiscreen.pipeline.redaction import redact_text, redact_urls
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:secret@host/a.zip?token=abc&part=1", "https://***@host/a.zip?token=***&part=***"),
        ("https://token@host/a.cif", "https://***@host/a.cif"),
        ("--out=s3://KEY:SECRET@bucket/s.zarr", "--out=s3://***@bucket/s.zarr"),
        ("s3://KEY:SEC/RET+x=@bucket/s.zarr", "s3://***@bucket/s.zarr"),
        ("https://me:what?ever@host/a", "https://***@host/a"),
        ("https://me:p@ss@host/a", "https://***@host/a"),
        ("https://me:p@/ss@host/a", "https://***@host/a"),
        ("zip://*.cif::https://me:secret@host/a.zip?sig=a::b", "zip://*.cif::https://***@host/a.zip?sig=***"),
        ("zip://part-?.cif::https://me:secret@host/a.zip?sig=a", "zip://part-?.cif::https://***@host/a.zip?sig=***"),
        ("https://host/a?sig=a::b://secret&c=secret", "https://host/a?sig=***&c=***"),
        ("https://host/a?X-Amz-Signature=1;X-Amz-Date=2", "https://host/a?X-Amz-Signature=***;X-Amz-Date=***"),
        ("https://host/a?secret", "https://host/a?***"),
        ("https://host/a?url=https://me:secret@other/b", "https://host/a?url=***"),
        ("https://host/a#access_token=abc", "https://host/a#access_token=***"),
        ("https://host/a,https://me:secret@host/b", "https://host/a,https://***@host/b"),
        ('optimade:https://host/v1?filter=elements HAS "Al"&key=x', "optimade:https://host/v1?filter=***&key=***"),
        ("tcp://me:secret@10.0.0.1:8786", "tcp://***@10.0.0.1:8786"),
        ("abfs://container@account/a?sv=1&sig=secret", "abfs://container@account/a?sv=***&sig=***"),
        ("abfs://container:secret@account/a", "abfs://***@account/a"),
        ("az://me:secret@container/a", "az://***@container/a"),
    ],
)
def test_secrets_are_hidden(text: str, expected: str) -> None:
    assert redact_urls(text) == expected
    assert redact_urls(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "screen",
        "candidates/*.cif",
        "me@host:folder/a?b=c",
        "tcp://127.0.0.1:8786",
        "https://host:8080/run@2024/a.cif",
        "s3://bucket/run@2024/part-?.parquet",
        "zip://*.cif::file.zip",
        "abfs://container@account.dfs.core.windows.net/run/g.zarr",
        "zip://*.cif::abfss://container@account.dfs.core.windows.net/run@2/g.zip",
        "oci://bucket@namespace/g.zarr",
        "github://owner:repository@main/a.cif",
        "energy_above_hull < 0.05",
        "",
    ],
)
def test_the_rest_is_kept(text: str) -> None:
    assert redact_urls(text) == text


WORDS = st.text("abcXYZ019-._~%+", min_size=1)
# "?" in a password and "?" before a query cannot be told apart.
PASSWORDS = st.text("abcXYZ019-._~%+/@:=,", min_size=1).map(lambda text: f"SECRET{text}SECRET")
VALUES = st.text("abcXYZ019-._~%+/@:=?,", min_size=1).map(lambda text: f"SECRET{text}SECRET")


@given(WORDS, PASSWORDS, VALUES)
def test_no_password_and_no_value_survives(name: str, password: str, value: str) -> None:
    redacted = redact_urls(f"https://{name}:{password}@host/path?first={value}&second={value}")
    assert "SECRET" not in redacted
    assert redacted == "https://***@host/path?first=***&second=***"


def test_a_query_keeps_the_parameters_that_are_no_secret() -> None:
    query = "optimade:https://me:pw@host/v1/structures?filter=nelements=2&api_key=abc&page_limit=50"
    expected = "optimade:https://***@host/v1/structures?filter=nelements=2&api_key=***&page_limit=50"
    assert redact_urls(query, ("filter", "page_limit")) == expected


TEXTS = st.text("abc XYZ:,.'()", max_size=12)


@given(TEXTS, PASSWORDS, VALUES, TEXTS)
def test_no_message_quotes_a_secret(before: str, password: str, value: str, after: str) -> None:
    url = f"https://name:{password}@host/path?first={value}"
    for text in (f"{before} {url} {after}", f"{before}'{url}' {after}", f"({url}): {after}"):
        assert "SECRET" not in redact_text(text)
        assert "SECRET" not in str(SourceError(text))
        assert "SECRET" not in detail(OSError(text))
        assert redact_text(redact_text(text)) == redact_text(text)
    for secret in (password, value, f"name:{password}@host", password.split("/", maxsplit=1)[0]):
        assert "SECRET" not in redact_text(f"{before} {secret} {after}", url)
    assert redact_text(f"{before} {after}", url) == f"{before} {after}"


def test_a_message_keeps_what_is_no_secret() -> None:
    text = (
        "https://host/v1/structures?filter=nelements=2&page_offset=4: the server responded 500; see https://docs.org/a."
    )
    assert redact_text(text) == text
    assert str(EquiscreenError("no 'https://host/a.cif?sig=b', sorry")) == "no 'https://host/a.cif?sig=***', sorry"


def test_the_message_of_a_system_error_names_no_path() -> None:
    assert detail(FileNotFoundError(2, "No such file or directory", "/home/me/a.cif")) == "No such file or directory"
