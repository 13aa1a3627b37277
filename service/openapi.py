"""The API's description says when a key is needed: it depends on the settings."""

from typing import Any, Final

from fastapi import FastAPI

from koala.settings import Settings

_METHODS: Final = ("get", "post")
_IMAGES: Final = "/v1/images/{name}"


def describe(app: FastAPI, settings: Settings) -> None:
    """Make ``app`` describe who has to log in: nobody where no keys are configured."""
    describe_all = app.openapi

    def openapi() -> dict[str, Any]:
        is_first = app.openapi_schema is None
        schema = describe_all()
        if is_first:
            _correct(schema, settings)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _correct(schema: dict[str, Any], settings: Settings) -> None:
    for path, item in schema["paths"].items():
        for operation in (item[method] for method in _METHODS if method in item):
            if "security" not in operation:
                continue
            if not settings.login_required:
                del operation["security"]
            elif path == _IMAGES and not settings.private_images:
                # With an empty alternative the key is optional.
                operation["security"].append({})
