"""The ledger: which worker is charged how many megabytes on which device.

A worker is charged from the decision to start it until its process is gone and the device shows its memory
free. No new charge ever takes a device past what may be charged on it: `charge` raises rather than let it. What
may be charged is the budget, or less while other programs use the device (`allow`). A charge that turns out to be
too small is corrected (`recharge`) whatever that leads to: an overrun is stated, never hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

EPSILON_MB = 1e-6  # sums of floats


class Device(msgspec.Struct, frozen=True):
    """`name` such as "cuda:0" or "cpu"; `kind` "cuda" or "cpu" (host memory)."""

    name: str
    kind: str
    budget_mb: float


class Charge(msgspec.Struct, frozen=True):
    worker: int
    model: str
    device: str
    mb: float


class OverBudget(AssertionError):
    """A charge would exceed the budget: a bug of the caller, which must make room first."""


class Ledger:
    """Charges per device, in the order in which the devices were given."""

    def __init__(self, devices: list[Device]) -> None:
        if not devices:
            raise ValueError("a ledger wants at least one device")
        self.devices = {d.name: d for d in devices}
        self._charges: dict[int, Charge] = {}
        self._sums = {d.name: 0.0 for d in devices}
        self._allowed = {d.name: math.inf for d in devices}

    def charge(self, worker: int, model: str, device: str, mb: float) -> None:
        if mb > self.free_mb(device) + EPSILON_MB:
            raise OverBudget(
                f"{model} wants {mb:g} MB on {device}, {self.free_mb(device):g} MB are free of "
                f"{self.limit_mb(device):g}"
            )
        if worker in self._charges:
            raise ValueError(f"worker {worker} is charged already")
        self._charges[worker] = Charge(worker, model, device, mb)
        self._sums[device] += mb

    def recharge(self, worker: int, mb: float) -> None:
        """Sets a charge right. It may then be more than fits: see `overrun_mb`."""
        charge = self._charges[worker]
        self._charges[worker] = msgspec.structs.replace(charge, mb=mb)
        self._add_up(charge.device)

    def set_budget(self, device: str, mb: float) -> None:
        self.devices[device] = msgspec.structs.replace(self.devices[device], budget_mb=mb)

    def allow(self, device: str, mb: float) -> None:
        """What other programs leave of the device."""
        self._allowed[device] = mb

    def release(self, worker: int) -> Charge | None:
        """Ends a charge; None when there is none (any more)."""
        charge = self._charges.pop(worker, None)
        if charge is not None:
            self._add_up(charge.device)
        return charge

    def _add_up(self, device: str) -> None:
        """Not added or subtracted: floats would drift over the months."""
        self._sums[device] = sum(c.mb for c in self._charges.values() if c.device == device)

    def of(self, worker: int) -> Charge | None:
        return self._charges.get(worker)

    def charges(self) -> list[Charge]:
        return list(self._charges.values())

    def used_mb(self, device: str) -> float:
        return self._sums[device]

    def limit_mb(self, device: str) -> float:
        """What may be charged: the budget, or what other programs leave of the device if that is less."""
        return min(self.devices[device].budget_mb, self._allowed[device])

    def free_mb(self, device: str) -> float:
        """What may still be charged; negative in an overrun."""
        return self.limit_mb(device) - self._sums[device]

    def overrun_mb(self, device: str) -> float:
        """By how much more is charged than may be; 0 when it fits."""
        over = -self.free_mb(device)
        return over if over > EPSILON_MB else 0.0

    def faults(self) -> Iterator[str]:
        """What does not hold of it, in words."""
        for worker, charge in self._charges.items():
            if worker != charge.worker:
                yield f"the charge of worker {charge.worker} stands under {worker}"
            if charge.device not in self.devices or not 0 <= charge.mb < math.inf:
                yield f"worker {charge.worker} is charged {charge.mb} MB on {charge.device!r}"
        for device, d in self.devices.items():
            total = sum(c.mb for c in self._charges.values() if c.device == device)
            if not abs(self.used_mb(device) - total) <= EPSILON_MB:
                yield f"{device}: {self.used_mb(device)} MB are said to be charged, the charges add up to {total}"
            if not (d.budget_mb >= 0 and self.limit_mb(device) >= 0):
                yield f"{device}: a budget of {d.budget_mb} MB, {self.limit_mb(device)} may be charged"
