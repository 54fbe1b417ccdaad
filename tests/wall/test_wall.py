"""The wall: a crash, a hang, a hunger for memory and a signal end as one sentence and an exit code, nothing left."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.files import opening
from onnxprune.wall import board as wall

from nets import build, convs, node, normal  # isort: skip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is a wall on Linux only")

#: A command line of a few lines: the child does BODY in a stage, the parent watches.
FRAME = """
import os, sys, time
from onnxprune.wall import board as wall, watch as watching
wall.SECONDS, wall.GRACE = 0.3, (0.2, 0.2)
code = watching.guard()
if code is None:
    with wall.stage("A stage", code=8):
{body}
    wall.finish(0)
    code = 0
sys.exit(code)
"""


def start(body: str, folder: Path) -> "subprocess.Popen[str]":
    text = FRAME.format(body="".join(f"        {line}\n" for line in body.splitlines()))
    return subprocess.Popen(
        [sys.executable, "-c", text], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(body: str, folder: Path) -> tuple[int, str, str]:
    child = start(body, folder)
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err


def test_sound_work_is_as_without(tmp_path: Path) -> None:
    code, out, err = run(
        "print('result')\nprint('progress', file=sys.stderr)\nos.write(2, b'a library\\n')", tmp_path
    )
    assert (code, out, sorted(err.split("\n"))) == (0, "result\n", ["", "a library", "progress"])


def test_an_exit_code_is_passed_on(tmp_path: Path) -> None:
    assert run("wall.finish(4)\nos._exit(0)", tmp_path) == (4, "", "")
    assert run("wall.finish(0)\nos.abort()", tmp_path)[0] == 0  # what happens after the work doesn't matter


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("os.abort()", "A stage crashes the process (SIGABRT); it is not the model's work: look"),
        ("os.kill(os.getpid(), 11)", "A stage crashes the process (SIGSEGV)"),
        ("os.write(2, b'assertion failed\\n')\nos.abort()", "A stage crashes the process (SIGABRT)"),
        ("os.kill(os.getpid(), 9)", "A stage was killed from outside"),
        ("while True: pass", "A stage takes longer than 0.3 s, the most for a model of this size"),
        ("wall.limit(seconds=0.1)\nwith wall.stage('B', code=8):\n while True: pass", "B takes longer than 0.1 s"),
        ("wall.limit(memory=60e6)\nkept = bytearray(10**8)\ntime.sleep(9)", "A stage needs more than 60 MB of memory"),
        ("os._exit(0)", "A stage ended the process before the work was done"),
    ],
    ids=["abort", "segv", "assertion", "killed", "hang", "inner hang", "memory", "exit"],
)  # fmt: skip
def test_one_sentence_and_the_code_of_the_stage(body: str, says: str, tmp_path: Path) -> None:
    code, out, err = run(body, tmp_path)
    assert (code, out) == (8, "")
    assert err.startswith(f"onnxprune: error: {says}")
    assert err.count("\n") == 1
    assert err.endswith(".\n")


def test_what_is_half_written_goes(tmp_path: Path) -> None:
    body = """os.mkdir("half"); open("half/file", "w").close(); open("whole", "w").close()
with wall.litter("half"), wall.litter("also"):
    open("also", "w").close()
    with wall.litter("whole"): pass
    os.abort()"""
    assert run(body, tmp_path)[0] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_what_does_not_listen(number: signal.Signals, code: int, tmp_path: Path) -> None:
    body = """import signal
