"""The forms of this protocol's requests, and the few statuses beside 200, for the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat

from zoo.gateway import documented

ERRORS = {status: documented.ERRORS[status] for status in (403, 404, 405)}  # all others are 200 with success: false
_TEXT = Schema(type=OpenAPIType.STRING)
_FILE = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)


def _form(schema: Schema, required: bool) -> RequestBody:
    return RequestBody(content={"multipart/form-data": OpenAPIMediaType(schema=schema)}, required=required)


@dataclass
class DescribedPicture(Operation):
    """A picture, with the token and the least confidence."""

    def __post_init__(self) -> None:
        self.request_body = _form(
            documented.object_of(["image"], image=_FILE, min_confidence=_TEXT, api_key=_TEXT), required=True
        )


@dataclass
class DescribedForm(Operation):
    """The token, or nothing."""

    def __post_init__(self) -> None:
        self.request_body = _form(documented.object_of(api_key=_TEXT), required=False)


@dataclass
class DescribedFace(Operation):
    """What these routes take elsewhere."""

    def __post_init__(self) -> None:
        self.request_body = _form(
            documented.object_of(image=_FILE, userid=_TEXT, min_confidence=_TEXT, api_key=_TEXT), required=False
        )
