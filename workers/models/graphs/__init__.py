"""Parts of the ONNX adapters: a graph opened, pictures made for it, and what YOLO exports answer. None needs torch."""
