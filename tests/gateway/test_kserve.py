"""KServe v2 by the real `tritonclient`: every call of it, over a real broker."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from PIL import Image
from tritonclient.utils import InferenceServerException, shared_memory

from tests.gateway.serving import RunningGateway, served_alone
from tests.support import toy

FRAME = np.full((24, 32, 3), 3, np.uint8)  # of which tests.gateway.adapter makes three objects
EVERY = {"name": "every", "adapter": "tests.gateway.adapter:Every", "vram_mb": 10, "category": "detection"}


def jpeg(frame: np.ndarray = FRAME) -> bytes:
    made = io.BytesIO()
    Image.fromarray(frame).save(made, "PNG")
    return made.getvalue()


@pytest.fixture(scope="module")
def served() -> Iterator[RunningGateway]:
    models = [
        toy(),
        EVERY,
        {**EVERY, "name": "free", "category": ""},
        toy("off", enabled=False),
        toy("broken", options={"load": "raise"}),
    ]
    with served_alone(models, shared_memory=True) as gateway:
        yield gateway


@pytest.fixture
def client(served: RunningGateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.address, concurrency=4) as made:
        yield made


def image(value: np.ndarray, *, binary: bool = True, name: str = "image") -> triton.InferInput:
    if value.dtype == object:
        made = triton.InferInput(name, list(value.shape), "BYTES")
    else:
        made = triton.InferInput(name, list(value.shape), triton.np_to_triton_dtype(value.dtype))
    return made.set_data_from_numpy(value, binary_data=binary)


def encoded(*frames: np.ndarray) -> np.ndarray:
    made = np.empty(len(frames), object)
    made[:] = [jpeg(frame) for frame in frames]
    return made


def refused(text: str | None = None) -> Any:
    return pytest.raises(InferenceServerException, match=text)


# ---------------------------------------------------------------- the server and its models


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    found = client.get_server_metadata()
    assert found["name"] == "model-zoo"
    assert {"binary_tensor_data", "model_repository", "system_shared_memory"} <= {*found["extensions"]}
    found = client.get_model_metadata("every")
    assert found["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, 3]}]
    assert {one["name"]: (one["datatype"], one["shape"]) for one in found["outputs"]} == {
        "stand_in": ("BOOL", [1]), "boxes": ("FP32", [-1, 4]), "scores": ("FP32", [-1]), "class_ids": ("INT32", [-1]),
        "labels": ("BYTES", [-1]), "masks": ("BOOL", [-1, -1, -1]), "origin": ("INT64", [2]),
    }  # fmt: skip
    assert client.get_model_metadata("every", "1") == found
    described = client.get_model_config("every")
    assert described["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}]
    assert {"name": "labels", "data_type": "TYPE_STRING", "dims": [-1]} in described["output"]


def test_outputs_of_a_model_without_a_category_are_known_from_its_answers(client: triton.InferenceServerClient) -> None:
    assert client.get_model_metadata("free")["outputs"] == []
    for boxes in ([], [image(np.array([[0, 0, 9, 9]], np.float32), name="boxes")]):
        client.infer("free", [image(FRAME), *boxes], parameters={"kind": "plain"})
        told = {one["name"]: (one["datatype"], one["shape"]) for one in client.get_model_metadata("free")["outputs"]}
        assert told == {
            "mean": ("FP64", [1]), "frames": ("INT64", [1]), "shape": ("INT64", [-1]), "name": ("BYTES", [1]),
            "sure": ("BOOL", [1]), "half": ("FP16", [-1]), "nested": ("BYTES", [1]), "words": ("BYTES", [-1]),
            "big": ("UINT64", [1]),
        }  # fmt: skip
    assert {"name": "half", "data_type": "TYPE_FP16", "dims": [-1]} in client.get_model_config("free")["output"]
    client.infer("free", [image(FRAME)], parameters={"kind": "embedding"})
    assert {"name": "vector", "datatype": "FP32", "shape": [-1]} in client.get_model_metadata("free")["outputs"]


def test_a_model_is_ready_when_it_can_be_served(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "1")
    assert not client.is_model_ready("toy", "2")
    assert not client.is_model_ready("off")
    assert not client.is_model_ready("unknown")
    with refused("no model"):
        client.get_model_metadata("unknown")
    with refused("there is no version '7'"):
        client.get_model_metadata("toy", "7")


def test_the_repository_shows_what_is_loaded(client: triton.InferenceServerClient) -> None:
    client.load_model("toy")
    rows = {row["name"]: row for row in client.get_model_repository_index()}
    assert rows["toy"]["state"] == "READY"
    assert rows["off"] == {
        "name": "off",
        "version": "1",
        "state": "UNAVAILABLE",
        "reason": "enabled = false in config.toml",
    }
    client.unload_model("toy")
    rows = {row["name"]: row for row in client.get_model_repository_index()}
    assert (rows["toy"]["state"], rows["toy"]["reason"]) == ("UNAVAILABLE", "unloaded; a request loads it")
    client.unload_model("toy", unload_dependents=True)
    with refused("made of cheese"):
        client.load_model("broken")
    with refused("config.toml only"):
        client.load_model("toy", config="{}")
    with refused("no model"):
        client.unload_model("unknown")


def test_the_ready_ones_alone(served: RunningGateway, client: triton.InferenceServerClient) -> None:
    client.load_model("every")
    client.unload_model("toy")
    names = [row["name"] for row in served.ask("POST", "/v2/repository/index", {"ready": True}).json]
    assert "every" in names
    assert "toy" not in names


def test_statistics_count_what_was_answered(client: triton.InferenceServerClient) -> None:
    def counted() -> tuple[int, int]:
        (found,) = client.get_inference_statistics("toy")["model_stats"]
        return found["inference_stats"]["success"]["count"], found["inference_stats"]["fail"]["count"]

    good, bad = counted()
    client.infer("toy", [image(FRAME)])
    with refused("not to my taste"):
        client.infer("toy", [image(FRAME)], parameters={"do": "refuse"})
    assert counted() == (good + 1, bad + 1)
    (found,) = client.get_inference_statistics("toy", "1")["model_stats"]
    assert found["last_inference"] > 1e12
    assert found["inference_stats"]["compute_infer"]["ns"] > 0
    assert found["inference_stats"]["queue"]["count"] == good + 1
    names = {row["name"] for row in client.get_inference_statistics()["model_stats"]}
    assert names == {"toy", "every", "free", "off", "broken"}


def test_calls_that_are_not_offered_say_so(client: triton.InferenceServerClient) -> None:
    calls = (
        client.get_trace_settings, lambda: client.get_trace_settings("toy"), client.get_log_settings,
        lambda: client.update_trace_settings("toy", {"trace_level": ["OFF"]}),
        lambda: client.update_log_settings({"log_info": True}), client.get_cuda_shared_memory_status,
        lambda: client.register_cuda_shared_memory("r", b"handle", 0, 64),
        lambda: client.unregister_cuda_shared_memory("r"), client.unregister_cuda_shared_memory,
    )  # fmt: skip
    for call in calls:
        with refused("not offered") as error:
            call()
        assert error.value.status() == "400"


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("binary", [True, False])
def test_an_image_as_numbers(client: triton.InferenceServerClient, binary: bool) -> None:
    answer = client.infer("toy", [image(FRAME, binary=binary)], request_id="42")
    assert answer.get_response()["id"] == "42"
    assert answer.as_numpy("shape").tolist() == [24, 32, 3]
    assert answer.as_numpy("dtype").tolist() == [b"uint8"]
    assert answer.as_numpy("mean").tolist() == [3.0]


def test_an_encoded_image_and_several(client: triton.InferenceServerClient) -> None:
    answer = client.infer("toy", [image(encoded(FRAME))])
    assert (answer.as_numpy("shape").tolist(), answer.as_numpy("mean").tolist()) == ([24, 32, 3], [3.0])
    answer = client.infer("every", [image(encoded(FRAME, FRAME))], parameters={"kind": "plain"})
    assert answer.as_numpy("frames").tolist() == [2]


def test_a_stack_of_images_is_a_video(client: triton.InferenceServerClient) -> None:
    for binary in (True, False):
        answer = client.infer("every", [image(np.stack([FRAME] * 5), binary=binary)], parameters={"kind": "plain"})
        assert answer.as_numpy("frames").tolist() == [5]
        assert answer.as_numpy("shape").tolist() == [24, 32, 3]


@pytest.mark.parametrize("dtype", ["b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_arrays_of_every_datatype_arrive_as_they_are(client: triton.InferenceServerClient, dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    answer = client.infer("toy", [image(array)], parameters={"do": "echo"})
    assert answer.as_numpy("array").tolist() == array.tolist()
    assert answer.as_numpy("array").dtype == array.dtype
    if dtype != "f2":  # JSON has no half numbers in this client
        answer = client.infer("toy", [image(array, binary=False)], parameters={"do": "echo"})
        assert answer.as_numpy("array").tolist() == array.tolist()


def test_parameters_are_options_and_say_how_to_read_the_frame(client: triton.InferenceServerClient) -> None:
    bgr = np.zeros((4, 4, 3), np.uint8)
    bgr[..., 0] = 9
    answer = client.infer("toy", [image(bgr)], parameters={"color": "bgr"})
    assert answer.as_numpy("first").tolist() == [0, 0, 9]
    nv12 = np.full((36, 32), 128, np.uint8)
    answer = client.infer("toy", [image(nv12)], parameters={"color": "nv12"})
    assert answer.as_numpy("shape").tolist() == [24, 32, 3]
    with refused("color: 'sepia' is not one of"):
        client.infer("toy", [image(bgr)], parameters={"color": "sepia"})


def test_time_is_limited_by_the_request(client: triton.InferenceServerClient) -> None:
    with refused() as error:
        client.infer("toy", [image(FRAME)], timeout=200_000, parameters={"do": "sleep", "seconds": 1})
    assert error.value.status() == "504"
    for priority in (1, 2, 4, 9):
        client.infer("toy", [image(FRAME)], priority=priority, timeout=20_000_000)
    with refused("sequence_id"):
        client.infer("toy", [image(FRAME)], sequence_id=3, sequence_start=True)


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_bodies_may_be_packed(client: triton.InferenceServerClient, how: str) -> None:
    answer = client.infer(
        "toy", [image(FRAME)], parameters={"do": "echo"},
        request_compression_algorithm=how, response_compression_algorithm=how,
    )  # fmt: skip
    assert (answer.as_numpy("array") == FRAME).all()


# ---------------------------------------------------------------- outputs

SHAPES: dict[str, dict[str, tuple[str, list[int]]]] = {
    "detections": {"boxes": ("FP32", [3, 4]), "scores": ("FP32", [3]), "class_ids": ("INT32", [3]),
                   "labels": ("BYTES", [3]), "origin": ("INT64", [2]), "stand_in": ("BOOL", [1])},
    "masks": {"masks": ("BOOL", [3, 24, 32])},
    "keypoints": {"points": ("FP32", [3, 2, 2]), "scores": ("FP32", [3, 2]), "names": ("BYTES", [2])},
    "classification": {"labels": ("BYTES", [2]), "scores": ("FP32", [2]), "multi_label": ("BOOL", [1])},
    "embedding": {"vector": ("FP32", [3])},
    "depth": {"depth": ("FP32", [24, 32]), "origin": ("INT64", [2])},
    "segmentation": {"mask": ("UINT8", [24, 32]), "labels": ("BYTES", [1]), "coverage": ("BYTES", [1])},
    "ocr": {"text": ("BYTES", [1]), "lines": ("BYTES", [2]), "scores": ("FP32", [2]), "score": ("FP64", [1])},
    "quality": {"score": ("FP64", [1]), "verdict": ("BYTES", [1])},
    "action": {"labels": ("BYTES", [2]), "scores": ("FP32", [2])},
    "plain": {"mean": ("FP64", [1]), "frames": ("INT64", [1]), "shape": ("INT64", [3]), "name": ("BYTES", [1]),
              "sure": ("BOOL", [1]), "half": ("FP16", [2]), "nested": ("BYTES", [1]), "words": ("BYTES", [2]),
              "big": ("UINT64", [1])},
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_every_result_has_its_tensors_in_both_forms(client: triton.InferenceServerClient, kind: str) -> None:
    answer = client.infer("every", [image(FRAME)], parameters={"kind": kind})
    found = {one["name"]: (one["datatype"], one["shape"]) for one in answer.get_response()["outputs"]}
    assert SHAPES[kind].items() <= found.items()
    told = {one["name"]: (one["datatype"], one["shape"]) for one in client.get_model_metadata("every")["outputs"]}
    for name, (datatype, shape) in found.items():
        assert told[name][0] == datatype
        assert [side for side, real in zip(told[name][1], shape, strict=True) if side not in (-1, real)] == []
    names = [*SHAPES[kind]]
    asked = [triton.InferRequestedOutput(name, binary_data=False) for name in names]
    listed = client.infer("every", [image(FRAME)], parameters={"kind": kind}, outputs=asked)
    assert [one["name"] for one in listed.get_response()["outputs"]] == names
    for name in names:
        as_text = [text.encode() if isinstance(text, str) else text for text in listed.as_numpy(name).reshape(-1)]
        assert as_text == answer.as_numpy(name).reshape(-1).tolist()
        assert list(answer.as_numpy(name).shape) == SHAPES[kind][name][1]


def test_values_are_those_of_the_result(client: triton.InferenceServerClient) -> None:
    answer = client.infer("every", [image(FRAME)])
    assert answer.as_numpy("boxes").tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert answer.as_numpy("labels").tolist() == [b"cat", b"dog", b"cat"]
    answer = client.infer("every", [image(FRAME)], parameters={"kind": "plain"})
    assert answer.as_numpy("words").tolist() == [b"a", "ö".encode()]
    assert answer.as_numpy("nested").tolist() == [b'{"a":[1,2]}']
    nothing = client.infer("every", [image(np.zeros((8, 8, 3), np.uint8))])
    assert nothing.as_numpy("boxes").shape == (0, 4)
    assert nothing.as_numpy("labels").shape == (0,)


def test_boxes_give_ragged_outputs_with_counts(client: triton.InferenceServerClient) -> None:
    frame = np.zeros((20, 40, 3), np.uint8)
    frame[:, 10:20], frame[:, 20:30] = 2, 4
    boxes = [[0, 0, 10, 20], [10, 0, 20, 20], [20, 0, 30, 18]]  # of nothing, two and four objects
    tensor = image(np.array(boxes, np.float32), name="boxes")
    answer = client.infer("every", [image(frame), tensor])
    assert answer.as_numpy("counts").tolist() == [0, 2, 4]
    assert answer.as_numpy("boxes").shape == (6, 4)
    assert answer.as_numpy("boxes")[0].tolist() == [10, 1, 12, 3]  # moved into the frame
    assert answer.as_numpy("labels").tolist() == [b"cat", b"dog", b"cat", b"dog", b"cat", b"dog"]
    assert answer.as_numpy("origin").tolist() == [[0, 0], [10, 0], [20, 0]]
    again = client.infer("every", [image(frame)], parameters={"boxes": boxes})
    assert again.as_numpy("counts").tolist() == [0, 2, 4]
    of_depth = client.infer("every", [image(frame), tensor], parameters={"kind": "depth"})
    assert of_depth.as_numpy("depth").shape == (20 * 10 * 2 + 18 * 10,)
    assert of_depth.as_numpy("depth.shapes").tolist() == [[20, 10], [20, 10], [18, 10]]
    vectors = client.infer("every", [image(frame), tensor], parameters={"kind": "embedding"})
    assert vectors.as_numpy("vector").shape == (3, 3)
    assert vectors.as_numpy("counts").tolist() == [1, 1, 1]
    none = client.infer("every", [image(frame), image(np.zeros((0, 4), np.float32), name="boxes")])
    assert none.as_numpy("counts").shape == (0,)


def test_the_highest_scores_as_classes(client: triton.InferenceServerClient) -> None:
    asked = [triton.InferRequestedOutput("scores", class_count=1)]
    answer = client.infer("every", [image(FRAME)], parameters={"kind": "classification"}, outputs=asked)
    assert answer.as_numpy("scores").tolist() == [b"0.750000:0:cat"]
    with refused("there is no 'masks'; this answer has"):
        client.infer("every", [image(FRAME)], outputs=[triton.InferRequestedOutput("masks")])
    with refused("complex64 is not a datatype"):
        client.infer("every", [image(FRAME)], parameters={"kind": "complex"})


def test_answers_say_where_their_time_went_and_their_number(
    served: RunningGateway, client: triton.InferenceServerClient
) -> None:
    boxes = image(np.array([[0, 0, 8, 8], [0, 0, 9, 9]], np.float32), name="boxes")
    for tensors in ([image(FRAME)], [image(FRAME), boxes]):
        answer = client.infer("every", tensors, parameters={"kind": "plain"}).get_response()
        said = answer["parameters"]
        assert said["request"] > 0
        spent = {name: said[f"{name}_seconds"] for name in ("queue", "load", "infer", "total")}
        assert 0 < spent["infer"] < spent["total"] < 30
        assert min(spent.values()) >= 0


# ---------------------------------------------------------------- asyncio


def test_the_client_for_asyncio(served: RunningGateway) -> None:
    async def scenario() -> None:
        async with triton_aio.InferenceServerClient(served.address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("toy")
            assert (await client.get_server_metadata())["name"] == "model-zoo"
            assert (await client.get_model_metadata("toy"))["versions"] == ["1"]
            assert (await client.get_model_config("toy"))["backend"] == "zoo"
            await client.load_model("toy")
            rows = {row["name"]: row["state"] for row in await client.get_model_repository_index()}
            assert rows["toy"] == "READY"
            several = [client.infer("toy", [aio_image(np.full((8, 8, 3), i, np.uint8))]) for i in range(8)]
            answers = await asyncio.gather(*several)
            assert [answer.as_numpy("mean").tolist() for answer in answers] == [[float(i)] for i in range(8)]
            answer = await client.infer(
                "toy", [aio_image(FRAME)],
                request_compression_algorithm="gzip", response_compression_algorithm="gzip",
            )  # fmt: skip
            assert answer.as_numpy("mean").tolist() == [3.0]
            assert (await client.get_inference_statistics("toy"))["model_stats"]
            with refused("no model"):
                await client.infer("unknown", [aio_image(FRAME)])
            await client.unload_model("toy")

    asyncio.run(scenario())


def aio_image(value: np.ndarray) -> triton_aio.InferInput:
    made = triton_aio.InferInput("image", list(value.shape), "UINT8")
    made.set_data_from_numpy(value)
    return made


def test_requests_in_the_background(client: triton.InferenceServerClient) -> None:
    waiting = [client.async_infer("toy", [image(np.full((8, 8, 3), i, np.uint8))]) for i in range(6)]
    assert [one.get_result().as_numpy("mean").tolist() for one in waiting] == [[float(i)] for i in range(6)]


# ---------------------------------------------------------------- shared memory


@pytest.fixture
def region() -> Iterator[tuple[Any, str]]:
    key = f"/zoo-t-{os.getpid()}"
    handle = shared_memory.create_shared_memory_region("frames", key, 1 << 16)
    yield handle, key
    shared_memory.destroy_shared_memory_region(handle)


def test_shared_memory_in_and_out(client: triton.InferenceServerClient, region: tuple[Any, str]) -> None:
    handle, key = region
    shared_memory.set_shared_memory_region(handle, [FRAME])
    client.register_system_shared_memory("frames", key, 1 << 16)
    assert client.get_system_shared_memory_status() == [
        {"name": "frames", "key": key, "offset": 0, "byte_size": 1 << 16}
    ]
    given = triton.InferInput("image", [*FRAME.shape], "UINT8")
    given.set_shared_memory("frames", FRAME.nbytes)
    wanted = triton.InferRequestedOutput("array")
    wanted.set_shared_memory("frames", FRAME.nbytes, offset=8192)
    answer = client.infer("toy", [given], outputs=[wanted], parameters={"do": "echo"})
    written = shared_memory.get_contents_as_numpy(handle, np.uint8, [*FRAME.shape], offset=8192)
    assert (written == FRAME).all()
    assert answer.get_output("array")["parameters"]["shared_memory_byte_size"] == FRAME.nbytes
    wanted.set_shared_memory("frames", FRAME.nbytes - 1, offset=8192)
    with refused("do not fit"):
        client.infer("toy", [given], outputs=[wanted], parameters={"do": "echo"})
    given.set_shared_memory("frames", FRAME.nbytes, offset=(1 << 16) - 100)
    with refused("are not in region frames"):
        client.infer("toy", [given])
    with refused("registered already"):
        client.register_system_shared_memory("frames", key, 64)
    client.unregister_system_shared_memory("frames")
    with refused("'frames' is not registered"):
        client.infer("toy", [given])
    client.register_system_shared_memory("frames", key, 64, offset=64)
    client.unregister_system_shared_memory()
    assert client.get_system_shared_memory_status() == []


def test_encoded_images_in_shared_memory(client: triton.InferenceServerClient, region: tuple[Any, str]) -> None:
    handle, key = region
    data = jpeg()
    element = np.frombuffer(len(data).to_bytes(4, "little") + data, np.uint8)
    shared_memory.set_shared_memory_region(handle, [element])
    client.register_system_shared_memory("frames", key, 1 << 16)
    given = triton.InferInput("image", [1], "BYTES")
    given.set_shared_memory("frames", element.nbytes)
    assert client.infer("toy", [given]).as_numpy("mean").tolist() == [3.0]
    client.unregister_system_shared_memory("frames")


def test_a_region_that_shrinks_costs_its_request_and_nothing_else(
    client: triton.InferenceServerClient, region: tuple[Any, str]
) -> None:
    _, key = region
    client.register_system_shared_memory("frames", key, 1 << 16)
    os.truncate(f"/dev/shm{key}", 100)
    given = triton.InferInput("image", [*FRAME.shape], "UINT8")
    given.set_shared_memory("frames", FRAME.nbytes)
    with refused("has become smaller"):
        client.infer("toy", [given])
    wanted = triton.InferRequestedOutput("mean", binary_data=True)
    wanted.set_shared_memory("frames", 8, offset=4096)
    with refused("do not fit"):
        client.infer("toy", [image(FRAME)], outputs=[wanted])
    os.truncate(f"/dev/shm{key}", 1 << 16)
    client.infer("toy", [given])
    client.unregister_system_shared_memory("frames")


@pytest.mark.parametrize("key", ["/../etc/passwd", "/a/b", "", "..", "/zoo-t-nothing", "a\0b", "/" + "x" * 300])
def test_only_objects_in_shared_memory_can_be_registered(client: triton.InferenceServerClient, key: str) -> None:
    with refused("key: "):
        client.register_system_shared_memory("outside", key, 16)


def test_a_region_belongs_to_the_token_that_registered_it(
    broker: Any, gateway_of: Any, region: tuple[Any, str], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("porch caller 0123456789abcdef\nyard caller fedcba9876543210\nlook viewer 00112233445566778899\n")
    gateway = gateway_of(broker(), tokens=tokens, shared_memory=True)
    porch, yard, look = (
        {"Authorization": f"Bearer {token}"}
        for token in ("0123456789abcdef", "fedcba9876543210", "00112233445566778899")
    )
    with triton.InferenceServerClient(gateway.address) as client:
        client.register_system_shared_memory("frames", region[1], 4096, headers=porch)
        assert client.get_system_shared_memory_status(headers=porch)[0]["name"] == "frames"
        assert client.get_system_shared_memory_status(headers=yard) == []
        given = triton.InferInput("image", [8, 8, 3], "UINT8")
        given.set_shared_memory("frames", 192)
        client.infer("toy", [given], headers=porch)
        with refused("not registered"):
            client.infer("toy", [given], headers=yard)
        client.unregister_system_shared_memory(headers=yard)
        client.infer("toy", [given], headers=porch)
        for call, status in (
            (lambda: client.infer("toy", [image(FRAME)]), "401"),
            (lambda: client.infer("toy", [image(FRAME)], headers=look), "403"),
            (lambda: client.unload_model("toy", headers=porch), "403"),
            (lambda: client.get_server_metadata(headers={"Authorization": "Bearer 0123456789abcdee"}), "401"),
        ):
            with refused() as error:
                call()
            assert error.value.status() == status
        assert client.get_model_metadata("toy", headers=look)["name"] == "toy"


def test_shared_memory_is_off_unless_it_is_configured(broker: Any, gateway_of: Any, region: tuple[Any, str]) -> None:
    gateway = gateway_of(broker())
    with triton.InferenceServerClient(gateway.address) as client:
        with refused("shared_memory = true") as error:
            client.register_system_shared_memory("frames", region[1], 64)
        assert error.value.status() == "400"
        assert "system_shared_memory" not in client.get_server_metadata()["extensions"]
