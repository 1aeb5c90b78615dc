"""What the OpenAPI document says of every door beyond its handlers' signatures: errors, and bodies read by hand.

Such a body is described by a subclass of `Operation` (see `zoo/gateway/doors/kserve/documented.py`).
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Reference, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat

from zoo.errors import InvalidInput


class ErrorBody(msgspec.Struct):
    """An error."""

    error: str
    code: str = ""
    retryable: bool = False
    request: int = 0


ERRORS = {
    status: ResponseSpec(ErrorBody, generate_examples=False, description=what)
    for status, what in (
        (400, "The request is wrong; the text names the field."),
        (401, "A token is needed, or this one is not known."),
        (403, "The caller may not do this, or the request comes from a page elsewhere."),
        (404, "There is no such model, version or path."),
        (405, "There is no such method here."),
        (408, "The body did not arrive in time."),
        (409, "The model is in use."),
        (413, "The body is too large."),
        (429, "Too much at once; see Retry-After."),
        (500, "The model failed."),
        (503, "It cannot be served now; the text says why."),
        (504, "The request's time was up."),
        (507, "There is not enough memory."),
    )
}


def body(schema: Schema, required: bool = True, binary: bool = False) -> RequestBody:
    content = {"application/json": OpenAPIMediaType(schema=schema)}
    if binary:
        content["application/octet-stream"] = OpenAPIMediaType(
            schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
        )
    return RequestBody(content=content, required=required)


def object_of(required: list[str] | None = None, **properties: Schema | Reference) -> Schema:
    return Schema(type=OpenAPIType.OBJECT, properties=properties, required=required)


def decoded(kind: type[Any], raw: bytes) -> Any:
    """A small JSON body; an empty one is `{}`. Raises InvalidInput."""
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise InvalidInput(f"body: {e!s:.300}") from None
