"""Evaluation of exported models with ONNX Runtime; needs neither PyTorch nor e3nn.

Another kind of device goes into `providers`; another simulation code gets an adapter like `ase_calculator`.
"""
