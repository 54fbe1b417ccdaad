"""The kit of an op's author: law 2, cutting commutes with the op, for a row and a node."""

from onnxprune.testing.op_law import Verdict, check_op, check_row

__all__ = ["Verdict", "check_op", "check_row"]
