"""The material of a page, read from a run or from its folder; anything may be missing."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from torch import Tensor

from equipoise.integrate.run import Run
from equipoise.store import Store

POINTS = 300  # of a curve: more are not seen, and the page has to stay small


Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Material:
    """The records of a run, its weights at both ends, and what it was asked and found.

    `table` is tidy, with the columns of `store.Record`; `layers` holds weight, bias and kind of each layer from the
    input up; `manifest` and `summary` are those of the run folder.

    >>> from equipoise.store import Record
    >>> empty = Material(pd.DataFrame(columns=list(Record._fields)))
    >>> empty.curves("spectrum", "rank_one_residual")
    {}
    """

    table: pd.DataFrame
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    final: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Sequence[Json] = ()
    manifest: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str]) -> "Material":
        """Read a run folder, finished or not. Raises `StoreError` when it is none."""
        with Store.open(folder) as store:
            saved = store.weights()
            initial, final = (store.load_weights(name)[0] if name in saved else {} for name in ("initial", "final"))
            layers = store.manifest.get("layers") or ()
            return cls(store.table(), initial, final, layers, store.manifest, store.result() or {})

    @classmethod
    def of_run(cls, run: Run) -> "Material":
        """Read a run, and its folder where it has one."""
        if run.folder is not None:
            return cls.of_folder(run.folder)
        layers = [{"weight": layer.weight, "bias": layer.bias, "kind": layer.kind} for layer in run.chain or ()]
        manifest = {"loss": run.loss.name, "data": asdict(run.data.provenance)}
        return cls(run.table(), run.initial, run.final, layers, manifest, run.summary())

    @property
    def widths(self) -> list[int]:
        """Of a chain: its inputs, then the outputs of every layer; empty where there is none."""
        shapes = [tuple(self.final[layer["weight"]].shape) for layer in self.layers if layer["weight"] in self.final]
        return [shapes[0][1], *(shape[0] for shape in shapes)] if shapes else []

    @property
    def kinds(self) -> dict[str, str]:
        """`relu` or `linear`, by the name of the layer's weight."""
        return {layer["weight"]: layer["kind"] for layer in self.layers}

    def curves(self, observer: str, quantity: str) -> dict[str, pd.DataFrame]:
        """The finite records of one quantity by place, in the order of their steps, thinned to what the eye can see."""
        rows = self.table.loc[(self.table["observer"] == observer) & (self.table["quantity"] == quantity)]
        return {str(place): _thin(group) for place, group in _finite(rows).groupby("place", sort=False)}

    def losses(self) -> pd.DataFrame:
        """`log R` as the value, once a step."""
        rows = self.table.drop_duplicates("growth")
        return _thin(_finite(rows.assign(value=rows["log_loss"])))

    def last(self, observer: str, quantity: str) -> dict[str, float]:
        """The latest finite value of one quantity by place."""
        return {place: float(curve["value"].iloc[-1]) for place, curve in self.curves(observer, quantity).items()}


def _finite(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.loc[np.isfinite(rows[["growth", "value"]].to_numpy(float)).all(axis=1)]


def _thin(rows: pd.DataFrame) -> pd.DataFrame:
    """Evenly spaced rows, the first and the last among them."""
    if len(rows) <= POINTS:
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, POINTS).round().astype(int)]
