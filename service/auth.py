"""Who calls, and what they may do."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Final

import structlog
from fastapi import Depends, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from koala.apikeys import PRIORITIES, ApiKey, Scope
from koala.errors import PermissionDenied, Unauthorized
from koala.spec import Priority
from service.errors import ErrorBody
from service.gateway import Gateway

_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}

# Only for the API's description: the routes below have read the header long before.
_bearer = HTTPBearer(
    scheme_name="ApiKey", description="An API key, where keys are configured.", auto_error=False
)

AUTH_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": ErrorBody, "description": "The API key is missing or not known."},
    403: {"model": ErrorBody, "description": "The API key may not do this."},
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever sent a request.

    Attributes:
        name: The key's name; empty where nobody logs in.
        scopes: What the key may do.
        priority: The highest priority its requests may ask for.
        rate_limit: The key's own, which goes before ``KOALA_RATE_LIMIT``.
        max_queued: The key's own, which goes before ``KOALA_MAX_QUEUED_PER_KEY``.
    """

    name: str
    scopes: frozenset[Scope]
    priority: Priority
    rate_limit: str | None = None
    max_queued: int | None = None

    @property
    def owner(self) -> str:
        """Whose the jobs of this principal are."""
        return self.name

    @property
    def sees(self) -> str | None:
        """The owner whose jobs and images this principal sees; ``None``: everybody's."""
        return self.name if self.name and Scope.ADMIN not in self.scopes else None

    def may(self, scope: Scope) -> bool:
        """Whether this principal has a scope; ``admin`` has all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def priority_for(self, wanted: Priority | None) -> Priority:
        """The priority of a request that asks for ``wanted``, or for none.

        Raises:
            PermissionDenied: The key allows less.
        """
        allowed = PRIORITIES[PRIORITIES.index(self.priority) :]
        if wanted is None:
            return "normal" if "normal" in allowed else self.priority
        if wanted not in allowed:
            raise PermissionDenied(
                f"`priority` {wanted} is more than the API key {self.name!r} may ask for, which "
                f"is {self.priority}.",
                param="priority",
            )
        return wanted


ANONYMOUS: Final = Principal(name="", scopes=frozenset(Scope), priority=PRIORITIES[0])


def authenticate(gateway: Gateway, authorization: str | None) -> Principal:
    """Who sent a request with this ``Authorization`` header.

    Raises:
        Unauthorized: Keys are configured, and this is none of them.
    """
    if gateway.keyring is None:
        return ANONYMOUS
    if authorization is None:
        raise Unauthorized(
            "An API key is needed: send it as `Authorization: Bearer <key>`.", headers=_CHALLENGE
        )
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("The `Authorization` header must be `Bearer <key>`.", headers=_CHALLENGE)
    key = gateway.keyring.find(secret.strip())
    if key is None:
        raise Unauthorized("This API key is not known here.", headers=_CHALLENGE)
    return _principal(key)


class KeyedRoute(APIRoute):
    """A route that asks who calls before it reads the body or anything else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with the question in front."""
        handle = super().get_route_handler()

        async def ask_first(request: Request) -> Response:
            gateway: Gateway = request.app.state.gateway
            principal = self._identify(gateway, request.headers.get("authorization"))
            request.state.principal = principal
            if principal.name:
                structlog.contextvars.bind_contextvars(key=principal.name)
            return await handle(request)

        return ask_first

    def _identify(self, gateway: Gateway, authorization: str | None) -> Principal:
        return authenticate(gateway, authorization)


class ImageRoute(KeyedRoute):
    """The same for images, which pages show without sending a key."""

    def _identify(self, gateway: Gateway, authorization: str | None) -> Principal:
        if authorization is None and not gateway.settings.private_images:
            return ANONYMOUS
        return super()._identify(gateway, authorization)


class Requires:
    """Dependency of keyed routes: the principal, who must have ``scope``."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def __call__(
        self,
        request: Request,
        _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    ) -> Principal:
        """The principal.

        Raises:
            PermissionDenied: The key does not have the scope.
        """
        principal: Principal = request.state.principal
        if not principal.may(self._scope):
            raise PermissionDenied(
                f"The API key {principal.name!r} does not have the scope `{self._scope}`, which "
                "this needs."
            )
        return principal


GeneratorDep = Annotated[Principal, Depends(Requires(Scope.GENERATE))]
ReaderDep = Annotated[Principal, Depends(Requires(Scope.READ))]
AdminDep = Annotated[Principal, Depends(Requires(Scope.ADMIN))]


def _principal(key: ApiKey) -> Principal:
    return Principal(
        name=key.name,
        scopes=frozenset(key.scopes),
        priority=key.priority,
        rate_limit=key.rate_limit,
        max_queued=key.max_queued,
    )
