"""Figures of a benchmark: as a table, as JSON, and beside those of an earlier run."""

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from maskdit import config as configs
from maskdit.performance.subject import BenchError
from maskdit.performance.timing import Spread
from maskdit.training import distributed

KIND = "maskdit bench 1"
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
      name: `PART.WHAT`.
      value: the number; a median where it was measured several times.
      unit: `images/s`, `s`, `ms`, `B`, `share`, `x`, or empty for a count.
      least, most: of the repeated measurements; None for a single one.
      note: how it was measured, where the name does not say.
    """

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    note: str = ""

    @classmethod
    def of(cls, name: str, spread: Spread, unit: str, note: str = "") -> "Figure":
        """The figure of repeated measurements."""
        return cls(name, spread.median, unit, spread.least, spread.most, note)


@dataclasses.dataclass(frozen=True)
class Report:
    """A benchmark's figures and what they belong to; all fields are plain data.

    Attributes:
      name: the config as it was asked for.
      config: the config.
      changed: lines in which it differs from the config of that name.
      setting: what else was asked for: step, synthetic data.
      hardware: platform, kind and number of devices, processes, the host.
      mesh: axis -> size.
      versions: of Python and libraries.
      date: in UTC.
      load: load average of the host when the run began.
      notes: lines that say what was counted and against what.
      figures: by name.
    """

    name: str
    config: dict[str, Any]
    changed: list[str]
    setting: dict[str, Any]
    hardware: dict[str, Any]
    mesh: dict[str, int]
    versions: dict[str, str]
    date: str
    load: float | None
    notes: list[str]
    figures: dict[str, Figure]

    def write(self, path: str) -> None:
        """Writes the report as JSON."""
        text = json.dumps({"kind": KIND, **dataclasses.asdict(self)}, indent=2)
        epath.Path(path).write_text(text + "\n")

    def table(self, earlier: "Report | None" = None) -> str:
        """The figures as lines of text; with an earlier report, each beside its ratio to the earlier one."""
        mesh = ", ".join(f"{axis}={size}" for axis, size in self.mesh.items())
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        load = "" if self.load is None else f", load average {self.load:.1f}"
        changed = [f"changed: {line}" for line in self.changed]
        against = [] if earlier is None else [f"against {earlier.name} of {earlier.date}", *self._warnings(earlier)]
        head = [
            f"{self.name}, {self.date}: mesh {mesh}; {_hardware(self.hardware)}{load}",
            versions,
            *changed,
            *self.notes,
            *against,
        ]
        rows = [("", "median", "min to max", "" if earlier is None else "ratio", "")]
        for figure in self.figures.values():
            rows.append(
                (figure.name, shown(figure.value, figure.unit), _range(figure), ratio(figure, earlier), figure.note)
            )
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}"
            for row in rows
        ]
        return "\n".join([*head, *(line.rstrip() for line in lines)])

    def _warnings(self, earlier: "Report") -> list[str]:
        """What differs besides the config, for ratios that then compare machines or versions."""
        found = []
        for what, ours, theirs in (
            ("another machine", {**self.hardware, **self.mesh}, {**earlier.hardware, **earlier.mesh}),
            ("other versions", self.versions, earlier.versions),
        ):
            lines = [f"{k} {ours.get(k)} != {theirs.get(k)}" for k in ours | theirs if ours.get(k) != theirs.get(k)]
            found += [f"warning: {what}, ratios compare them too: {', '.join(lines)}"] * bool(lines)
        return found


def read(path: str) -> Report:
    """Reads a report.

    Raises:
      BenchError: for a file that is missing or of another kind.
    """
    try:
        found = json.loads(epath.Path(path).read_text())
    except ValueError:
        found = None  # no JSON
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise BenchError(f"--against takes a file written by `maskdit bench --json`; {path} {why}") from error
    if not isinstance(found, dict) or found.pop("kind", None) != KIND:
        raise BenchError(f"--against takes a file written by `maskdit bench --json`; {path} is another kind of file")
    figures = {name: Figure(**figure) for name, figure in found.pop("figures").items()}
    return Report(**found, figures=figures)


def check_same(config: ConfigDict, setting: dict[str, Any], earlier: Report, path: str) -> None:
    """Refuses to compare with an earlier report of another config, before anything is measured.

    Raises:
      BenchError: naming the differences.
    """
    stored = configs.from_json(json.dumps(earlier.config))
    lines = configs.differences(config, stored)
    stated = {key: (value, earlier.setting.get(key)) for key, value in setting.items()}
    lines += [f"--{key}: {ours!r} != {theirs!r}" for key, (ours, theirs) in stated.items() if ours != theirs]
    if lines:
        raise BenchError(
            f"{path} was measured on another config (asked for != stored):\n  " + "\n  ".join(lines) + "\nMeasure the "
            "stored config, or write a new --json file to compare with"
        )


def ratio(figure: Figure, earlier: Report | None) -> str:
    """A figure over the earlier one; empty where there is none, or where it was 0."""
    before = None if earlier is None else earlier.figures.get(figure.name)
    return "" if before is None or not before.value else f"{figure.value / before.value:.3f}x"


def hardware() -> dict[str, Any]:
    """The devices and the host, as a report keeps them."""
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "host": _processor(),
        "cores": os.cpu_count(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that figures depend on."""
    return {"python": platform.python_version(), **distributed.versions()}


def now() -> str:
    """Date and time in UTC, to the minute."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def load_average() -> float | None:
    """The host's load over the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def shown(value: float, unit: str) -> str:
    """A number with its unit: shares as per cent, bytes with a binary prefix, others in four digits."""
    if unit == "share":
        return f"{value:.1%}"
    if unit == "B":
        power = 0
        while abs(value) >= 1024 and power < len(_BINARY) - 1:
            value, power = value / 1024, power + 1
        return f"{value:.4g} {_BINARY[power]}"
    return f"{value:,.0f} {unit}".rstrip() if abs(value) >= 1000 or not unit else f"{value:.4g} {unit}"


def _range(figure: Figure) -> str:
    if figure.least is None or figure.most is None:
        return ""
    least, most = (shown(value, figure.unit).removesuffix(figure.unit).strip() for value in (figure.least, figure.most))
    return f"{least} to {most}"


def _hardware(found: dict[str, Any]) -> str:
    host = f"{found['cores']} cores of {found['host']}"
    devices = f"{found['devices']} {found['device']} device(s)" + f", {found['processes']} processes" * (
        found["processes"] > 1
    )
    return f"{devices} on {host}"


def _processor() -> str:
    """The processor's name, as the system tells it."""
    if epath.Path("/proc/cpuinfo").exists():
        for line in epath.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def named(figures: Sequence[Figure]) -> dict[str, Figure]:
    """Figures by name."""
    return {figure.name: figure for figure in figures}
