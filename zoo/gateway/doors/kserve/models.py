"""Metadata, readiness and statistics of the server and its models, and the repository: index, load, unload."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from litestar import Response, get, post

from zoo.client.aio import AsyncClient
from zoo.errors import InvalidInput, ModelDisabled, ModelUnavailable
from zoo.gateway.access import Rights
from zoo.gateway.documented import ERRORS, decoded
from zoo.gateway.doors.kserve import documented
from zoo.gateway.doors.kserve.state import VERSION, KServe, check_version
from zoo.gateway.gateway import Gateway, HttpRequest

MOST_BODY = 1 << 20
LOAD_S = 300.0  # the broker's own `load_timeout` ends it before
EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository",
    "model_repository(unload_dependents)", "schedule_policy", "statistics",
)  # fmt: skip
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [-1, -1, 3]}
ONE = ["/models/{model:str}%s", "/models/{model:str}/versions/{model_version:str}%s"]


class IndexRequest(msgspec.Struct):
    ready: bool = False


class RepositoryRequest(msgspec.Struct):
    parameters: dict[str, Any] = {}


def _paths(end: str) -> list[str]:
    return [path % end for path in ONE]


@get("/", responses=ERRORS)
async def server(request: HttpRequest, gateway: Gateway) -> dict[str, Any]:
    """The server's name, version and extensions."""
    gateway.admit(request, Rights.VIEWER)
    try:
        number = version("model-zoo")
    except PackageNotFoundError:
        number = "unknown"
    shared = ["system_shared_memory"] if gateway.config.gateway.shared_memory else []
    return {"name": "model-zoo", "version": number, "extensions": [*EXTENSIONS, *shared]}


async def _row(zoo: AsyncClient, model: str, model_version: str) -> dict[str, Any]:
    """What the broker says of a model. Raises ModelNotFound."""
    check_version(model, model_version)
    row: dict[str, Any] = (await zoo.models(model))[0]
    return row


async def _described(
    request: HttpRequest, gateway: Gateway, kserve: KServe, model: str, model_version: str
) -> dict[str, Any]:
    async with gateway.session(request, Rights.VIEWER) as zoo:
        row = await _row(zoo, model, model_version)
    outputs = kserve.outputs(row["name"], row["category"])
    return {"name": row["name"], "platform": row["adapter"] or "none", "inputs": [IMAGE], "outputs": outputs}


@get(_paths(""), responses=ERRORS)
async def metadata(
    request: HttpRequest, gateway: Gateway, kserve: KServe, model: str, model_version: str = ""
) -> dict[str, Any]:
    """Inputs and outputs of a model: as it last answered here; before that of its category, [] where that says none."""
    return {"versions": [VERSION], **await _described(request, gateway, kserve, model, model_version)}


@get(_paths("/config"), responses=ERRORS)
async def configuration(
    request: HttpRequest, gateway: Gateway, kserve: KServe, model: str, model_version: str = ""
) -> dict[str, Any]:
    """The same in the form of the model configuration extension."""
    found = await _described(request, gateway, kserve, model, model_version)
    kept = {"name": found["name"], "platform": found["platform"], "backend": "zoo", "max_batch_size": 0}
    return {**kept, "input": _typed(found["inputs"]), "output": _typed(found["outputs"])}


def _typed(described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = {"BYTES": "TYPE_STRING"}
    return [
        {"name": one["name"], "data_type": kinds.get(one["datatype"], f"TYPE_{one['datatype']}"), "dims": one["shape"]}
        for one in described
    ]


@get(_paths("/ready"), responses=ERRORS)
async def ready(request: HttpRequest, gateway: Gateway, model: str, model_version: str = "") -> Response[None]:
    """200: it can be served, loaded or not. 404, 503: it cannot, and the text says why."""
    async with gateway.session(request, Rights.VIEWER) as zoo:
        row = await _row(zoo, model, model_version)
    if not row["enabled"]:
        raise ModelDisabled(f"{model}: enabled = false in config.toml")
    if row["problem"]:
        raise ModelUnavailable(f"{model}: {row['problem']}")
    return Response(None, media_type="text/plain")


# ---------------------------------------------------------------- repository


@post("/repository/index", operation_class=documented.DescribedIndex, responses=ERRORS, status_code=200)
async def index(request: HttpRequest, gateway: Gateway) -> list[dict[str, Any]]:
    """All models: READY where loaded, else UNAVAILABLE with the reason."""
    async with gateway.session(request, Rights.VIEWER) as zoo:
        wanted: IndexRequest = decoded(IndexRequest, await gateway.body(request).rest(MOST_BODY))
        rows = await zoo.models()
    made = [
        {
            "name": row["name"],
            "version": VERSION,
            "state": "READY" if row["state"] == "loaded" else "UNAVAILABLE",
            "reason": "" if row["state"] == "loaded" else _reason(row),
        }
        for row in rows
    ]
    return [row for row in made if row["state"] == "READY" or not wanted.ready]


def _reason(row: dict[str, Any]) -> str:
    if not row["enabled"]:
        return "enabled = false in config.toml"
    return str(row["problem"] or f"{row['state']}; a request loads it")


@post(
    "/repository/models/{model:str}/load",
    operation_class=documented.DescribedParameters,
    responses=ERRORS,
    status_code=200,
)
async def load(request: HttpRequest, gateway: Gateway, model: str) -> dict[str, Any]:
    """Loads a model. It is not kept: from then on it may be evicted like any other."""
    async with gateway.session(request, Rights.CALLER) as zoo:
        wanted: RepositoryRequest = decoded(RepositoryRequest, await gateway.body(request).rest(MOST_BODY))
        for name in wanted.parameters:
            if name == "config" or name.startswith("file:"):
                raise InvalidInput(f"parameters: {name}: models are described in config.toml only")
        await gateway.answer(request, zoo.get_model(model, timeout=LOAD_S))
    return {}


@post(
    "/repository/models/{model:str}/unload",
    operation_class=documented.DescribedParameters,
    responses=ERRORS,
    status_code=200,
)
async def unload(request: HttpRequest, gateway: Gateway, model: str) -> dict[str, Any]:
    """Unloads a model; answers when its memory is back. One that is not loaded is fine."""
    async with gateway.session(request, Rights.OPERATOR) as zoo:
        decoded(RepositoryRequest, await gateway.body(request).rest(MOST_BODY))
        await gateway.answer(request, zoo.unload(model))
    return {}


# ---------------------------------------------------------------- statistics


@get("/models/stats", responses=ERRORS)
async def all_statistics(request: HttpRequest, gateway: Gateway, kserve: KServe) -> dict[str, Any]:
    """What this door has answered since it started, for every model."""
    async with gateway.session(request, Rights.VIEWER) as zoo:
        names = [row["name"] for row in await zoo.models()]
    return {"model_stats": [kserve.statistics.of(name).to_dict(name) for name in names]}


@get(_paths("/stats"), responses=ERRORS)
async def statistics(
    request: HttpRequest, gateway: Gateway, kserve: KServe, model: str, model_version: str = ""
) -> dict[str, Any]:
    """What this door has answered since it started, for one model."""
    async with gateway.session(request, Rights.VIEWER) as zoo:
        await _row(zoo, model, model_version)
    return {"model_stats": [kserve.statistics.of(model).to_dict(model)]}


ROUTES = (server, metadata, configuration, ready, index, load, unload, all_statistics, statistics)
