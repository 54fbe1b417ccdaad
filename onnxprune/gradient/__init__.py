"""Reverse-mode gradients of an ONNX graph, as an ONNX graph: no framework, any execution provider."""
