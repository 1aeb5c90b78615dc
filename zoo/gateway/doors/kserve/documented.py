"""What the OpenAPI document says of this door beyond its handlers' signatures: bodies that are read by hand, errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Reference, RequestBody, Schema
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
        (408, "The body did not arrive in time."),
        (409, "The model is in use."),
        (413, "The body is too large."),
        (429, "Too much at once; see Retry-After."),
        (500, "The model failed."),
        (501, "This server does not offer this call."),
        (503, "It cannot be served now; the text says why."),
        (504, "The request's time was up."),
        (507, "There is not enough memory."),
    )
}


def _body(schema: Schema, required: bool = True, binary: bool = False) -> RequestBody:
    content = {"application/json": OpenAPIMediaType(schema=schema)}
    if binary:
        content["application/octet-stream"] = OpenAPIMediaType(
            schema=Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
        )
    return RequestBody(content=content, required=required)


def _object(required: list[str] | None = None, **properties: Schema | Reference) -> Schema:
    return Schema(type=OpenAPIType.OBJECT, properties=properties, required=required)


_ANY = Schema(type=OpenAPIType.OBJECT)
_TEXT = Schema(type=OpenAPIType.STRING)
_BYTES = Schema(type=OpenAPIType.INTEGER, minimum=0)
_SHAPE = Schema(type=OpenAPIType.ARRAY, items=_BYTES)
_TENSOR = _object(
    ["name", "shape", "datatype"],
    name=_TEXT, shape=_SHAPE, datatype=_TEXT, parameters=_ANY, data=Schema(type=OpenAPIType.ARRAY, items=Schema()),
)  # fmt: skip


@dataclass
class DescribedInfer(Operation):
    """JSON, or JSON with binary tensors behind it."""

    def __post_init__(self) -> None:
        outputs = _object(["name"], name=_TEXT, parameters=_ANY)
        self.request_body = _body(
            _object(
                ["inputs"],
                id=_TEXT,
                parameters=_ANY,
                inputs=Schema(type=OpenAPIType.ARRAY, items=_TENSOR, min_items=1),
                outputs=Schema(type=OpenAPIType.ARRAY, items=outputs),
            ),
            binary=True,
        )


@dataclass
class DescribedIndex(Operation):
    def __post_init__(self) -> None:
        self.request_body = _body(_object(ready=Schema(type=OpenAPIType.BOOLEAN)), required=False)


@dataclass
class DescribedParameters(Operation):
    def __post_init__(self) -> None:
        self.request_body = _body(_object(parameters=_ANY), required=False)


@dataclass
class DescribedRegister(Operation):
    def __post_init__(self) -> None:
        self.request_body = _body(_object(["key", "byte_size"], key=_TEXT, offset=_BYTES, byte_size=_BYTES))


def decoded(kind: type[Any], raw: bytes) -> Any:
    """A small JSON body; an empty one is `{}`. Raises InvalidInput."""
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise InvalidInput(f"body: {e!s:.300}") from None
