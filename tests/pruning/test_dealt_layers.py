"""Moments over shares of the layers, dealt by what they cost: put together they have the bytes of one run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from sharded_models import kinds

import onnxprune
from onnxprune.api import calibrate, merge
from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.shards import Shard
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import gather, walk
from onnxprune.reconstruction.layer import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and samples."""
    place = tmp_path_factory.mktemp("dealt")
    onnx.save(kinds(), place / "in.onnx")
    x = np.random.default_rng(0).standard_normal((75, 6, 8, 8)).astype(np.float32) + 0.5
    np.savez(place / "s.npz", x=x)
    return place


@pytest.fixture
def one_by_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Moments where each layer is a stretch of its own."""
    monkeypatch.setattr(walk, "ABREAST", 1)
    calibrate(folder / "in.onnx", tmp_path / "whole.npz", calib=str(folder / "s.npz"))
    return (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize(("shares", "parts"), [(1, 2), (1, 4), (3, 2), (2, 3)])
def test_layers_that_are_dealt_have_the_bytes_of_one_run(
    folder: Path, tmp_path: Path, one_by_one: bytes, shares: int, parts: int
) -> None:
    files = []
    for n in range(1, shares + 1):
        for k in range(1, parts + 1):
            path = tmp_path / f"{n}-{k}.npz"
            given = {"shard": f"{n}/{shares}"} if shares > 1 else {}
            calibrate(folder / "in.onnx", path, calib=str(folder / "s.npz"), layers=f"{k}/{parts}", **given)
            files.append(path)
    merge(files[::-1], tmp_path / "merged.npz")
    assert (tmp_path / "merged.npz").read_bytes() == one_by_one
    weights = [{name.split("/")[0] for name in np.load(path).files if "/" in name} for path in files[:parts]]
    assert sum(map(len, weights)) == len(set.union(*weights)) > parts / 2
    lost, *others = files
    with pytest.raises(CalibrationError, match=f"layers 1/{parts} missing"):
        merge(others, tmp_path / "lost.npz")
    with pytest.raises(CalibrationError, match="give each shard once"):
        merge([lost, *files], tmp_path / "twice.npz")
    with pytest.raises(CalibrationError, match=f"layers 1/{parts} alone"):
        onnxprune.prune(folder / "in.onnx", tmp_path / "o.onnx", ratio=0.5, moments=str(lost))


def test_dear_layers_are_dealt_apart(one_by_one: bytes, folder: Path) -> None:
    analysis = analyse(Model.load(folder / "in.onnx"))
    samples = load_samples(analysis.model.proto.graph, str(folder / "s.npz"))
    dealt = gather.Dealt.of(analysis, samples, Settings())
    stretches = [[site] for site in dealt.layers]
    parts = [dealt.own(Shard(k, 2), stretches) for k in (1, 2)]
    assert parts[0] | parts[1] == set(range(len(stretches)))
    costs = [sum(dealt._cost(dealt.layers[n]) for n in part) for part in parts]
    assert max(costs) - min(costs) <= max(dealt._cost(site) for site in dealt.layers)


def test_more_machines_than_stretches_of_layers_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The layers are looked at in .* 99 machines can't share them"):
        calibrate(folder / "in.onnx", tmp_path / "p.npz", calib=str(folder / "s.npz"), layers="1/99")
    with pytest.raises(UsageError, match="--layers must be a share"):
        calibrate(folder / "in.onnx", tmp_path / "p.npz", calib=str(folder / "s.npz"), layers="3/2")
    assert not (tmp_path / "p.npz").exists()
