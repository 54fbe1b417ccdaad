"""onnxruntime: sessions, inputs and their sizes."""
