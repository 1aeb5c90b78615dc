"""All findings, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from zoo.doctor import devices, machine, packages, setup
from zoo.doctor.finding import WRONG, Finding


def findings(path: str | None, endpoint: str | None, timeout: float) -> Iterator[Finding]:
    """Looks at everything, one after another.

    Args:
        path: of config.toml; None takes the one that a broker would.
        endpoint: instead of the configured one.
        timeout: seconds for a broker to answer.
    """
    yield from _kept("machine", machine.examine)
    yield from _kept("packages", packages.examine)
    config, found = setup.read(path)
    yield from found
    said = devices.probe()
    if isinstance(said, Finding):
        yield said
    else:
        yield from _kept("devices", lambda: devices.examine(config, said, devices.nvidia_hardware()))
    if config is not None:
        for about, examine in (("state_dir", setup.folders), ("weights", setup.weights)):
            yield from _kept(about, lambda examine=examine: examine(config))  # type: ignore[misc]
        yield from _kept("endpoint", lambda: setup.endpoint(config, endpoint, timeout))
        yield from _kept("gateway", lambda: setup.gateway(config))


def _kept(about: str, examine: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What an examination finds; an error of it is a finding as well, and the others go on."""
    try:
        yield from examine()
    except Exception as e:
        yield Finding(about, WRONG, f"it cannot be examined: {type(e).__name__}: {e}", "please report this")