for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
print("ready", flush=True)
wall.limit(seconds=99)
with wall.stage("A library"):
    time.sleep(99)"""
    child = start(body, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == code
    assert err == ("onnxprune: error: interrupted; what was not finished is gone.\n" if code == 130 else "")


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    child = start("print(os.getpid(), flush=True)\ntime.sleep(99)", tmp_path)
    assert child.stdout is not None
    inner = int(child.stdout.readline())
    child.kill()
    child.communicate(timeout=30)
    for _ in range(500):
        try:
            os.kill(inner, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("the child lives on")


def test_noise_has_an_end(tmp_path: Path) -> None:
    code, _, err = run("for _ in range(4000): os.write(2, b'x' * 99 + b'\\n')", tmp_path)
    assert code == 0
    assert len(err) == wall.NOISE


def endless() -> onnx.ModelProto:
    """A Loop that never ends, as far as anyone lives."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["v"], ["w"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, None)],
        [value("d", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["r"]),
        helper.make_node("Loop", ["m", "t", "r"], ["y"], body=body),
    ]
    weights = [
        numpy_helper.from_array(np.ones((4, 4), np.float32), "a"),
        numpy_helper.from_array(np.ones((4, 4), np.float32), "b"),
        numpy_helper.from_array(np.int64(2**62), "m"),
        numpy_helper.from_array(np.array(True), "t"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [2, 4])], [value("y", TensorProto.FLOAT, None)], weights
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_an_endless_model_is_stopped(tmp_path: Path) -> None:
    onnx.save(endless(), tmp_path / "m.onnx")
    command = [
        sys.executable,
        "-m",
        "onnxprune",
        "prune",
        "m.onnx",
        "out.onnx",
        "--ratio",
        "0.5",
        "--max-seconds",
        "0.5",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith(
        "onnxprune: error: A run of the model in onnxruntime takes longer than 0.5 s"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_limits_grow_with_the_model() -> None:
    with wall.bounds():
        least = wall.allowed()
        wall.grow(weights=1e8)
        assert wall.allowed() > least
        wall.limit(memory=5e8)
        wall.grow(weights=1e9)
        assert wall.allowed() == 5e8
    assert wall.allowed() > least  # without limits: the machine's


def test_the_page_is_never_seen_half_written() -> None:
    """Another process that looks at any moment sees the limits as they are."""
    board = wall.Board()
    right = (wall.MEMORY, wall.SECONDS)
    watcher = os.fork()
    if not watcher:
        while wall.LIMITS.unpack_from(board.page, 16) == right:
            if board.stages():
                os._exit(0)
        os._exit(1)
    for _ in range(100_000):
        board.tell()
    board.push("the end", 1.0, 3)
    assert os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1]) == 0


def enlarging(last: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A few values in, 400 MB in the middle."""
    weights = {
        "w": normal(96, 1, 1, 1),
        "s": np.array([1, 1, 256, 256], np.float32),
        "v": normal(3, 96, 1, 1),
    }
    nodes = [
        node("Conv", "x w", "a"),
        helper.make_node("Resize", ["a", "", "s"], ["b"]),
        node("Conv", "b v", "c"),
    ]
    return build([*nodes, *last], weights, ("N", 1, 4, 4))


def test_large_outputs_may_take_what_large_inputs_may() -> None:
    with wall.bounds():
        assert onnxprune.inspect(enlarging([node("Relu", "c", "y")]), input_shapes={"x": (1, 1, 4, 4)}).groups
    with wall.bounds(), pytest.raises(ModelError, match=r"would take 403 MB, more than the 35\d MB"):
        onnxprune.inspect(enlarging([node("GlobalMaxPool", "c", "y")]), input_shapes={"x": (1, 1, 4, 4)})


def test_verification_leaves_out_sizes_that_the_wall_would_not_let_run() -> None:
    model = convs(shape=("N", 3, 8, 8))
    sizes = [n["N"] for n in onnxprune.prune(model, ratio=0.5).report.law1["sizes"]]
    with wall.bounds():
        wall.limit(memory=3.2 * 2 * 12 * 36 * 4)
        less = [n["N"] for n in onnxprune.prune(model, ratio=0.5).report.law1["sizes"]]
    assert max(sizes) > 2
    assert max(less) == 2


def test_nobody_reads_a_model_any_more_when_the_work_is_done(tmp_path: Path) -> None:
    before = threading.active_count()
    onnx.save(convs(), tmp_path / "m.onnx")
    for shape in ((2, 3, 8, 8), (2, 4, 8, 8)):
        with contextlib.suppress(onnxprune.OnnxPruneError):  # the second one doesn't fit
            onnxprune.inspect(tmp_path / "m.onnx", input_shapes={"x": shape})
        assert threading.active_count() == before


def test_a_parent_that_was_stopped_goes_on(tmp_path: Path) -> None:
    child = start("time.sleep(1)", tmp_path)
    for _ in range(4):
        time.sleep(0.1)
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        child.send_signal(signal.SIGCONT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (0, "", "")


def test_limits_grow_with_given_inputs() -> None:
    with wall.bounds():
        least = wall.allowed()
        given = {"x": np.ones((16, 3, 256, 256), np.float32)}
        onnxprune.prune(convs(shape=("N", 3, "H", "W")), ratio=0.5, inputs=given, verify=True)
        assert wall.allowed() > least + 256 * 12e6


def test_external_data_counts_for_the_limits(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [4, 64])],
        [helper.make_tensor_value_info("y", 1, [4, 64])],
        [weight],
    )
    path = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert opening.open_model(path, None).nbytes > 64 * 64 * 4
