"""The routes that look at a picture."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import post

from zoo import results
from zoo.errors import InvalidInput
from zoo.gateway.access import Rights
from zoo.gateway.doors.deepstack import answers, roles
from zoo.gateway.doors.deepstack.answers import Prediction
from zoo.gateway.doors.deepstack.documented import ERRORS, DescribedForm, DescribedPicture
from zoo.gateway.doors.deepstack.receiving import PictureAsked, asked, fields
from zoo.gateway.doors.deepstack.roles import Provider
from zoo.gateway.gateway import Gateway, HttpRequest
from zoo.wire.boxes import part_of

Answer = dict[str, Any]


@post("/vision/detection", operation_class=DescribedPicture, responses=ERRORS, status_code=200)
async def detection(request: HttpRequest, gateway: Gateway, provider: Provider) -> Answer:
    """Objects, by the model that says `deepstack = "detection"`."""
    model = roles.model_of(gateway.config, "detection").name
    return await _objects(request, gateway, provider, "detect", model, gateway.config.gateway.deepstack_labels)


@post("/vision/custom/{model:str}", operation_class=DescribedPicture, responses=ERRORS, status_code=200)
async def custom(request: HttpRequest, gateway: Gateway, provider: Provider, model: str) -> Answer:
    """Objects, by any model that answers boxes."""
    return await _objects(request, gateway, provider, "custom", model, gateway.config.gateway.deepstack_labels)


@post("/vision/face", operation_class=DescribedPicture, responses=ERRORS, status_code=200)
async def face(request: HttpRequest, gateway: Gateway, provider: Provider) -> Answer:
    """Faces, each with the label `face`, by the model that says `deepstack = "face"`."""
    model = roles.model_of(gateway.config, "face").name
    return await _objects(request, gateway, provider, "detect", model, (), label="face")


async def _objects(
    request: HttpRequest,
    gateway: Gateway,
    provider: Provider,
    command: str,
    model: str,
    labels: Any,
    **more: Any,
) -> Answer:
    async with asked(request, gateway) as ask:
        found = answers.chosen(await _found(gateway, ask, model), ask.least, labels)
        made = [answers.prediction(one, **more) for one in found]
        return await _enveloped(gateway, provider, ask, command, model, made)


async def _found(gateway: Gateway, ask: PictureAsked, model: str) -> list[Any]:
    config = next((one for one in gateway.config.models if one.name == model), None)
    return answers.objects(model, await ask.infer(model, **roles.least_asked(config, ask.least)))


async def _enveloped(
    gateway: Gateway, provider: Provider, ask: PictureAsked, command: str, model: str, made: list[Prediction]
) -> Answer:
    return answers.envelope(
        command,
        model=model,
        provider=await provider.name(gateway),
        infer_s=ask.infer_s,
        all_s=ask.all_s,
        message=answers.summed_up(made),
        count=len(made),
        predictions=made,
    )


@post("/vision/scene", operation_class=DescribedPicture, responses=ERRORS, status_code=200)
async def scene(request: HttpRequest, gateway: Gateway, provider: Provider) -> Answer:
    """What the whole picture shows, by the model that says `deepstack = "scene"`."""
    model = roles.model_of(gateway.config, "scene").name
    async with asked(request, gateway) as ask:
        answer = await ask.infer(model)
        if not isinstance(answer, results.Classification | results.Action) or not answer.labels:
            raise InvalidInput(f"{model} answers no label of the whole picture, and this route has nothing else to say")
        return answers.envelope(
            "recognize",
            model=model,
            provider=await provider.name(gateway),
            infer_s=ask.infer_s,
            all_s=ask.all_s,
            message=answer.labels[0],
            label=answer.labels[0],
            confidence=round(float(answer.scores[0]), answers.DIGITS),
        )


@post(["/vision/alpr", "/image/alpr"], operation_class=DescribedPicture, responses=ERRORS, status_code=200)
async def alpr(request: HttpRequest, gateway: Gateway, provider: Provider) -> Answer:
    """Plates, found by the model that says `deepstack = "alpr"` and read by the one after it in the enrichment table.

    A confidence is the lower one of finding and reading. Plates on which nothing was read are left out.
    """
    detector = roles.model_of(gateway.config, "alpr").name
    rule, reader = roles.reading_rule(gateway.config, detector)
    async with asked(request, gateway) as ask:
        plates = answers.chosen(await _found(gateway, ask, detector), ask.least)
        plates = [one for one in plates if one.box[2] > one.box[0] and one.box[3] > one.box[1]]
        boxes = [part_of(one.box, rule.upper, rule.grow) for one in plates]
        texts = await ask.infer(reader, boxes=boxes, **rule.options) if boxes else []
        if not all(isinstance(text, results.OcrText) for text in texts):
            raise InvalidInput(f"{reader} answers no text, which is what [[enrich.rules]] has it for")
        read = [
            msgspec.structs.replace(plate, label=text.text, score=min(plate.score, text.score))
            for plate, text in zip(plates, texts, strict=True)
            if text.text
        ]
        made = [
            answers.prediction(one, label=f"Plate: {one.label}", plate=one.label)
            for one in answers.chosen(read, ask.least)
        ]
        return await _enveloped(gateway, provider, ask, "alpr", detector, made)


@post("/vision/custom/list", operation_class=DescribedForm, responses=ERRORS, status_code=200)
async def custom_list(request: HttpRequest, gateway: Gateway, provider: Provider) -> Answer:
    """The names of all models that have no route of their own and can be served."""
    key = (await fields(request, gateway)).get("api_key")
    async with gateway.session(request, Rights.VIEWER, key) as zoo:
        rows = await gateway.answer(request, zoo.models())
    taken = {model.name for model in gateway.config.models if model.deepstack}
    names = [row["name"] for row in rows if row["enabled"] and not row["problem"] and row["name"] not in taken]
    name = await provider.name(gateway)
    return answers.envelope("list-custom", provider=name, models=names, statusData={})


ROUTES = (detection, custom, custom_list, face, scene, alpr)
