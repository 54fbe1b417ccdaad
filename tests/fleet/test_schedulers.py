"""Dask, loky and ray, really: two workers each do the shards of a calibration and the jobs of a fleet.

    pip install -e '.[cluster]' && python -m pytest -m long tests/fleet/test_schedulers.py

What they are given are a function of the front door, paths and options; what comes back are facts and rows.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import chain, residual

from onnxprune.api import calibrate, fleet, merge

pytestmark = pytest.mark.long


@contextmanager
def dask() -> Iterator[Executor]:
    """Two worker processes of dask, as an executor."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


@contextmanager
def loky() -> Iterator[Executor]:
    """Two worker processes of loky, as joblib has them."""
    with pytest.importorskip("loky").ProcessPoolExecutor(max_workers=2) as executor:
        yield executor


class _OnRay(Executor):
    """Submits to ray, which has no executor of this kind."""

    def __init__(self, ray) -> None:  # type: ignore[no-untyped-def]
        self.ray = ray

    def submit(self, fn, /, *args, **kwargs) -> Future:  # type: ignore[no-untyped-def,type-arg]
        return self.ray.remote(fn).remote(*args, **kwargs).future()


@contextmanager
def ray() -> Iterator[Executor]:
    """Two workers of ray."""
    module = pytest.importorskip("ray")
    module.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield _OnRay(module)
    finally:
        module.shutdown()


@pytest.mark.parametrize("scheduler", [dask, loky, ray])
def test_shards_and_fleets_run_on_it(
    scheduler: Callable[[], AbstractContextManager[Executor]], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    onnx.save(chain(), tmp_path / "in" / "a.onnx")
    onnx.save(residual(), tmp_path / "in" / "b.onnx")
    (tmp_path / "in" / "bad.onnx").write_bytes(b"nonsense")
    model, samples = tmp_path / "in" / "b.onnx", str(tmp_path / "s.npz")
    np.savez(samples, x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    with scheduler() as executor:
        parts = [tmp_path / f"part{n}.npz" for n in (1, 2, 3)]
        futures = [
            executor.submit(calibrate, model, part, calib=samples, shard=f"{n}/3")
            for n, part in enumerate(parts, 1)
        ]
        assert [future.result().shard for future in futures] == ["1/3", "2/3", "3/3"]
        table = fleet(tmp_path / "in", tmp_path / "far", ratio=0.5, executor=executor)
    merge(parts, tmp_path / "merged.npz")
    calibrate(model, tmp_path / "one.npz", calib=samples)
    assert (tmp_path / "merged.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
    assert [row["name"] for row in table.failed] == ["bad"]
    near = fleet(tmp_path / "in", tmp_path / "near", ratio=0.5)
    assert {n: r["sha256"] for n, r in table.rows.items()} == {n: r["sha256"] for n, r in near.rows.items()}
