"""Passes of Olive, so that pruning is one step of a workflow, before or after its own quantisers.

Olive finds a pass by a package configuration. ``python -m onnxprune.integrations.olive PACKAGE.json`` writes one, with
all that Olive has itself and the two passes of this file::

    olive run --config workflow.json --package-config PACKAGE.json

A pass takes the fields of `onnxprune.Options` or of `onnxprune.sparsify` by their names, and ``data_config`` as Olive's
quantisers do; what data it gives are the samples.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from onnxprune import api
from onnxprune.files.commit import write_text
from onnxprune.integrations import base_of
from onnxprune.options.declare import default_of, help_of, specs
from onnxprune.options.pruning import Options
from onnxprune.options.sparsity import SparseOptions

__all__ = ["OnnxPrune", "OnnxSparsify", "package_config"]

if TYPE_CHECKING:  # it may not be there

    class Pass:
        """That of Olive."""

else:
    Pass = base_of("olive.passes", "Pass", "Olive", "olive-ai")

#: Fields that a step of a workflow has no use for: Olive says itself where the result goes.
_LEFT_OUT = {"in_place"}


class OnnxPrune(Pass):
    """Cut channels, heads and neurons out of a model, proved against the masked original."""

    kind: Any = Options

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        """Return Olive's description of the options, from their own declarations."""
        param = import_module("olive.passes.pass_config").PassConfigParam
        hints = get_type_hints(cls.kind)
        config = {
            spec.name: param(
                type_=_type(hints[spec.name]),
                default_value=None,
                required=default_of(spec) is dataclasses.MISSING,
                description=help_of(spec),
            )
            for spec in specs(cls.kind)
            if spec.name not in _LEFT_OUT
        }
        data = import_module("olive.data.config").DataConfig
        config["data_config"] = param(
            type_=data | dict[str, Any] | None,
            default_value=None,
            description="Olive's data to take as unlabelled samples, instead of calib",
        )
        return config

    @staticmethod
    def run_pruner(source: str, output: str, fields: dict[str, Any]) -> None:
        """Call the front door."""
        api.prune(source, output, **fields)

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        """Run the step: Olive's handler of a model in, one of the result out."""
        place = Path(output_model_path)
        if place.suffix != ".onnx":
            place = place / "model.onnx"
        place.parent.mkdir(parents=True, exist_ok=True)
        given = {n: v for n, v in config.model_dump().items() if v is not None}
        data = given.pop("data_config", None)
        names = {spec.name for spec in dataclasses.fields(self.kind)}
        fields = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items() if n in names}
        if data is not None:
            fields["calib"] = list(_batches(data, model))
        self.run_pruner(str(model.model_path), str(place), fields)
        return import_module("olive.model").ONNXModelHandler(
            model_path=str(place), model_attributes=model.model_attributes
        )


class OnnxSparsify(OnnxPrune):
    """Set weights to zero in a pattern; the shapes stay."""

    kind = SparseOptions

    @staticmethod
    def run_pruner(source: str, output: str, fields: dict[str, Any]) -> None:
        """Call the front door."""
        api.sparsify(source, output, **fields)


def package_config() -> dict[str, Any]:
    """Return Olive's own package configuration with the passes of this file in it."""
    package = import_module("olive.package_config").OlivePackageConfig
    config: dict[str, Any] = json.loads(Path(package.get_default_config_path()).read_text())
    everything = {
        f"supported_{what}": ["*"] for what in ("providers", "accelerators", "precisions", "algorithms")
    }
    for each in (OnnxPrune, OnnxSparsify):
        path = f"onnxprune.integrations.olive.{each.__name__}"
        config["passes"][each.__name__] = {"module_path": path, **everything}
    return config


def _type(hint: Any) -> Any:
    """Return a type that JSON can hold: lists for tuples, anything for what has none."""
    text = str(hint)
    if text.startswith("tuple["):
        return str | list[str] | None
    return hint | None if hint in (str, int, float, bool) else Any


def _batches(data: Any, model: Any) -> Any:
    config = import_module("olive.data.config").DataConfig
    loader = (
        config.model_validate(data)
        .to_data_container()
        .create_calibration_dataloader(model_path=model.model_path, io_config=model.io_config)
    )
    while (batch := loader.get_next()) is not None:
        yield batch


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m onnxprune.integrations.olive PACKAGE.json")
    write_text(Path(sys.argv[1]), json.dumps(package_config(), indent=1) + "\n")
