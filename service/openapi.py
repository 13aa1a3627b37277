"""The OpenAPI document, narrowed to what this deployment takes.

FastAPI describes what can be said of a field alone. What depends on the model, on the settings or
on other fields is added here, from where the checks take it, so that a client that keeps to the
document is never refused; schemathesis holds us to that.
"""

from typing import Any, Final

from fastapi import FastAPI

from koala.catalogue import ModelCard
from koala.lora import LoraFolder
from koala.schedulers import SCHEDULERS
from koala.settings import Settings
from koala.spec import MAX_SEED
from service.requests import CONTROL

_Schema = dict[str, Any]

_NULL: Final[_Schema] = {"type": "null"}
_MOST_IMAGES: Final = 10
# Space at the ends of a header's value is not part of it.
_HEADERS: Final[dict[str, _Schema]] = {
    "idempotency-key": {
        "type": "string",
        "pattern": r"^[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?$",
    }
}
_METHODS: Final = ("get", "post")
_IMAGES: Final = "/v1/images/{name}"


def install(app: FastAPI, card: ModelCard, settings: Settings, loras: LoraFolder) -> None:
    """Make ``app`` serve the narrowed document."""
    plain = app.openapi

    def narrowed() -> _Schema:
        if app.openapi_schema is None:
            document = plain()
            request = document["components"]["schemas"]["GenerationRequest"]
            for field, schema in _fields(card, settings).items():
                _replace(request["properties"][field], schema)
            _narrow_loras(document, loras.names())
            request["not"] = {"anyOf": _contradictions(card)}
            _narrow_parameters(document, settings)
            _name_keys(document, settings)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = narrowed  # type: ignore[method-assign]


def _fields(card: ModelCard, settings: Settings) -> dict[str, _Schema]:
    longest = settings.max_prompt_chars
    plain = f"[^{CONTROL}]"
    names = {"type": "string", "pattern": f"^{plain}*$", "maxLength": 512}
    sides = "|".join(map(str, range(card.min_side, card.max_side + 1, card.side_multiple)))
    fields: dict[str, _Schema] = {
        "model": {"enum": _names(card, settings)},
        "size": {"type": "string", "pattern": f"^(auto|({sides})x({sides}))$"},
        "background": {"enum": ["opaque", "auto"]},
        "user": names,
        "safety_identifier": names,
        "webhook_url": {"type": "string", "format": "uri", "maxLength": 512},
        "negative_prompt": {"type": "string", "pattern": f"^{plain}*$", "maxLength": longest},
        "num_inference_steps": {"type": "integer", "minimum": 1, "maximum": card.max_steps},
        "guidance_scale": {"type": "number", "minimum": 0, "maximum": card.max_guidance_scale},
        "scheduler": {"enum": list(SCHEDULERS)},
    }
    optional = {field: {"anyOf": [schema, _NULL]} for field, schema in fields.items()}
    prompt = {
        "type": "string",
        "pattern": rf"^{plain}*[^{CONTROL}\s]{plain}*$",
        "minLength": 1,
        "maxLength": longest,
    }
    refused = {"style": _NULL}
    if settings.webhook_secret is None:
        refused["webhook_url"] = _NULL
    return optional | {"prompt": prompt} | refused


def _narrow_loras(document: _Schema, names: list[str]) -> None:
    """Name the LoRAs that are there when the document is first asked for."""
    schemas = document["components"]["schemas"]
    if names:
        _replace(schemas["LoraRequest"]["properties"]["name"], {"enum": names})
    else:
        none = {"type": "array", "maxItems": 0}
        _replace(schemas["GenerationRequest"]["properties"]["lora"], {"anyOf": [none, _NULL]})


def _names(card: ModelCard, settings: Settings) -> list[str]:
    # Folders are taken too, but where they are is nobody's business.
    names = {card.id, card.source, settings.model}
    return sorted(name for name in names if not name.startswith(("/", ".", "~")))


def _contradictions(card: ModelCard) -> list[_Schema]:
    """Fields that exclude each other, each as a schema of what is refused."""
    explicit = [quality for quality in (*card.quality_steps, "standard", "hd")]
    cases = [
        _together(
            quality={"enum": explicit},
            num_inference_steps={"type": "integer"},
        ),
        _together(
            negative_prompt={"type": "string", "minLength": 1},
            guidance_scale={"type": "number", "maximum": 1},
        ),
        # An output format that is left out is png, hence not among what is required.
        _together(output_compression={"type": "integer", "maximum": 99})
        | {
            "properties": {
                "output_compression": {"type": "integer", "maximum": 99},
                "output_format": {"enum": ["png", None]},
            }
        },
    ]
    # A stream has partial images and no previews, all else has previews and no partial images.
    some = {"type": "integer", "minimum": 1}
    cases += [
        _together(stream={"const": True}, previews=some),
        _together(partial_images=some)
        | {"properties": {"partial_images": some, "stream": {"enum": [False, None]}}},
    ]
    cases += [
        _together(n={"const": n}, seed={"type": "integer", "minimum": MAX_SEED - n + 2})
        for n in range(2, _MOST_IMAGES + 1)
    ]
    for scheduler in SCHEDULERS.values():
        most = scheduler.max_steps
        if most is not None:
            named = {"const": scheduler.name}
            too_long = [name for name, steps in card.quality_steps.items() if steps > most]
            more = {"type": "integer", "minimum": most + 1}
            cases.append(_together(scheduler=named, num_inference_steps=more))
            cases += [_together(scheduler=named, quality={"enum": too_long})] if too_long else []
    return cases


def _together(**properties: _Schema) -> _Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _narrow_parameters(document: _Schema, settings: Settings) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                if parameter["in"] == "header":
                    # Any number of lines of any text are taken of most; a client sends one.
                    _replace(schema, _HEADERS.get(parameter["name"].lower(), {"type": "string"}))
                elif parameter["name"] == "wait":
                    schema["maximum"] = settings.sync_timeout


def _name_keys(document: _Schema, settings: Settings) -> None:
    """Say which operations need a key: none where no keys are configured."""
    for path, item in document["paths"].items():
        for operation in (item[method] for method in _METHODS if method in item):
            if "security" not in operation:
                continue
            if not settings.login_required:
                del operation["security"]
            elif path == _IMAGES and not settings.private_images:
                # With an empty alternative the key is optional.
                operation["security"].append({})


def _replace(schema: _Schema, constraint: _Schema) -> None:
    told = {key: schema[key] for key in ("title", "description") if key in schema}
    schema.clear()
    schema.update(constraint | told)
