"""The secrets that sign webhooks, as the environment gives them."""

import base64

import pytest
from pydantic import ValidationError

from koala.commands.up import _environment
from koala.settings import Settings


def secret(size: int, byte: bytes = b"k") -> str:
    return "whsec_" + base64.b64encode(byte * size).decode()


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_secret_of_24_to_64_bytes_is_taken(size: int) -> None:
    assert Settings(webhook_secret=secret(size)).webhook_secrets == [secret(size)]


def test_the_padding_may_be_left_out() -> None:
    assert Settings(webhook_secret=secret(32).rstrip("=")).webhook_secrets


def test_several_secrets_are_separated_by_commas() -> None:
    one, two = secret(24), secret(32, b"z")
    assert Settings(webhook_secret=f"{one}, {two}").webhook_secrets == [one, two]


def test_without_a_secret_there_are_none() -> None:
    assert Settings().webhook_secrets == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (secret(23), "it holds 23 bytes"),
        (secret(65), "it holds 65 bytes"),
        (secret(32).removeprefix("whsec_"), "it does not begin with `whsec_`"),
        ("whsec_" + "?" * 44, "it is not base64"),
        ("whsec_", "it holds 0 bytes"),
        (f"{secret(32)},", "secret 2 is empty"),
        (f"{secret(32)},{secret(32)}", "twice"),
    ],
)
def test_a_malformed_secret_is_refused_by_name_and_not_quoted(text: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(webhook_secret=text)
    [error] = caught.value.errors()
    assert error["loc"] == ("webhook_secret",)
    assert says in error["msg"]
    assert "a2tra2tr" not in str(caught.value)


def test_koala_up_hands_the_secret_to_its_parts() -> None:
    assert _environment(Settings(webhook_secret=secret(32)))["KOALA_WEBHOOK_SECRET"] == secret(32)
