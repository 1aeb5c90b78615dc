"""What users of the `zoo` command rely on: its answers, its one-line complaints, its exit status."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT, Running, config_text, tables, toy, wait_until
from zoo import Client, curve
from zoo.cli import parser
from zoo.weights import inventory

Start = Callable[..., Running]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(shared_broker: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("ZOO_ENDPOINT", shared_broker.endpoint)
    return shared_broker


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """64 by 48 as stored, to be turned upright: 48 by 64."""
    file = tmp_path / "turned.jpg"
    image = Image.fromarray(np.full((48, 64, 3), 90, np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, exif=exif)
    return file


# ---------------------------------------------------------------- usage


def test_alone_it_prints_help_and_wrong_usage_is_status_2(run: Run, here: Running, tmp_path: Path) -> None:
    status, _, err = run()
    assert status == 2
    assert "COMMAND" in err
    assert run("sl")[0] == 2
    assert run("sl")[2] == "zoo: usage: there is no command 'sl'; `zoo --help` lists the commands\n"
    assert run("staus")[2] == "zoo: usage: there is no command 'staus'; did you mean 'status'?\n"
    assert json.loads(run("--json")[2])["error"] == "usage"
    assert run("ps", "--jsno")[0] == 2
    assert run("ps", "--timeout", "-1")[0] == 2
    assert run("infer", "toy", tmp_path / "none.jpg")[0] == 2
    assert "none.jpg" in run("infer", "toy", tmp_path / "none.jpg")[2]
    assert run("infer", "toy", __file__, "--box", "1,2,3")[0] == 2
    assert run("infer", "toy", __file__, "--option", "x")[0] == 2
    assert run("infer", "toy", __file__, "-o", tmp_path / "out.nonsense")[0] == 2
    assert run("infer", "toy", __file__, "-o", tmp_path / "no" / "out.png")[0] == 2
    assert run("--endpoint", "http://x", "ps")[0] == 2


def test_every_command_has_its_line_of_help_and_a_page(run: Run) -> None:
    status, out, _ = run("--help")
    said = " ".join(out.split())
    assert status == 0
    for name, command in parser.COMMANDS.items():
        head = (command.run.__doc__ or "").splitlines()[0]
        assert f" {name} {head}" in said
        if command.arguments is not None:
            assert head in " ".join(run(name, "--help")[1].split())


def test_version(run: Run) -> None:
    status, out, _ = run("--version")
    assert (status, out.split()[0]) == (0, "zoo")


# ---------------------------------------------------------------- no broker


def test_without_a_broker_questions_fail_soon_and_say_what_to_do(run: Run, zoo_dir: Path) -> None:
    for command in (["ps"], ["status"], ["load", "toy"]):
        status, out, err = run(*command, "--endpoint", f"ipc://{zoo_dir}/b", "--timeout", "0.2")
        assert (status, out) == (3, "")
        assert err.startswith("zoo: no broker: ")
        assert "zoo serve" in err
        assert err.count("\n") == 1


def test_without_a_broker_ls_lists_the_configuration(run: Run, zoo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = zoo_dir / "config.toml"
    config.write_text(config_text([toy(), toy("off", enabled=False)], endpoint=f"ipc://{zoo_dir}/b"))
    monkeypatch.setenv("ZOO_CONFIG", str(config))
    status, out, err = run("ls", "--timeout", "0.2")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "toy", "off"]
    assert "no broker runs" in err
    status, out, _ = run("ls", "--timeout", "0.2", "--json")
    assert [row["state"] for row in json.loads(out)] == [None, None]
    config.write_text("[broker]\nendpiont = 3\n")
    status, _, err = run("ls")
    assert status == 2
    assert f"{config}:2: broker.endpiont" in err


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize("command", ["ls", "ps", "status", "explain"])
def test_every_question_has_a_readable_answer_and_a_json_one(run: Run, here: Running, command: str) -> None:
    assert run("load", "toy")[0] == 0
    status, out, err = run(command)
    assert (status, err) == (0, "")
    assert "toy" in out
    assert "\x1b" not in out
    status, out, err = run("--json", command)
    assert (status, err) == (0, "")
    assert "toy" in json.dumps(json.loads(out))
    assert json.loads(run(command, "--json")[1])


def test_tables_are_aligned(run: Run, here: Running) -> None:
    head, *rows = run("ls")[1].splitlines()
    at = head.index("STATE")
    assert {row.split()[0] for row in rows} == {"toy", "toy2", "broken", "off"}
    assert all(row[at - 1] == " " and row[at] != " " for row in rows)
    assert "10 MB" in rows[0]


def test_load_pin_unpin_unload(run: Run, here: Running) -> None:
    assert "loaded and pinned" in run("load", "toy2", "--pin")[1]
    assert "pinned" in run("ps")[1]
    status, _, err = run("unload", "toy2")
    assert (status, err.startswith("zoo: model in use: ")) == (1, True)
    assert run("unpin", "toy2")[0] == 0
    assert json.loads(run("unload", "toy2", "--json")[1]) == {"model": "toy2", "unloaded": True}
    assert run("unload", "toy2")[1] == "toy2 was not loaded\n"


def test_a_refusal_is_one_line_with_its_reason_and_status_1(run: Run, here: Running) -> None:
    for model, reason in (("nobody", "model not found"), ("off", "model disabled"), ("broken", "load failed")):
        status, out, err = run("load", model)
        assert (status, out) == (1, "")
        assert err.startswith(f"zoo: {reason}: ")
        assert err.count("\n") == 1
    assert "again" in err


def test_explain_tells_the_story_of_a_model_and_of_a_request(run: Run, here: Running, picture: Path) -> None:
    status, _, err = run("infer", "toy", picture, "--option", "do=raise")
    assert status == 1
    found = re.search(r"`zoo explain (\d+)` tells its story", err)
    assert found, err
    status, out, _ = run("explain", found[1])
    assert status == 0
    assert f"toy: request {found[1]} came in" in out
    assert "no such animal" in out.splitlines()[-1]
    assert f"request {found[1]} " in run("explain", "toy")[1]
    assert json.loads(run("explain", found[1], "--json")[1])


def test_explain_of_what_is_not_there_is_an_error_with_a_suggestion(run: Run, here: Running) -> None:
    status, out, err = run("explain", "tow")
    assert (status, out, err) == (1, "", "zoo: model not found: there is no model 'tow'; did you mean 'toy'?\n")
    assert (
        run("explain", "nobody")[2] == "zoo: model not found: there is no model 'nobody'; `zoo ls` lists the models\n"
    )
    for number in ("0", "999999999", "9" * 30):
        status, _, err = run("explain", number)
        assert (status, err.count("\n")) == (1, 1)
    assert "request: 999999999 is not under way" in run("explain", "999999999")[2]


# ---------------------------------------------------------------- infer


def test_infer_sends_the_file_and_prints_the_answer(run: Run, here: Running, picture: Path) -> None:
    status, out, err = run("infer", "toy", picture)
    assert (status, err) == (0, "")
    assert out.startswith("toy: ")
    assert "shape: [64, 48, 3]" in out
    answer = json.loads(run("infer", "toy", picture, "--json")[1])
    assert answer["shape"] == [64, 48, 3]
    parts = json.loads(run("infer", "toy", picture, "--json", "--box", "0,0,10,20", "--box=5,5,6,6")[1])
    assert [part["shape"] for part in parts] == [[20, 10, 3], [1, 1, 3]]
    assert "array of (64, 48, 3) uint8" in run("infer", "toy", picture, "--option", "do=echo")[1]
    status, _, err = run("infer", "toy", picture, "--box", "0.1,0.2,0.5,0.6")
    assert (status, "multiply x by the width, 48, and y by the height, 64" in err) == (1, True)
    status, _, err = run("infer", "toy", picture, "--option", "do=sleep", "--option", "seconds=1", "--timeout", "0.5")
    assert (status, err.startswith("zoo: deadline exceeded: ")) == (1, True)
    assert run("infer", "toy", picture, "--option", "color=rgb")[0] == 2
    assert run("infer", "toy", __file__)[0] == 1


def test_infer_says_where_the_time_went_and_the_number_to_explain(run: Run, here: Running, picture: Path) -> None:
    run("unload", "toy")
    first = run("infer", "toy", picture, "--option", "do=sleep", "--option", "seconds=0.02")[1].splitlines()[0]
    found = re.fullmatch(r"toy: (\d+) ms \(([\w ,]+); request (\d+)\)", first)
    assert found, first
    times = {name: int(ms) for name, ms in (part.split() for part in found[2].split(", "))}
    assert times["infer"] >= 20
    assert times["load"] > 0
    assert times["total"] <= int(found[1]) + 1
    assert f"request {found[3]} came in" in run("explain", found[3])[1]


def test_a_plain_dict_is_not_drawn_and_that_is_said(run: Run, here: Running, picture: Path, tmp_path: Path) -> None:
    status, out, err = run("infer", "toy", picture, "-o", tmp_path / "out.png")
    assert status == 1
    assert "shape" in out
    assert "plain dict" in err
    assert not (tmp_path / "out.png").exists()


def test_a_picture_is_drawn_upright(run: Run, broker: Start, picture: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "finder.py"
    adapter.write_text(FINDER)
    running = broker([toy(adapter="finder:Finder")], start=False)
    (running.folder / "finder.py").write_text(FINDER)
    running.start()
    out = tmp_path / "out.png"
    status, said, _ = run("--endpoint", running.endpoint, "infer", "toy", picture, "-o", out)
    assert status == 0
    assert "thing  0.90  x 5 to 40, y 10 to 60 px" in said
    painted = np.array(Image.open(out))
    assert painted.shape == (64, 48, 3)
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) > 1
    status, said, _ = run("--endpoint", running.endpoint, "infer", "toy", picture, "--option", "n=30")
    assert (said.count("thing"), said.splitlines()[-1]) == (20, "  and 10 more (--json has them all)")


def stand_in_weights(folder: Path) -> Path:
    """A file of weights with its STAND-IN file."""
    file = folder / "standing-in" / "weights.bin"
    file.parent.mkdir()
    file.write_bytes(bytes(100))
    inventory.mark_stand_in(file, "find")
    return file


def marked_in(picture: Path) -> bool:
    """Whether there is a bar over the lower edge. What the tests draw on is not black."""
    painted = np.array(Image.open(picture))
    return bool((painted[-1, -1] == 0).all())


def test_what_a_stand_in_answers_is_marked(run: Run, broker: Start, tmp_path: Path) -> None:
    keys = {"adapter": "tests.finder:Finder", "path": str(stand_in_weights(tmp_path))}
    models = [toy("find", **keys), toy("real", adapter="tests.finder:Finder")]
    rules = '[[enrich.rules]]\nfor = ["bright"]\nmodels = ["find", "real"]\n'
    running = broker(tables("models", models) + rules)
    frame = np.full((240, 320, 3), 40, np.uint8)
    frame[20:50, 30:70, 0] = 255
    bright, out = tmp_path / "bright.png", tmp_path / "out.png"
    Image.fromarray(frame).save(bright)
    for model, mark in (("find", True), ("real", False)):
        here = ("--endpoint", running.endpoint, "infer", model, bright)
        status, said, _ = run(*here, "--option", "do=find", "-o", out)
        assert status == 0
        assert ("  STAND-IN: " in said) is mark
        assert marked_in(out) is mark
        assert ("  STAND-IN: " in run(*here)[1]) is mark  # of a plain dict
        status, said, _ = run(
            *("--endpoint", running.endpoint, "enrich", bright, "-o", out),
            *("--detector", model, "--detector-option", "do=find"),
        )
        assert status == 0
        assert f"{model}: 1 detection{' [STAND-IN]' * mark}; " in said
        assert "  find [STAND-IN]: " in said
        assert "  real: " in said
        assert marked_in(out)


def test_a_picture_says_that_its_boxes_are_a_stand_ins(run: Run, broker: Start, tmp_path: Path) -> None:
    models = [
        toy("find", adapter="tests.finder:Finder", path=str(stand_in_weights(tmp_path))),
        toy("real", adapter="tests.finder:Finder"),
    ]
    running = broker(tables("models", models) + '[[enrich.rules]]\nfor = ["bright"]\nmodels = ["real"]\n')
    frame = np.full((240, 320, 3), 255, np.uint8)
    Image.fromarray(frame).save(tmp_path / "bright.png")
    out = tmp_path / "out.png"
    for model, mark in (("find", True), ("real", False)):
        detector = ("--detector", model, "--detector-option", "do=find")
        status, _, err = run("--endpoint", running.endpoint, "enrich", tmp_path / "bright.png", *detector, "-o", out)
        assert status == 0, err
        assert marked_in(out) is mark


ENRICH = """
[[enrich.rules]]
for = ["bright"]
models = ["where", "nowhere"]
options = { do = "find" }
[[enrich.rules]]
after = "where"
models = ["look"]
[[enrich.rules]]
for = ["bright"]
models = ["film"]
on = "video"
suspicious = true
"""


def test_enrich_asks_the_models_of_the_table_and_draws_it_all(run: Run, broker: Start, tmp_path: Path) -> None:
    models = [toy(name, adapter="tests.finder:Finder") for name in ("find", "where", "look", "film", "odd")]
    running = broker(tables("models", [*models, toy("nowhere", enabled=False)]) + ENRICH)
    frame = np.full((60, 80, 3), 40, np.uint8)
    frame[20:50, 30:70, 0] = 255
    first, last, out = tmp_path / "first.png", tmp_path / "last.png", tmp_path / "out.png"
    Image.fromarray(frame // 2).save(first)
    Image.fromarray(frame).save(last)
    here = ("--endpoint", running.endpoint, "enrich")
    detector = ("--detector", "find", "--detector-option", "do=find")
    status, said, err = run(*here, first, last, *detector, "--suspicious", "-o", out)
    assert status == 0
    assert "find: 1 detection; 4 models in" in said
    assert "bright  1.00  x 30 to 70, y 20 to 50 px" in said
    assert "where: bright  1.00  x 30 to 70, y 20 to 50 px" in said
    assert "nowhere: missing, model disabled: " in said
    assert "film: pid: " in said
    assert f"wrote {out}" in err
    painted = np.array(Image.open(out))
    assert painted.shape == frame.shape
    assert (painted != frame).any()
    status, said, _ = run(*here, last, *detector, "--json")
    event = json.loads(said)
    assert event["detector"] == "find"
    (bright,) = event["detections"]
    assert bright["answers"].keys() == {"where", "look"}
    assert bright["missing"]["nowhere"]["error"] == "model_disabled"
    assert event["skipped"] == {"film": "only when the event is suspicious"}
    assert "film: skipped, there is no bright" in run(*here, first, *detector)[1]
    assert run(*here, last, "--detector", "odd")[0] == 1  # it does not answer detections
    assert run(*here, last, "--detector", "find", "--detector-option", "color=rgb")[0] == 2
    assert run(*here, last, *detector, "--min-score", "2")[0] == 2
    assert run(*here, last)[0] == 2


def test_enrich_fails_when_no_model_answers(run: Run, broker: Start, tmp_path: Path) -> None:
    models = [toy("find", adapter="tests.finder:Finder"), toy("where", enabled=False), toy("nowhere", enabled=False)]
    running = broker(tables("models", models) + ENRICH.split("[[enrich.rules]]\nafter")[0])
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    detector = ("--detector", "find", "--detector-option", "do=find")
    status, said, _ = run("--endpoint", running.endpoint, "enrich", tmp_path / "red.png", *detector)
    assert (status, said.count("model disabled")) == (1, 2)


FINDER = """
import numpy as np
from zoo import Detections

