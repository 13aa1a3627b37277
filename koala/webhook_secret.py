"""The form of the secrets that sign webhooks, as Standard Webhooks writes them."""

import base64
import binascii
from typing import Final

_PREFIX: Final = "whsec_"
_FEWEST_BYTES: Final = 24
_MOST_BYTES: Final = 64


def split(text: str) -> list[str]:
    """The secrets in ``text``, which are separated by commas; each is checked.

    More than one is for the time of a change: all of them sign.

    Raises:
        ValueError: One is malformed; the message says which and why, without quoting it.
    """
    secrets = [part.strip() for part in text.split(",")]
    for number, secret in enumerate(secrets, 1):
        reason = _error(secret)
        if reason is not None:
            which = "it" if len(secrets) == 1 else f"secret {number}"
            raise ValueError(
                f"{which} {reason}; a secret is `{_PREFIX}` and base64 of {_FEWEST_BYTES} to "
                f"{_MOST_BYTES} random bytes"
            )
    if len(set(secrets)) < len(secrets):
        raise ValueError("the same secret is there twice")
    return secrets


def _error(secret: str) -> str | None:
    if not secret:
        return "is empty"
    if not secret.startswith(_PREFIX):
        return f"does not begin with `{_PREFIX}`"
    encoded = secret.removeprefix(_PREFIX)
    try:
        # The padding may be left out.
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        return f"is not base64 behind `{_PREFIX}`"
    if not _FEWEST_BYTES <= len(key) <= _MOST_BYTES:
        return f"holds {len(key)} bytes"
    return None
