"""Moments over shares of the samples, put together: the bytes of one run, and what is made of them."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from sharded_models import kinds
from small_models import residual

import onnxprune
from onnxprune.api import calibrate, merge, sensitivity
from onnxprune.calibration import shards
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.shards import Shard, Tree, in_pieces
from onnxprune.cli import main
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.files.seal import sealed
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.pruning.sharded import MomentFacts
from onnxprune.reconstruction import gather, merging
from onnxprune.reconstruction.evidence import Collector, Rows
from onnxprune.reconstruction.from_moments import reached
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.moment_file import MomentFile

MODELS = {"residual": residual, "kinds": kinds}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, samples and their moments."""
    place = tmp_path_factory.mktemp(request.param)
    model = MODELS[request.param]()
    onnx.save(model, place / "in.onnx")
    _, *shape = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    x = np.random.default_rng(0).standard_normal((75, *shape)).astype(np.float32) + 0.5
    np.savez(place / "s.npz", x=x)
    np.savez(place / "other.npz", x=x + 1)
    calibrate(place / "in.onnx", place / "all.npz", calib=str(place / "s.npz"))
    return place


def shard(folder: Path, place: Path, number: int, of: int, samples: str = "s.npz", **more: object) -> Path:
    path = place / f"{number}-{of}-{samples}"
    given = {"calib": str(folder / samples), "shard": f"{number}/{of}", **more}
    calibrate(folder / "in.onnx", path, **given)
    return path


@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_merged_shards_have_the_bytes_of_one_run(folder: Path, tmp_path: Path, of: int) -> None:
    parts = [shard(folder, tmp_path, n, of) for n in range(1, of + 1)]
    merge(parts[::-1], tmp_path / "merged.npz")
    assert (tmp_path / "merged.npz").read_bytes() == (folder / "all.npz").read_bytes()


def test_moments_differ_with_the_seed_of_the_positions_and_with_the_samples(
    folder: Path, tmp_path: Path
) -> None:
    """The negative control."""
    whole = (folder / "all.npz").read_bytes()
    calibrate(folder / "in.onnx", tmp_path / "seed.npz", calib=str(folder / "s.npz"), seed=1)
    calibrate(folder / "in.onnx", tmp_path / "other.npz", calib=str(folder / "other.npz"))
    assert len({whole, *(p.read_bytes() for p in tmp_path.iterdir())}) == 3


def test_a_machine_that_holds_few_pieces_at_a_time_gives_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "MOST_BYTES", 1 << 17)
    waves = []
    monkeypatch.setattr(
        gather.Dealt,
        "waves",
        lambda self, part, inner=gather.Dealt.waves: waves.append(inner(self, part)) or waves[-1],
    )
    calibrate(folder / "in.onnx", tmp_path / "few.npz", calib=str(folder / "s.npz"))
    assert len(waves[0]) > 1
    assert (tmp_path / "few.npz").read_bytes() == (folder / "all.npz").read_bytes()


def test_pruning_by_merged_moments_is_pruning_by_those_of_one_run(folder: Path, tmp_path: Path) -> None:
    merge([shard(folder, tmp_path, n, 2) for n in (1, 2)], tmp_path / "merged.npz")
    for more in ({}, {"calib": str(folder / "s.npz"), "recover": "lstsq"}):
        made = []
        for name in (folder / "all.npz", tmp_path / "merged.npz"):
            output = tmp_path / f"{name.stem}.onnx"
            onnxprune.prune(
                folder / "in.onnx", output, target="params=0.6", align=1, moments=str(name), **more
            )
            made.append(output.read_bytes())
        assert made[0] == made[1]


def test_curves_are_those_of_the_samples_where_all_positions_are_read(folder: Path) -> None:
    """Positions are fewer than a fit may use, so moments and samples tell the same but for the order of sums."""
    one = sensitivity(folder / "in.onnx", moments=str(folder / "all.npz"))
    other = sensitivity(folder / "in.onnx", calib=str(folder / "s.npz"), rotate=False)
    by_name = {g["name"]: g for g in other.to_json()["groups"]}
    assert by_name
    for group in one.to_json()["groups"]:
        assert [n for n, _ in group["curve"]] == [n for n, _ in by_name[group["name"]]["curve"]]
        np.testing.assert_allclose(group["curve"], by_name[group["name"]]["curve"], rtol=5e-3, atol=1e-6)