class Finder:
    def load(self, spec, device):
        pass
    def predict(self, inputs):
        n = inputs[0].options.get("n", 1)
        box = np.array([[5, 10, 40, 60]] * n, np.float32)
        return [Detections(boxes=box, scores=np.full(n, 0.9, np.float32), class_ids=np.zeros(n, np.int32),
                           labels=["thing"] * n) for _ in inputs]
"""


# ---------------------------------------------------------------- as a process


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "zoo.cli", *argv]


def test_serve_becomes_the_broker(zoo_dir: Path) -> None:
    config = zoo_dir / "config.toml"
    config.write_text(config_text([toy()], device="cpu"))
    endpoint = f"ipc://{zoo_dir}/b"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command("--endpoint", endpoint, "serve", "--config", str(config)), stderr=subprocess.PIPE, env=env
    )
    try:
        with Client(endpoint, timeout=20.0) as zoo:
            assert zoo.get_status()["broker"]["pid"] == process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20.0)
    assert process.returncode == 0, err
    bad = subprocess.run(command("serve", "--confg", "x"), capture_output=True, text=True, env=env, check=False)
    assert bad.returncode == 2
    assert "--confg" in bad.stderr


def test_ctrl_c_is_status_130(shared_broker: Running) -> None:
    process = subprocess.Popen(
        command(
            "infer", "toy", "-", "--option", "do=sleep", "--option", "seconds=3", "--endpoint", shared_broker.endpoint
        ),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out, "PNG")
    process.stdin.write(out.getvalue())
    process.stdin.close()
    process.stdin = None
    with Client(shared_broker.endpoint) as zoo:
        wait_until(lambda: zoo.get_status()["running"] == 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10.0)
        assert (process.returncode, err) == (130, b"")
        wait_until(lambda: zoo.get_status()["requests"] == 0)


def test_a_closed_pipe_is_no_traceback(shared_broker: Running) -> None:
    line = " ".join(command("ls", "--endpoint", shared_broker.endpoint))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} | true"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, b"")


# ---------------------------------------------------------------- keys


def test_keys_are_private_and_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    assert curve.main([str(folder)]) == 0
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert set(files) == {"server.key", "server.key_secret", "client.key", "client.key_secret", "clients/client.key"}
    assert files["clients/client.key"] == files["client.key"]
    assert folder.stat().st_mode & 0o777 == (folder / "clients").stat().st_mode & 0o777 == 0o700
    assert all((folder / name).stat().st_mode & 0o077 == 0 for name in files)
    assert curve.main([str(folder)]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files
    (folder / "server.key").unlink()
    assert curve.main([str(folder)]) == 1
    assert (folder / "server.key_secret").read_bytes() == files["server.key_secret"]
