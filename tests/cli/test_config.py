"""config.toml: every mistake is reported with its line and key, and the shipped file holds what it should."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.config import rules, schema
from zoo.config.address import find_address
from zoo.config.endpoint import MAX_IPC_PATH, endpoint_problem
from zoo.config.reading import find_config, load_config, parse_config
from zoo.config.schema import ModelPriority
from zoo.errors import ConfigError, InvalidInput
from zoo.weights.source import Published, Wanted, is_file

SHIPPED = Path(__file__).parent.parent.parent / "config.toml"

# ---------------------------------------------------------------- mistakes

MODEL = '[[models]]\nname = "a"\n'
TWO = "".join(f'[[devices]]\nname = "cpu:{i}"\nkind = "cpu"\n' for i in range(2))
RULE = MODEL + '[[models]]\nname = "b"\n[[enrich.rules]]\nfor = ["car"]\nmodels = ["a"]\n'  # 7 lines
SECOND = RULE + "[[enrich.rules]]\n"
MISTAKES = [
    ("[broker]\ncolour = 1", 2, "broker.colour", "unknown key"),
    ("[broker]\n\nidle_seconds = 0", 3, "broker.idle_seconds", "> 0"),
    ("[broker]\nidle_seconds = -1.5", 2, "broker.idle_seconds", "> 0"),
    ("[broker]\nidle_seconds = inf", 2, "broker.idle_seconds", "finite"),
    ("[broker]\nvram_budget_gb = nan", 2, "broker.vram_budget_gb", "finite"),
    ('[broker]\nvram_budget_gb = "6.8"', 2, "broker.vram_budget_gb", "Expected `float`"),
    (f"[broker]\nload_timeout = 1{'0' * 400}", 2, "broker.load_timeout", "out of range"),
    ("[broker]\nreserve_mb = -1", 2, "broker.reserve_mb", ">= 0"),
    ('[broker]\ndevice = "tpu"', 2, "broker.device", "tpu"),
    ('[broker]\nfootprint = "guessed"', 2, "broker.footprint", "guessed"),
    ("[broker]\nmax_queue = 0", 2, "broker.max_queue", ">= 1"),
    ("[broker]\nmax_queue = 2.5", 2, "broker.max_queue", "Expected `int`"),
    ("[broker]\nconcurrent_loads = 0", 2, "broker.concurrent_loads", ">= 1"),
    ("[broker]\nmetrics = true", 2, "broker.metrics", "True"),
    ('[broker]\nmetrics = "9464"', 2, "broker.metrics", "HOST:PORT"),
    ('[broker]\nendpoint = "udp://x"', 2, "broker.endpoint", "expected ipc://PATH or tcp://HOST:PORT"),
    ('[broker]\nendpoint = "ipc://"', 2, "broker.endpoint", "path in the file system"),
    ('[broker]\nendpoint = "ipc://@x"', 2, "broker.endpoint", "path in the file system"),
    ('[broker]\nendpoint = "ipc:///tmp/\\u0000x"', 2, "broker.endpoint", "path in the file system"),
    (f'[broker]\nendpoint = "ipc:///{"x" * 99}"', 2, "broker.endpoint", "at most 99"),
    ('[broker]\nendpoint = "tcp://0.0.0.0:5555"', 2, "broker.endpoint", "CURVE"),
    ('[broker]\nendpoint = "tcp://localhost:70000"\ncurve_dir = "k"', 2, "broker.endpoint", "no port 70000"),
    ("broker = 3", 1, "broker", "expected a table"),
    ("[[broker]]\ndevice = 'cpu'", 1, "broker", "expected a table"),
    ("models = 3", 1, "models", "expected [[models]] tables"),
    ("models = [1]", 1, "models", "expected a table"),
    ("[models]\nname = 'a'", 1, "models", "expected [[models]] tables"),
    ("[modles]\nname = 'a'", 1, "modles", "unknown table"),
    ("\nname = 'a'", 2, "name", "unknown table or key"),
    ("[[models]]\nvram_mb = 3", 1, "models", "'name' is missing"),
    ('[[models]]\nname = ""', 2, "models.name", "regex"),
    ('[[models]]\nname = "a b"', 2, "models.name", "regex"),
    ('[[models]]\nname = "a\\n"', 2, "models.name", "regex"),
    (f'[[models]]\nname = "{"a" * 65}"', 2, "models.name", "regex"),
    (MODEL + 'priority = "URGENT"', 3, "models.priority", "CRITICAL, HIGH, MEDIUM, LOW"),
    (MODEL + "priority = 1", 3, "models.priority", "CRITICAL, HIGH, MEDIUM, LOW"),
    (MODEL + "priority = []", 3, "models.priority", "CRITICAL, HIGH, MEDIUM, LOW"),
    (MODEL + "vram_mb = -5", 3, "models.vram_mb", ">= 0"),
    (MODEL + "vram_mb = inf", 3, "models.vram_mb", "finite"),
    (MODEL + "enabled = 1", 3, "models.enabled", "Expected `bool`"),
    (MODEL + "available = true", 3, "models.available", "unknown key"),
    (MODEL + "options = 3", 3, "models.options", "Expected `object`"),
    (MODEL + 'adapter = "toy"', 3, "models.adapter", "package.module:Class"),
    (MODEL + 'adapter = "a:b:c"', 3, "models.adapter", "package.module:Class"),
    (MODEL + 'path = "a"\nsource = "hf:a"\nfiles = ["b"]', 4, "models.source", "hf:OWNER/NAME"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"', 1, "models.files", "name at least one"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"\nfiles = ["c?"]', 5, "models.files", "not optional"),
    (MODEL + 'source = "hf:a/b"\nfiles = ["c"]', 3, "models.source", "path is missing"),
    (MODEL + 'path = "a.pt"\nsource = "hf:a/b"\nfiles = ["c", "d"]', 5, "models.files", "not 2"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"\nfiles = ["../c"]', 5, "models.files", "'../c'"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"\nfiles = ["/c"]', 5, "models.files", "'/c'"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"\nfiles = ["b", "c//d?"]', 5, "models.files", "'c//d?'"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"\nfiles = ["b", "?"]', 5, "models.files", "'?'"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"\nfiles = ["PULLED.json"]', 5, "models.files", "'PULLED.json'"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"\nfiles = ["c"]\nrevision = "../x"', 6, "models.revision", "'../x'"),
    (MODEL + 'path = "a.pt"\nsource = "http://example.org/a.pt"', 4, "models.source", "https"),
    (MODEL + 'path = "a.pt"\nsource = "ftp://example.org/a.pt"', 4, "models.source", "https"),
    (MODEL + 'path = "a.pt"\nsource = "https://me:secret@example.org/a"', 4, "models.source", "passwords"),
    (MODEL + 'path = "a"\nsource = "https://example.org/"', 4, "models.source", "no file name"),
    (MODEL + 'path = "a.pt"\nsource = "https://x.org/a"\nfiles = ["a"]', 5, "models.files", "only for a repository"),
    (MODEL + 'path = "a.pt"\nsource = "some zoo"\nrevision = "v1"', 5, "models.revision", "only for a repository"),
    (MODEL + 'path = "a.pt"\nsource = "https://x.org/a"\nsha256 = { b = "c" }', 5, "models.sha256", "'b' is not among"),
    (MODEL + 'path = "a"\nsource = "hf:a/b"\nfiles = ["c"]\nsha256 = { c = "D" }', 6, "models.sha256", "64 hex"),
    (MODEL + MODEL, 4, "models.name", "'a' is there twice"),
    (MODEL + "[models.options]\nx = 1\n" + '[[models]]\nname = "b"\nvram = 1', 7, "models.vram", "unknown key"),
    ('[[devices]]\nname = "cuda:x"\nkind = "cuda"', 2, "devices.name", "cuda:0"),
    ('[[devices]]\nname = "cuda:0"', 1, "devices", "'kind' is missing"),
    ('[[devices]]\nname = "a"\nkind = "gpu"', 3, "devices.kind", "gpu"),
    ('[[devices]]\nname = "a"\nkind = "cpu"\nbudget_gb = 0', 4, "devices.budget_gb", "> 0"),
    (MODEL + 'device = "cpu"', 3, "models.device", "'cpu' is not the name of one of the [[devices]]; there are none"),
    (TWO + MODEL + 'device = "cpu:2"', 9, "models.device", "there are cpu:0, cpu:1"),
    (TWO + MODEL + 'device = "cpu:1"\nmax_instances = 2', 10, "models.max_instances", "this one names its device"),
    (TWO + MODEL + "max_instances = 3", 9, "models.max_instances", "one worker on a device at most, and there are 2"),
    (MODEL + "max_instances = 2", 3, "models.max_instances", "one worker on a device at most, and there is one"),
    (MODEL + "max_instances = 0", 3, "models.max_instances", ">= 1"),
    (MODEL + 'deepstack = "plates"', 3, "models.deepstack", "plates"),
    (
        MODEL + 'deepstack = "face"\n[[models]]\nname = "c"\ndeepstack = "face"',
        6,
        "models.deepstack",
        "'a' says 'face'",
    ),
    (MODEL + 'deepstack = "alpr"', 3, "models.deepstack", 'no rule of [[enrich.rules]] has after = "a"'),
    ("[gateway]\ndeepstack_seconds = 0", 2, "gateway.deepstack_seconds", "> 0"),
    ("enrich = 3", 1, "enrich", "expected a table"),
    ("[enrich]\nrules = 3", 2, "enrich.rules", "expected [[enrich.rules]] tables"),
    ("[enrich]\nmin_score = 1.5", 2, "enrich.min_score", "<= 1"),
    ("[enrich]\nmin_score = nan", 2, "enrich.min_score", "finite"),
    ("[enrich]\ntimeout = 0", 2, "enrich.timeout", "> 0"),
    ("[enrich]\nparallel = 0", 2, "enrich.parallel", ">= 1"),
    ("[enrich]\nrule = []", 2, "enrich.rule", "unknown key"),
    ('[enrich]\nparallel = 2\nrules = [{ for = ["car"] }]', 3, "enrich.rules", "'models' is missing"),
    ('[[enrich.rules]]\nfor = ["car"]', 1, "enrich.rules", "'models' is missing"),
    ("[[enrich.rules]]\nmodels = []", 2, "enrich.rules.models", "length >= 1"),
    ('[[enrich.rules]]\nmodels = "a"', 2, "enrich.rules.models", "Expected `array`"),
    (RULE + "labels = ['x']", 8, "enrich.rules.labels", "unknown key; known are models, for, after"),
    (RULE + "grow = 1.1", 8, "enrich.rules.grow", "<= 1"),
    (RULE + "upper = 0", 8, "enrich.rules.upper", "> 0"),
    (RULE + 'on = "crop"', 8, "enrich.rules.on", "crop"),
    (RULE + "min_persons = -1", 8, "enrich.rules.min_persons", ">= 0"),
    (RULE + "options = 3", 8, "enrich.rules.options", "Expected `object`"),
    (RULE + 'on = "frame"\ngrow = 0.1', 9, "enrich.rules.grow", "no box on a whole frame"),
    (RULE + 'on = "video"\nupper = 0.5', 9, "enrich.rules.upper", "no box on a whole video"),
    (RULE + 'after = "b"', 5, "enrich.rules", "one of the two"),
    (SECOND + 'models = ["b"]', 8, "enrich.rules", "one of the two"),
    (SECOND + 'for = []\nmodels = ["b"]', 9, "enrich.rules.for", "length >= 1"),
    (SECOND + 'for = [""]\nmodels = ["b"]', 9, "enrich.rules.for", "length >= 1"),
    (SECOND + 'for = ["cat"]\nmodels = ["b", "b"]', 10, "enrich.rules.models", "twice"),
    (SECOND + 'for = ["cat"]\nmodels = ["c"]', 10, "enrich.rules.models", "no model 'c' in [[models]]"),
    (SECOND + 'after = "c"\nmodels = ["b"]', 9, "enrich.rules.after", "no rule asks 'c'"),
    (SECOND + 'after = "a"\non = "frame"\nmodels = ["b"]', 10, "enrich.rules.on", "leads to a box"),
    (SECOND + 'after = "b"\nmodels = ["b"]', 9, "enrich.rules.after", "b → b"),
    (
        SECOND + 'after = "b"\nmodels = ["a"]\n[[enrich.rules]]\nfor = ["x"]\nmodels = ["b"]',
        10,
        "enrich.rules.models",
        "asks it otherwise",
    ),
    (SECOND + 'for = ["cat"]\non = "frame"\nmodels = ["a"]', 11, "enrich.rules.models", "asks it otherwise"),
    (SECOND + 'for = ["cat"]\nmodels = ["a"]\noptions = { x = 1 }', 10, "enrich.rules.models", "asks it otherwise"),
    (SECOND + 'for = ["cat", "CAR"]\nmodels = ["a"]', 10, "enrich.rules.models", "for 'car' already"),
    (
        SECOND.replace('"car"', '"traffic_light"') + 'for = ["Traffic light"]\nmodels = ["a"]',
        10,
        "enrich.rules.models",
        "for 'traffic light' already",
    ),
    (SECOND + 'for = ["*"]\nmodels = ["a"]', 10, "enrich.rules.models", "for '*' already"),
    ('[[devices]]\nname = "a"\nkind = "cpu"\n[[devices]]\nname = "a"\nkind = "cpu"', 5, "devices.name", "twice"),
]


def complaint(text: str, file: Path | None = Path("z.toml")) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, file)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(("text", "line", "key", "what"), MISTAKES)
def test_a_mistake_is_told_with_its_line_and_key(text: str, line: int, key: str, what: str) -> None:
    told = complaint(text)
    assert len(told) == 1, told
    assert told[0].startswith(f"z.toml:{line}: {key}: "), told
    assert what in told[0]
    assert len(told[0]) < 600


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[broker]\nx = = 3", 2),
        ("[broker]\n\nidle_seconds = 1\nidle_seconds = 2", 4),
        ("[broker]\nx = 'never closed", 2),
        ("[broker]\nx = [1,\n", 2),
        ("x = " + "[" * 5000, 1),
        ("x = " + "9" * 5000, 1),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(text: str, line: int) -> None:
    told = complaint(text)
    assert told[0].startswith(f"z.toml:{line}: not valid TOML: ")


def test_all_mistakes_are_told_at_once() -> None:
    text = """
