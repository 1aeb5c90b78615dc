"""The inference call."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from litestar import Response, post
from litestar.params import Parameter

from zoo.client.aio import AsyncClient
from zoo.errors import InvalidInput, ModelNotFound
from zoo.gateway.access import KnownCaller, Rights
from zoo.gateway.documented import ERRORS
from zoo.gateway.doors.kserve import documented, results
from zoo.gateway.doors.kserve.reading import InferHead, Inputs, OutputWanted, check_parameters, read_head
from zoo.gateway.doors.kserve.state import VERSION, KServe, check_version
from zoo.gateway.doors.kserve.tensors import OutputTensor
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.gateway.incoming import WINDOW_BITS
from zoo.results import PlainResult, TypedResult
from zoo.timings import UNKNOWN

HEAD_LENGTH = "Inference-Header-Content-Length"
LARGE = 1 << 16  # numbers, or bytes, from which on work on them is done in a thread


@post(
    ["/models/{model:str}/infer", "/models/{model:str}/versions/{version:str}/infer"],
    operation_class=documented.DescribedInfer,
    responses=ERRORS,
    status_code=200,
)
async def infer(
    request: HttpRequest,
    gateway: Gateway,
    kserve: KServe,
    model: str,
    version: str = "",
    head_length: Annotated[str | None, Parameter(header=HEAD_LENGTH, required=False)] = None,
) -> Response[bytes]:
    """One answer of a model, which is loaded if need be. See `docs/gateway.md` for its tensors."""
    began = time.monotonic_ns()
    caller = gateway.admit(request, Rights.CALLER)
    check_version(model, version)
    try:
        async with gateway.sessions.of(caller.name) as zoo:
            answer = await _answer(request, gateway, kserve, zoo, caller, model, head_length, began)
    except ModelNotFound:
        raise
    except BaseException:
        kserve.statistics.failed(model, time.monotonic_ns() - began)
        raise
    return answer


async def _answer(
    request: HttpRequest,
    gateway: Gateway,
    kserve: KServe,
    zoo: AsyncClient,
    caller: KnownCaller,
    model: str,
    head_length: str | None,
    began: int,
) -> Response[bytes]:
    body = gateway.body(request)
    head = await read_head(body, head_length)
    how = check_parameters(head.parameters)
    inputs = Inputs(zoo, body, lambda name: kserve.regions.get(caller.name, name))
    try:
        await inputs.read(head)
        if inputs.color is not None:
            how["color"] = inputs.color
        read = time.monotonic_ns()
        result = await gateway.answer(request, zoo.infer(model, inputs.frame, boxes=inputs.boxes, **how))
    finally:
        inputs.close()
    answered = time.monotonic_ns()
    made = results.tensors(result)
    kserve.answered(model, result)
    outputs = _chosen(head, made, result)
    came = _came(result)
    if sum(len(one.values) if isinstance(one.values, list) else one.values.size for one, _ in outputs) > LARGE:
        encoded = await asyncio.to_thread(_encoded, model, head, outputs, kserve, caller, came)
    else:
        encoded = _encoded(model, head, outputs, kserve, caller, came)
    response = await _response(*encoded, request.headers)
    items = len(result) if isinstance(result, list) else 1
    spent = came.timings if came is not None else UNKNOWN
    kserve.statistics.succeeded(model, time.monotonic_ns() - began, read - began, answered - read, items, spent)
    return response


def _came(result: Any) -> TypedResult | PlainResult | None:
    """An answer that knows where its time went; of several for boxes, which were one request, the first."""
    first = result[0] if isinstance(result, list) and result else result
    return first if isinstance(first, TypedResult | PlainResult) else None


# ---------------------------------------------------------------- outputs


def _chosen(head: InferHead, made: list[OutputTensor], result: Any) -> list[tuple[OutputTensor, OutputWanted]]:
    """Those that were asked for, or all of them. Raises InvalidInput: there is none of that name."""
    if not head.outputs:
        binary = head.parameters.get("binary_data_output", False)
        return [(one, OutputWanted(one.name, {"binary_data": binary})) for one in made]
    by_name = {one.name: one for one in made}
    chosen = []
    for wanted in head.outputs:
        found = by_name.get(wanted.name)
        if found is None:
            raise InvalidInput(f"outputs: there is no {wanted.name!r:.100}; this answer has {', '.join(by_name)}")
        count = wanted.parameters.get("classification", 0)
        if type(count) is not int or count < 0:
            raise InvalidInput(f"outputs: {wanted.name}: classification: {count!r:.40} is not a number of classes")
        if count:
            found = found.best(count, getattr(result, "labels", []))
        chosen.append((found, wanted))
    return chosen


def _encoded(
    model: str,
    head: InferHead,
    outputs: list[tuple[OutputTensor, OutputWanted]],
    kserve: KServe,
    caller: KnownCaller,
    came: TypedResult | PlainResult | None,
) -> tuple[bytes, list[bytes | memoryview]]:
    """The JSON of an answer, and the binary tensors that follow it."""
    described: list[dict[str, Any]] = []
    follow: list[bytes | memoryview] = []
    for tensor, wanted in outputs:
        row: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        region = wanted.parameters.get("shared_memory_region")
        if region is not None:
            row["parameters"] = _shared(tensor, wanted, kserve, caller, str(region))
        elif wanted.parameters.get("binary_data", head.parameters.get("binary_data_output", False)):
            follow.append(tensor.binary())
            row["parameters"] = {"binary_data_size": len(follow[-1])}
        else:
            row["data"] = tensor.listed()
        described.append(row)
    answer: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": described}
    if came is not None:
        times = {f"{name}_seconds": came.timings[name] for name in came.timings}
        answer["parameters"] = {"request": came.request, **times}
    if head.id:
        answer["id"] = head.id
    return msgspec.json.encode(answer), follow


def _shared(
    tensor: OutputTensor, wanted: OutputWanted, kserve: KServe, caller: KnownCaller, name: str
) -> dict[str, Any]:
    """Writes an output to its region."""
    numbers = [wanted.parameters.get(key, 0) for key in ("shared_memory_offset", "shared_memory_byte_size")]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise InvalidInput(f"outputs: {wanted.name}: offset and size in shared memory are numbers of bytes")
    offset, size = numbers
    window = kserve.regions.get(caller.name, name).window(wanted.name, offset, size)
    data = tensor.binary()
    window.write(data)
    return {"shared_memory_region": name, "shared_memory_offset": offset, "shared_memory_byte_size": len(data)}


async def _response(head: bytes, follow: list[bytes | memoryview], headers: Mapping[str, str]) -> Response[bytes]:
    given = {HEAD_LENGTH: str(len(head))} if follow else {}
    body = b"".join([head, *follow]) if follow else head
    # Only where nothing else is taken: usual clients of HTTP name gzip by themselves, and it costs more than it brings.
    encoding = headers.get("accept-encoding", "").strip().lower()
    if encoding in WINDOW_BITS:
        given["Content-Encoding"] = encoding
        body = await asyncio.to_thread(_compressed, body, WINDOW_BITS[encoding])
    kind = "application/octet-stream" if follow else "application/json"
    return Response(body, media_type=kind, headers=given)


def _compressed(data: bytes, window: int) -> bytes:
    packer = zlib.compressobj(1, wbits=window)
    return packer.compress(data) + packer.flush()


ROUTES = (infer,)
