"""Evaluation of exported models with ONNX Runtime; needs neither PyTorch nor e3nn."""