def test_layers_are_fitted_by_moments_alone_better_than_left_as_they_are(
    folder: Path, tmp_path: Path
) -> None:
    given = np.load(folder / "s.npz")["x"]

    def error(**more: object) -> float:
        onnxprune.prune(folder / "in.onnx", tmp_path / "o.onnx", ratio=0.4, align=1, **more)
        one, other = (_run(p, given) for p in (folder / "in.onnx", tmp_path / "o.onnx"))
        return float(np.square(one - other).mean())

    moments = str(folder / "all.npz")
    assert error(moments=moments) < 0.9 * error(moments=moments, recover="none")


@pytest.mark.parametrize(("recover", "fitted"), [("lstsq", True), ("none", False)])
def test_what_moments_alone_leave_out_is_told(folder: Path, recover: str, fitted: bool) -> None:
    moments = str(folder / "all.npz")
    notes = onnxprune.prune(
        folder / "in.onnx", ratio=0.4, align=1, moments=moments, recover=recover
    ).report.notes
    (said,) = [note for note in notes if "without --calib" in note]
    assert ("fitted to inputs of the original, not to those that the cut model gives it" in said) is fitted
    assert "nothing was compared with the original" in said


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    from onnxruntime import InferenceSession

    session = InferenceSession(path)
    size = session.get_inputs()[0].shape[0]
    parts = np.split(x, len(x)) if size == 1 else [x]
    return np.concatenate([session.run(None, {"x": part})[0] for part in parts])


def test_targets_from_moments_are_those_of_rows() -> None:
    """What the layer's weights give, with its bias, against rows that are added one by one."""
    model = Model.load(residual())
    site = next(s for s in sites(analyse(model)) if s.view.width > 20)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, site.view.channels, 8, 8)).astype(np.float32)
    rows = Rows(np.arange(320), 256)
    matrices, bias = gather_weights(site, model)
    y = np.concatenate([site.view.x(x, rows.index)[0] @ matrices[0] + bias[0]]).astype(np.float32)
    kept, plain = Collector(site.view), Collector(site.view, linear=True)
    kept.add(x, y, rows)
    plain.add(x, np.zeros((320, 0), np.float32), rows)
    one, other = kept.evidence(), reached(site, plain.evidence(), model)
    for a, b in ((one.fitting, other.fitting), (one.aside, other.aside)):
        assert a.n == b.n
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a.gram, b.gram, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(a.square, b.square, rtol=1e-3)
    assert not np.allclose(one.fitting.mean, one.aside.mean, rtol=1e-4, atol=1e-5)


def gather_weights(site: object, model: Model) -> tuple[np.ndarray, np.ndarray]:
    from onnxprune.reconstruction.layer import weights_of

    return weights_of(site, model)


class Words:
    """A sum in which brackets and order are seen."""

    def __init__(self, text: str) -> None:
        self.text = text

    def merge(self, other: "Words") -> None:
        self.text = f"({self.text} {other.text})"


@pytest.mark.parametrize("pieces", [1, 2, 7, 8, 45, 64])
def test_any_cut_of_the_pieces_gives_the_same_sum(pieces: int) -> None:
    rng = np.random.default_rng(pieces)

    def total(edges: Sequence[int]) -> list[str]:
        whole: Tree[Words] = Tree(pieces)
        for first, stop in pairwise(edges):
            part: Tree[Words] = Tree(pieces)
            for n in range(first, stop):
                part.add((n, n + 1), Words(str(n)))
            for span, value in part.nodes:
                whole.add(span, value)
        assert [span for span, _ in whole.nodes] == [(0, pieces)]
        return [value.text for _, value in whole.nodes]

    once = total([0, pieces])
    assert once[0].count("(") == pieces - 1
    for _ in range(20):
        inner = rng.choice(np.arange(1, pieces), rng.integers(0, pieces), replace=False) if pieces > 1 else []
        assert total([0, *sorted(inner), pieces]) == once
    tree: Tree[Words] = Tree(pieces)
    for n in range(pieces - 1):
        tree.add((n, n + 1), Words(str(n)))
    assert [span for span, _ in tree.nodes] != [(0, pieces)]


