"""Read sweep.h5 (or a single cell-<id>.h5) into pandas: `Sweep("sweep.h5").summary`, `.cell(id).samples`, `.trace`, …

Every column keeps its unit in `frame.attrs["units"][column]`. Nothing is guessed: a value that was not measured is NaN.
The schema is documented in results/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

SUPPORTED_MAJOR = 1


def text(value) -> str:
    """h5py gives fixed-length strings as bytes and variable-length ones as str."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.shape == ():
        return text(value[()])
    return str(value)


def plain(value):
    """An attribute as a plain Python value."""
    if isinstance(value, (bytes, str)):
        return text(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    return value


def attributes(node) -> dict:
    return {key: plain(value) for key, value in node.attrs.items()}


class Cell:
    """One measurement. Frames are read on first use."""

    def __init__(self, group: h5py.Group):
        self.group = group
        self.attrs = attributes(group)
        self.id = self.attrs.get("id") or group.name.rsplit("/", 1)[-1]
        self.status = self.attrs.get("status", "unknown")
        self.reason = self.attrs.get("reason", "")

    def columns(self, name: str) -> pd.DataFrame:
        """All equally long 1-D datasets of a subgroup as one frame; units in frame.attrs["units"]."""
        if name not in self.group:
            return pd.DataFrame()
        group, data, units = self.group[name], {}, {}
        for key, node in group.items():
            if isinstance(node, h5py.Dataset) and node.ndim == 1:
                values = node[()]
                if values.dtype.kind in "SO":
                    values = np.array([text(v) for v in values], dtype=object)
                data[key] = values
                units[key] = text(node.attrs.get("units", ""))
        length = max((len(v) for v in data.values()), default=0)
        frame = pd.DataFrame({k: v for k, v in data.items() if len(v) == length})
        frame.attrs["units"] = units
        return frame

    @property
    def samples(self) -> pd.DataFrame:
        return self.columns("samples")

    @property
    def trace(self) -> pd.DataFrame:
        """Times run on over the processes of a cell: each one's clock starts anew, so it follows the one before it."""
        frame = self.columns("trace")
        if "t_ns" in frame and len(frame):
            back = frame["t_ns"].diff().fillna(0) < 0
            ends = frame["t_ns"].shift(1).where(back).fillna(0).cumsum().astype("int64")
            frame["t_ns"] = frame["t_ns"] + ends
        for key in frame.columns:  # "unknown" is the largest unsigned value in byte columns
            if frame[key].dtype == np.uint64:
                frame[key] = frame[key].where(frame[key] != np.iinfo(np.uint64).max).astype(float)
        return frame

    @property
    def steps(self) -> pd.DataFrame:
        """One row a decode step: sample (row of `samples`), step (0 = first frame), step_ms."""
        if "frames" not in self.group or "step_ms" not in self.group["frames"]:
            return pd.DataFrame(columns=["sample", "step", "step_ms"])
        ms = self.group["frames"]["step_ms"][()]
        offset = self.group["frames"]["offset"][()].astype(int) if "offset" in self.group["frames"] else np.array([0])
        begin = offset if len(offset) and offset[-1] != len(ms) else offset[:-1]
        sample = np.searchsorted(begin, np.arange(len(ms)), side="right") - 1
        frame = pd.DataFrame({"sample": sample, "step": np.arange(len(ms)) - begin[sample] if len(ms) else [], "step_ms": ms})
        frame.attrs["units"] = {"step_ms": "ms"}
        return frame

    def _mapping(self, name: str) -> dict:
        if name not in self.group:
            return {}
        node = self.group[name]
        if isinstance(node, h5py.Dataset):
            value = plain(node[()])
            try:
                return json.loads(value)
            except (TypeError, ValueError):
                return {"value": value}
        found = attributes(node)
        for key, child in node.items():
            if isinstance(child, h5py.Dataset) and child.ndim == 0:
                found[key] = plain(child[()])
        return found

    @property
    def config(self) -> dict:
        return self._mapping("config")

    @property
    def provenance(self) -> dict:
        """Where and how it was measured: the launcher's view and the worker's facts as one mapping."""
        return {**self._mapping("provenance"), **self._mapping("provenance/facts")}

    @property
    def memory(self) -> pd.DataFrame:
        """Bytes by class: columns class, ready_bytes, peak_bytes."""
        return self.columns("memory")

    @property
    def quality(self) -> pd.DataFrame:
        return self.columns("quality")

    @property
    def log(self) -> str:
        node = self.group.get("log")
        if node is None:
            return ""
        if isinstance(node, h5py.Dataset):
            return text(node[()])
        return "\n".join(text(child[()]) for child in node.values() if isinstance(child, h5py.Dataset))


class Sweep:
    """A merged sweep. Use as a context manager or let it close with the object."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.file = h5py.File(self.path, "r")
        version = text(self.file.attrs.get("schema_version", "0"))
        if int(version.split(".")[0]) != SUPPORTED_MAJOR:
            raise ValueError(f"{path}: schema version {version}, this reader knows {SUPPORTED_MAJOR}.x")
        self.attrs = attributes(self.file)

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self.file.close()

    @property
    def summary(self) -> pd.DataFrame:
        """A row a planned cell; the columns are described by `show --definitions`."""
        if "summary" not in self.file:
            return pd.DataFrame()
        node = self.file["summary"]
        table = node[()]
        frame = pd.DataFrame({name: table[name] for name in table.dtype.names})
        for name in frame.columns:
            if frame[name].dtype == object or frame[name].dtype.kind == "S":
                frame[name] = [text(v) for v in frame[name]]
        return frame

    @property
    def job(self) -> str:
        node = self.file.get("job")
        if node is None:
            return ""
        if isinstance(node, h5py.Dataset):
            return text(node[()])
        return "\n".join(text(child[()]) for child in node.values() if isinstance(child, h5py.Dataset))

    def cells(self):
        """Every cell that has a group, in the file's order."""
        for group in self.file.get("cells", {}).values():
            yield Cell(group)

    def cell(self, identity: str) -> Cell:
        return Cell(self.file["cells"][identity])