[broker]
idle_seconds = 0
speed = 9
[[models]]
name = "a"
vram_mb = -1
[[models]]
priority = "NO"
[[models]]
name = "a"
adapter = "x"
[extra]
"""
    told = complaint(text)
    places = [line.split(": ")[0] + " " + line.split(": ")[1] for line in told]
    assert places == [
        "z.toml:3 broker.idle_seconds",
        "z.toml:4 broker.speed",
        "z.toml:7 models.vram_mb",
        "z.toml:9 models.priority",
        "z.toml:8 models",
        "z.toml:12 models.adapter",
        "z.toml:13 extra",
    ]


def test_a_chain_of_rules_must_begin_somewhere() -> None:
    chain = '[[enrich.rules]]\nafter = "{}"\nmodels = ["{}"]\n'
    told = complaint(MODEL + '[[models]]\nname = "b"\n' + chain.format("a", "b") + chain.format("b", "a"))
    assert [line.split(": ")[:2] for line in told] == [
        ["z.toml:6", "enrich.rules.after"],
        ["z.toml:9", "enrich.rules.after"],
    ]
    assert "a → b → a" in told[0]


def test_one_model_may_look_at_different_parts_of_different_things() -> None:
    rules = parse_config(SECOND + 'for = ["cat"]\nmodels = ["a", "b"]\ngrow = 0.2').enrich.rules
    assert [(rule.labels, rule.models, rule.grow) for rule in rules] == [
        (["car"], ["a"], 0.0),
        (["cat"], ["a", "b"], 0.2),
    ]


def test_rules_are_not_blamed_for_models_that_could_not_be_read() -> None:
    text = '[[models]]\nname = "a"\nvram_mb = -1\n[[enrich.rules]]\nfor = ["car"]\nmodels = ["a"]'
    assert [line.split(": ")[1] for line in complaint(text)] == ["models.vram_mb"]


def test_footprints_are_measured_and_kept_in_the_users_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_config("").broker.footprint == "measured"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert parse_config("").state == tmp_path / ".local/state/zoo"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert parse_config("").state == Path("/state/zoo")
    assert parse_config('[broker]\nstate_dir = "here"', tmp_path / "config.toml").state == tmp_path / "here"


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "latin.toml")


# ---------------------------------------------------------------- anything at all

KEYS = st.sampled_from(
    [
        *schema.BrokerConfig.__struct_fields__,
        *schema.ModelConfig.__struct_fields__,
        *(field.encode_name for field in msgspec.structs.fields(rules.Rule)),
        "kind", "x", "rules",
    ]
)  # fmt: skip
HEADERS = st.sampled_from(
    ["[broker]", "[[models]]", "[[devices]]", "[models.options]", "[broker.x]", "[x]", "broker = 1", "[enrich]",
     "[[enrich]]", "[[enrich.rules]]", "[enrich.rules]", "[enrich.rules.options]"]
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        ["true", "false", "nan", "-inf", "1e400", "[]", "{}", "{a=1}", "[[1]]", '""', "''", '"LOW"', '"ipc://"', "0x1f",
         "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", '"a.b:C"', '"cuda:0"', '"cpu"', '"""\n[models]\n"""']
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12).map(lambda s: '"' + s.replace("\\", "").replace('"', "") + '"'),
    st.text(max_size=6),
)  # fmt: skip
LINES = st.one_of(HEADERS, st.tuples(KEYS, VALUES).map(" = ".join), st.text(max_size=20))


@settings(max_examples=400, deadline=None)
@given(st.lists(LINES, max_size=14).map("\n".join))
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    try:
        parsed = parse_config(text, Path("z.toml"))
    except ConfigError as refused:
        told = str(refused)
        assert told.startswith("z.toml:")
    else:
        assert isinstance(parsed, schema.ZooConfig)


FINE: list[Any] = [1, 3.5, "text", True, [1, "a"], {"k": 1}]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(KEYS, st.sampled_from(FINE), max_size=6))
def test_values_of_the_wrong_type_are_told_by_key(values: dict[str, Any]) -> None:
    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
        return {True: "true"}.get(value, repr(value).replace("'", '"')) if not isinstance(value, list) else '[1, "a"]'

    text = "[broker]\n" + "\n".join(f"{k} = {toml(v)}" for k, v in values.items())
    try:
        parse_config(text)
    except ConfigError as refused:
        told = str(refused).splitlines()
        for line in told:
            _, number, where, *_ = line.split(":")
            key = text.splitlines()[int(number) - 1].split(" =")[0]
            assert where.strip() == f"broker.{key}"


# ---------------------------------------------------------------- what is shipped

EXPECTED = {
    "coco-detector": ("detection", 500, "HIGH"),
    "yolo11-license-plate": ("detection", 300, "MEDIUM"),
    "yolo11-face": ("detection", 200, "MEDIUM"),
    "paddleocr": ("ocr", 100, "MEDIUM"),
    "clip-vit-l": ("embedding", 800, "MEDIUM"),
    "yolo-world-s": ("detection", 1500, "MEDIUM"),
    "vitpose-small": ("pose", 1500, "HIGH"),
    "depth-anything-v2-small": ("depth", 150, "LOW"),
    "violence-detection": ("classification", 500, "HIGH"),
    "weather-classification": ("classification", 200, "LOW"),
    "segformer-b2-clothes": ("segmentation", 1500, "HIGH"),
    "xclip-base": ("action", 2000, "LOW"),
    "fashion-clip": ("classification", 500, "HIGH"),
    "brisque-quality": ("quality", 0, "LOW"),
    "vehicle-segment-classification": ("classification", 1500, "MEDIUM"),
    "vehicle-damage-detection": ("detection", 2000, "MEDIUM"),
    "pet-classifier": ("classification", 200, "MEDIUM"),
    "osnet-x0-25": ("embedding", 100, "MEDIUM"),
    "threat-detection-yolov8n": ("detection", 300, "CRITICAL"),
    "vit-age-classifier": ("classification", 200, "HIGH"),
    "vit-gender-classifier": ("classification", 200, "HIGH"),
    "yolov8n-pose": ("pose", 200, "HIGH"),
}


def test_the_shipped_configuration_holds_the_whole_zoo() -> None:
    zoo = load_config(SHIPPED)
    assert {m.name: (m.category, m.vram_mb, m.priority.name) for m in zoo.models} == EXPECTED
    assert zoo.broker.vram_budget_gb * schema.MB_PER_GB == pytest.approx(6963.2)
    assert all(m.enabled and not m.available and not m.pinned for m in zoo.models)
    assert all(m.source for m in zoo.models)


def test_defaults_are_the_documented_ones() -> None:
    zoo = parse_config("")
    assert zoo.models == []
    assert zoo.broker.vram_budget_gb * schema.MB_PER_GB == pytest.approx(6963.2)
    assert (zoo.broker.idle_seconds, zoo.broker.request_timeout, zoo.broker.concurrent_loads) == (300.0, 30.0, 1)
    assert parse_config(MODEL).models[0].priority is ModelPriority.MEDIUM
    assert [p.value for p in ModelPriority] == [0, 1, 2, 3]


# ---------------------------------------------------------------- where things are


def test_what_is_wanted_goes_to_the_path() -> None:
    target = Path("/w/thing")
    repository = Published("hf:a/b", files=("model.safetensors", "sub/vocab.json?"))
    assert repository.wanted(target) == [
        Wanted("model.safetensors", target / "model.safetensors", True),
        Wanted("sub/vocab.json", target / "sub/vocab.json", False),
    ]
    assert Published("hf:a/b", files=("weights/best.pt",)).wanted(Path("/w/x.pt")) == [
        Wanted("weights/best.pt", Path("/w/x.pt"), True)
    ]
    address = Published("https://example.org/some%20thing.pt?download=1")
    assert address.wanted(target) == [Wanted("some thing.pt", target / "some thing.pt", True)]
    assert address.wanted(Path("/w/x.pt")) == [Wanted("x.pt", Path("/w/x.pt"), True)]
    assert is_file(Path("a/b.onnx"))
    assert not is_file(Path("a/model-v2.5"))


def test_relative_paths_start_at_the_files_own_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[broker]\nweights_dir = "w"\n' + MODEL + 'path = "a/b.pt"\n[[models]]\nname = "n"')
    zoo = load_config(file)
    assert zoo.weights(zoo.models[0]) == tmp_path.resolve() / "w/a/b.pt"
    assert zoo.weights(zoo.models[1]) is None
    file.write_text(MODEL + 'path = "/abs/b.pt"')
    zoo = load_config(file)
    assert zoo.weights(zoo.models[0]) == Path("/abs/b.pt")


def test_which_configuration_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_CONFIG", raising=False)
    assert find_config() == SHIPPED  # the shipped one
    (tmp_path / "config.toml").write_text(MODEL)
    assert [m.name for m in load_config().models] == ["a"]
    (tmp_path / "other.toml").write_text('[[models]]\nname = "b"')
    monkeypatch.setenv("ZOO_CONFIG", str(tmp_path / "other.toml"))
    assert [m.name for m in load_config().models] == ["b"]


def test_where_a_client_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("[broker]")
    monkeypatch.delenv("ZOO_ENDPOINT", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert find_address() == "ipc:///run/user/7/zoo/broker"
    assert find_address().how == "the default"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert find_address() in (f"ipc:///tmp/zoo-{os.getuid()}/broker", f"ipc:///run/user/{os.getuid()}/zoo/broker")
    (tmp_path / "config.toml").write_text('[broker]\nendpoint = "ipc:///tmp/here"')
    assert find_address() == "ipc:///tmp/here"
    assert find_address().how == f"from {tmp_path}/config.toml"
    monkeypatch.setenv("ZOO_ENDPOINT", "ipc:///tmp/there")
    assert find_address() == "ipc:///tmp/there"
    assert find_address().how == "from $ZOO_ENDPOINT"
    assert find_address("ipc:///tmp/x") == "ipc:///tmp/x"


@pytest.mark.parametrize(
    "endpoint", ["ipc:///tmp/x", "ipc://x", "tcp://127.0.0.1:1", "tcp://[::1]:65535", "tcp://host.name:80", "tcp://*:*"]
)
def test_endpoints_that_are_fine(endpoint: str) -> None:
    assert endpoint_problem(endpoint) is None


def test_the_longest_path_still_leaves_room_for_every_suffix() -> None:
    longest = "/" + "x" * (MAX_IPC_PATH - 1)
    assert endpoint_problem(f"ipc://{longest}") is None
    assert endpoint_problem(f"ipc://{longest}x") is not None
    assert len(f"{longest}.handoff") <= 107
    assert endpoint_problem(f"ipc:///{'é' * 50}") is not None  # bytes count, not characters


def test_a_client_says_what_is_wrong_with_its_endpoint() -> None:
    from zoo import Client

    for endpoint in ("udp://x", f"ipc:///{'x' * 100}", "ipc://", "tcp://host"):
        with pytest.raises(InvalidInput, match="endpoint"):
            Client(endpoint)
