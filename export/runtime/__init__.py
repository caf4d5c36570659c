"""Evaluation of exported models with ONNX Runtime; needs neither PyTorch nor e3nn.

To support another kind of device, extend `providers`; for another simulation code, write an adapter like
`ase_calculator`.
"""
