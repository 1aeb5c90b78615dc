"""The driver, the GPUs, host memory and limits, as a broker would find them (`broker/probe.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from zoo.config.schema import MB_PER_GB, ZooConfig
from zoo.doctor.finding import OK, WARNING, WRONG, Finding
from zoo.system import program

PROBE_S = 30.0  # a driver that is asked for the first time may take several
FEW_CLIENTS = 64
NVIDIA = "0x10de"  # its PCI vendor id
IN_CONTAINER = "in a container, start it with --gpus all (NVIDIA Container Toolkit)"
DRIVER = f"install the driver, or repair it until `nvidia-smi` lists the GPU; {IN_CONTAINER}"


def probe() -> dict[str, Any] | Finding:
    """What `broker/probe.py` says, or why it says nothing."""
    command = [sys.executable, "-P", "-m", "broker.probe"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=False,
                              env=program.environment())  # fmt: skip
        said: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        message = f"the driver does not answer within {PROBE_S:g} s"
        return Finding("driver", WRONG, message, "see whether `nvidia-smi` answers; if not, restart the machine")
    except (OSError, ValueError) as e:
        return Finding("driver", WRONG, f"the broker's own look at the machine failed: {e}", "reinstall model-zoo")
    return said


def examine(config: ZooConfig | None, said: dict[str, Any], hardware: list[str]) -> Iterator[Finding]:
    """`config`: None where it cannot be read. `hardware`: see `nvidia_hardware`."""
    yield from _driver(config, said["cuda"], hardware)
    yield from _budgets(config, said)
    yield _memory(said["memory"], said["cores"])
    files = said["files"]
    message = f"{files['limit']:,} open files: {files['clients']:,} clients at once"
    if files["clients"] < FEW_CLIENTS:
        yield Finding("descriptors", WARNING, message, "raise the hard limit: `ulimit -Hn 65536`, LimitNOFILE=65536")
    else:
        yield Finding("descriptors", OK, message)


def nvidia_hardware(root: Path = Path("/")) -> list[str]:
    """Signs of an NVIDIA GPU that need no driver's answer: its PCI devices, and device nodes."""
    found = []
    for vendor in sorted(root.glob("sys/bus/pci/devices/*/vendor")):
        try:
            is_gpu = (vendor.with_name("class")).read_text().startswith("0x03")
            if is_gpu and vendor.read_text().strip() == NVIDIA:
                found.append(f"PCI {vendor.parent.name}")
        except OSError:
            continue
    return found + [f"/dev/{node.name}" for node in sorted(root.glob("dev/nvidia[0-9]*"))]


def _driver(config: ZooConfig | None, cuda: dict[str, Any], hardware: list[str]) -> Iterator[Finding]:
    if not cuda["devices"]:
        why, asked = cuda["why_none"], _asks_for_cuda(config)
        if "CUDA_VISIBLE_DEVICES" in why:
            yield Finding("driver", WRONG if asked else WARNING, why, "unset CUDA_VISIBLE_DEVICES for the broker")
        elif asked:
            yield Finding("driver", WRONG, f"config.toml asks for {asked}, and there is none: {why}", DRIVER)
        elif hardware:
            yield Finding("driver", WARNING, f"there is a GPU ({', '.join(hardware)}), but {why}", DRIVER)
        else:
            yield Finding("driver", OK, f"no NVIDIA GPU: models are loaded into host memory ({why})")
        return
    yield Finding("driver", OK, f"version {cuda['driver'] or 'unknown'}; NVML answers, devices: {len(cuda['devices'])}")
    for device in cuda["devices"]:
        yield _device(device)
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return
    if torch.endswith("+cpu"):
        remedy = "install a build of torch with CUDA (pip install torch --index-url of the driver's CUDA version)"
        yield Finding("torch", WRONG, f"torch {torch} is built for processors alone: no model can use the GPU", remedy)


def _asks_for_cuda(config: ZooConfig | None) -> str:
    if config is None:
        return ""
    named = [device.name for device in config.devices if device.kind == "cuda"]
    if config.devices:
        return ", ".join(named)
    return "a CUDA device" if config.broker.device == "cuda" else ""


def _device(device: dict[str, Any]) -> Finding:
    name = device["name"]
    if device["error"]:
        remedy = "see what `nvidia-smi` and the kernel's log (`dmesg | grep NVRM`) say"
        return Finding(name, WRONG, f"{device['uuid']} cannot be read: {device['error']}", remedy)
    if device["untold"]:
        message = f"{device['uuid']} does not tell {device['untold']}"
        remedy = "models are charged by their vram_mb, so say it for each; in a container, start it with --pid=host"
        return Finding(name, WARNING, message, remedy)
    return Finding(name, OK, f"{device['uuid']}: {device['used_mb']:,.0f} of {device['total_mb']:,.0f} MB in use")


def _budgets(config: ZooConfig | None, said: dict[str, Any]) -> Iterator[Finding]:
    """Whether each budget fits its device."""
    if config is None:
        return
    cuda = {device["name"]: device for device in said["cuda"]["devices"]}
    kind = config.broker.device
    if kind == "auto":
        kind = "cuda" if cuda else "cpu"
    one = ("cuda:0" if kind == "cuda" else "cpu", kind, config.broker.vram_budget_gb)
    for name, kind, budget_gb in [(d.name, d.kind, d.budget_gb) for d in config.devices] or [one]:
        place = cuda.get("cuda:0" if name == "cuda" else name) if kind == "cuda" else said["memory"]
        if place is None and cuda:
            remedy = f"name one of {', '.join(cuda)} in [[devices]]"
            yield Finding("budget", WRONG, f"{name}: there is no such device", remedy)
        if place is None or not place.get("total_mb"):
            continue
        budget_mb, total_mb = budget_gb * MB_PER_GB, place["total_mb"]
        others_mb = place["used_mb"]
        text = f"{name}: {budget_mb:,.0f} MB of {total_mb:,.0f} MB"
        if budget_mb > total_mb:
            yield Finding("budget", WRONG, text, f"lower its budget in config.toml to under {total_mb / 1024:.1f} GB")
        elif budget_mb > total_mb - others_mb:
            remedy = (
                "nothing, if a broker of yours uses it; else end other programs there: the broker takes what is left"
            )
            yield Finding("budget", WARNING, f"{text}, of which {others_mb:,.0f} MB are in use now", remedy)
        else:
            yield Finding("budget", OK, text)


def _memory(memory: dict[str, Any], cores: int) -> Finding:
    if memory["error"]:
        return Finding("host memory", WRONG, memory["error"], "mount /proc")
    total, built_in = memory["total_mb"], memory["machine_mb"]
    message = f"{total - memory['used_mb']:,.0f} of {total:,.0f} MB free"
    if total < built_in * 0.99:
        message += f" (a control group allows this process no more of the machine's {built_in:,.0f} MB)"
    message += f"; processors: {cores}"
    if cores < (os.cpu_count() or 1):
        message += f" (of {os.cpu_count()}, by a control group or affinity)"
    return Finding("host memory", OK, message)
