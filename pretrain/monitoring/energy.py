"""Energy and carbon emissions of a run (Oquab et al. 2023, section 9): watts x hours x PUE x carbon per kWh.

The power is measured if the system reports it (NVML on an NVIDIA GPU, RAPL on some CPUs), else assumed.
"""

import time
from pathlib import Path
from typing import Any

import torch

PUE = 1.1
KG_PER_KWH = 0.385
_RAPL = Path("/sys/class/powercap/intel-rapl:0")


class EnergyMeter:
    """Sum of the energy of this process's device between calls of `sample`.

    Args:
        assumed_watts: power of the device if it cannot be measured.
        kwh: energy so far, of a resumed run.
        seconds: duration of that.
    """

    def __init__(self, device: torch.device, assumed_watts: float, kwh: float = 0.0, seconds: float = 0.0) -> None:
        self.device, self.assumed_watts = device, assumed_watts
        self.kwh, self.seconds = kwh, seconds
        self.measured = self._watts() is not None or self._joules() is not None
        self._time, self._counter = time.monotonic(), self._joules()

    def sample(self) -> None:
        """Add the energy since the last call."""
        now = time.monotonic()
        elapsed, self._time = now - self._time, now
        watts, counter = self._watts(), self._joules()
        if watts is None and counter is not None and self._counter is not None and counter >= self._counter:
            watts = (counter - self._counter) / max(elapsed, 1e-9)
        self._counter = counter
        self.kwh += (self.assumed_watts if watts is None else watts) * elapsed / 3.6e6
        self.seconds += elapsed

    def report(self, processes: int = 1) -> dict[str, Any]:
        """Return ``kwh`` and ``co2e_kg`` of all processes (PUE included), the mean ``watts`` of one device, and whether
        the power was ``measured`` or assumed."""
        kwh = self.kwh * processes * PUE
        watts = self.kwh * 3.6e6 / self.seconds if self.seconds else 0.0
        return {
            "kwh": kwh, "co2e_kg": kwh * KG_PER_KWH, "watts": watts, "measured": self.measured,
            "pue": PUE, "kg_per_kwh": KG_PER_KWH,
        }  # fmt: skip

    def _watts(self) -> float | None:
        """Return the power of a GPU, W; None if it is not reported."""
        if self.device.type != "cuda":
            return None
        try:
            return torch.cuda.power_draw(self.device) / 1000
        except (ImportError, RuntimeError, OSError):  # no NVML bindings, or no permission
            return None

    def _joules(self) -> float | None:
        """Return the energy counter of the first CPU package, J; None if it cannot be read."""
        if self.device.type != "cpu":
            return None
        try:
            return int((_RAPL / "energy_uj").read_text()) / 1e6
        except (OSError, ValueError):
            return None
