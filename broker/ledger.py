"""The ledger: which worker is charged how many megabytes on which device.

A worker is charged from the decision to start it until its process is gone and the device shows its memory
free. The sum of charges of a device never exceeds its budget: `charge` raises rather than let it.
"""

from __future__ import annotations

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
    """A charge would exceed the budget: a bug of the caller, who must make room first."""


class Ledger:
    """Charges per device, in the order in which the devices were given."""

    def __init__(self, devices: list[Device]) -> None:
        if not devices:
            raise ValueError("a ledger wants at least one device")
        self.devices = {d.name: d for d in devices}
        self.largest_budget_mb = max(d.budget_mb for d in devices)
        self._charges: dict[int, Charge] = {}
        self._sums = {d.name: 0.0 for d in devices}

    def charge(self, worker: int, model: str, device: str, mb: float) -> None:
        if mb > self.free_mb(device) + EPSILON_MB:
            raise OverBudget(
                f"{model} wants {mb:g} MB on {device}, {self.free_mb(device):g} MB are free of "
                f"{self.devices[device].budget_mb:g}"
            )
        if worker in self._charges:
            raise ValueError(f"worker {worker} is charged already")
        self._charges[worker] = Charge(worker, model, device, mb)
        self._sums[device] += mb

    def release(self, worker: int) -> Charge | None:
        """Ends a charge; None when there is none (any more)."""
        charge = self._charges.pop(worker, None)
        if charge is not None:
            rest = [c.mb for c in self._charges.values() if c.device == charge.device]
            self._sums[charge.device] = sum(rest)  # not subtracted: floats would drift over the months
        return charge

    def of(self, worker: int) -> Charge | None:
        return self._charges.get(worker)

    def charges(self) -> list[Charge]:
        return list(self._charges.values())

    def used_mb(self, device: str) -> float:
        return self._sums[device]

    def free_mb(self, device: str) -> float:
        return self.devices[device].budget_mb - self._sums[device]
