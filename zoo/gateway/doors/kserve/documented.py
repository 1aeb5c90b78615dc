"""The bodies of this protocol's requests, for the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIType, Operation, Schema

from zoo.gateway.documented import body, object_of

_ANY = Schema(type=OpenAPIType.OBJECT)
_TEXT = Schema(type=OpenAPIType.STRING)
_BYTES = Schema(type=OpenAPIType.INTEGER, minimum=0)
_SHAPE = Schema(type=OpenAPIType.ARRAY, items=_BYTES)
_TENSOR = object_of(
    ["name", "shape", "datatype"],
    name=_TEXT, shape=_SHAPE, datatype=_TEXT, parameters=_ANY, data=Schema(type=OpenAPIType.ARRAY, items=Schema()),
)  # fmt: skip


@dataclass
class DescribedInfer(Operation):
    """JSON, or JSON with binary tensors behind it."""

    def __post_init__(self) -> None:
        outputs = object_of(["name"], name=_TEXT, parameters=_ANY)
        self.request_body = body(
            object_of(
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
        self.request_body = body(object_of(ready=Schema(type=OpenAPIType.BOOLEAN)), required=False)


@dataclass
class DescribedParameters(Operation):
    def __post_init__(self) -> None:
        self.request_body = body(object_of(parameters=_ANY), required=False)


@dataclass
class DescribedRegister(Operation):
    def __post_init__(self) -> None:
        self.request_body = body(object_of(["key", "byte_size"], key=_TEXT, offset=_BYTES, byte_size=_BYTES))