def test_shares_are_all_pieces_once() -> None:
    for pieces in (1, 5, 64):
        for of in range(1, pieces + 1):
            spans = [Shard(n, of).span(pieces) for n in range(1, of + 1)]
            assert [n for first, stop in spans for n in range(first, stop)] == list(range(pieces))
    with pytest.raises(UsageError, match="The samples fall into 5 pieces, so 6 shards can't share them"):
        Shard(1, 6).span(5)
    samples = Samples([{"x": np.zeros((n, 2))} for n in (7, 30, 63)], [7, 30, 63], None, "", {"x": 0})
    cut, parts = in_pieces(samples)
    assert len(parts) <= shards.PIECES
    assert [b for p in parts for b in p.batches] == list(range(len(cut.batches)))
    assert [p.before for p in parts] == [sum(cut.counts[: p.batches.start]) for p in parts]
    assert sum(cut.counts) == 100


def refused(parts: Sequence[Path], output: Path, says: str) -> None:
    with pytest.raises(CalibrationError, match=says) as caught:
        merge(parts, output)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not output.exists()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and three shards of its moments."""
    place = tmp_path_factory.mktemp("plain")
    onnx.save(residual(), place / "in.onnx")
    onnx.save(residual(4), place / "small.onnx")
    x = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(place / "s.npz", x=x)
    np.savez(place / "other.npz", x=x[::-1])
    for n in (1, 2, 3):
        shard(place, place, n, 3)
    return place


def test_shards_that_are_not_those_of_one_run_are_refused(plain: Path, tmp_path: Path) -> None:
    one, two, three = (plain / f"{n}-3-s.npz" for n in (1, 2, 3))
    output = tmp_path / "m.npz"
    refused([one, three], output, "Shard 2/3 of the samples is missing")
    refused([two], output, "Shards 1/3, 3/3 of the samples are missing")
    refused([one, two, three, two], output, "are both shard 2/3; give each shard once")
    refused([one, two, shard(plain, tmp_path, 3, 3, "other.npz")], output, "was made with other samples than")
    refused([one, two, shard(plain, tmp_path, 3, 3, seed=1)], output, "was made with another --seed than")
    refused([one, two, shard(plain, tmp_path, 2, 2)], output, "is shard 2/2, and .* is one of 3")
    files = [MomentFile.open(path) for path in (one, two, three)]
    files[2] = replace(files[2], header=replace(files[2].header, part=Shard(1, 2)))
    with pytest.raises(CalibrationError, match=r"is of the layers 1/2, and .* of all layers"):
        merging._checked(files)
    odd = shard(
        plain, tmp_path, 1, 3, "other.npz"
    )  # the one that isn't of the run is named, wherever it stands
    refused([odd, two, three], output, rf"^'{odd}' was made with other samples than '{two}'")
    refused([one, two, three, plain], output, rf"'{plain}' is a folder; .* such as '{plain / '1-3-s.npz'}'")
    small = tmp_path / "small.npz"
    calibrate(plain / "small.onnx", small, calib=str(plain / "s.npz"), shard="3/3")
    refused([one, two, small], output, "was made with another model than")


def test_what_is_no_file_of_moments_is_refused(plain: Path, tmp_path: Path) -> None:
    one, two, three = (plain / f"{n}-3-s.npz" for n in (1, 2, 3))
    output = tmp_path / "m.npz"
    refused([one, two, plain / "s.npz"], output, "can't be read as moments .*give what 'onnxprune calibrate'")
    refused(
        [one, two, plain / "gone.npz"],
        output,
        "gone.npz' can't be read as moments .*No such file or directory: '[^']*'[)]",
    )
    half = tmp_path / "half.npz"
    half.write_bytes(three.read_bytes()[:-1000])
    refused([one, two, half], output, "half.npz' can't be read as moments")
    for change, says in (
        (lambda name, data: data[:-8] + b"\xff" * 8 if "gram" in name else data, "isn't finite"),
        (lambda name, data: None if "/fitting.gram" in name else data, "can't be read as moments"),
        (lambda name, data: None if name.startswith("0/") else data, "don't hold all samples"),
    ):
        rewritten(three, half, change)
        refused([one, two, half], output, says)


def test_one_changed_byte_is_refused_wherever_it_is(plain: Path, tmp_path: Path) -> None:
    """In data, whose checksums the archive has, and in its own fields, as the time of a member, which have none."""
    one, two, three = (plain / f"{n}-3-s.npz" for n in (1, 2, 3))
    output, odd = tmp_path / "m.npz", tmp_path / "odd.npz"
    good = three.read_bytes()
    merge([one, two, three], output)
    output.unlink()
    rng = np.random.default_rng(0)
    header, central = 10, good.index(b"PK\x01\x02") + 12  # times of a local and of a central header
    for at in (0, header, central, len(good) - 1, len(good) - 65, *rng.integers(0, len(good), 40)):
        changed = bytearray(good)
        changed[at] ^= 1 << int(rng.integers(8))
        odd.write_bytes(changed)
        refused([one, two, odd], output, "odd.npz' can't be read as moments|was made with|odd.npz' is shard")
    odd.write_bytes(good + b"\0")
    refused([one, two, odd], output, "can't be read as moments")


def rewritten(source: Path, target: Path, change: object) -> None:
    with zipfile.ZipFile(source) as a, target.open("wb") as file, sealed(file) as b:
        for name in a.namelist():
            data = change(name, a.read(name))
            if data is not None:
                b.writestr(name, data)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("prune in.onnx o.onnx --ratio 0.5 --moments 1-3-s.npz", 8, "holds the moments of shard 1/3 alone"),
        ("prune small.onnx o.onnx --ratio 0.5 --moments all.npz", 8, "holds the moments of another model"),
        ("prune in.onnx o.onnx --ratio 0.5 --moments s.npz", 8, "can't be read as moments"),
        (
            "prune in.onnx o.onnx --ratio 0.5 --moments all.npz --criterion l2",
            2,
            "reads weights, and --moments",
        ),
        ("prune in.onnx o.onnx --ratio 0.5 --moments all.npz --recover distill", 2, "moments alone don't do"),
        ("prune in.onnx o.onnx --ratio 0.5 --moments all.npz --steps 2", 2, "--steps needs samples"),
        ("prune in.onnx o.onnx --min-agreement 0.9 --moments all.npz", 2, "needs samples"),
        ("calibrate in.onnx -o o.npz", 2, "'calibrate' needs samples"),
        ("calibrate in.onnx --calib s.npz -o o.npz --shard 3/2", 2, "--shard must be a share such as 2/8"),
        ("calibrate in.onnx --calib s.npz -o o.npz --shard two", 2, "--shard must be a share such as 2/8"),
        (
            "calibrate in.onnx --calib s.npz -o o.npz --shard 1/99",
            2,
            "fall into 36 pieces, so 99 shards can't",
        ),
        ("calibrate in.onnx --calib s.npz -o s.npz", 7, "s.npz"),
        ("merge 1-3-s.npz -o 1-3-s.npz", 7, "1-3-s.npz"),
        ("merge 1-3-s.npz -o -", 7, "moments need a file of their own"),
        ("calibrate in.onnx --calib s.npz -o -", 7, "moments need a file of their own"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    words: str,
    code: int,
    says: str,
    plain: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(plain)
    if not Path("all.npz").exists():
        merge([f"{n}-3-s.npz" for n in (1, 2, 3)], "all.npz")
    before = {p.name: p.read_bytes() for p in plain.iterdir()}
    assert main(words.split()) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert says in said.err
    assert {p.name: p.read_bytes() for p in plain.iterdir()} == before


def test_what_is_told_of_a_file(
    plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(plain)
    assert (
        main(["calibrate", "in.onnx", "--calib", "s.npz", "--shard", "2/3", "-o", "told.npz", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    facts = MomentFacts(**{name: value for name, value in told.items() if name != "format"})
    assert "over shard 2/3 of 36 samples (" in facts.brief()
    Path("told.npz").unlink()
    assert (told["shard"], told["samples"], told["layers"]) == ("2/3", 36, 6)
    assert told["nbytes"] == (plain / "2-3-s.npz").stat().st_size


def test_labels_among_the_samples_change_nothing(plain: Path, tmp_path: Path) -> None:
    with np.load(plain / "s.npz") as samples:
        x = dict(samples)
    np.savez(tmp_path / "labelled.npz", **x, y=np.zeros(len(next(iter(x.values()))), np.int64))
    for name, given in (
        ("a", {"calib": str(plain / "s.npz")}),
        ("b", {"calib": str(tmp_path / "labelled.npz"), "labels": "y"}),
    ):
        calibrate(plain / "in.onnx", tmp_path / f"{name}.npz", **given)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
