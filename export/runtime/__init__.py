"""Running an exported model with ONNX Runtime; needs neither PyTorch nor e3nn."""
