"""Physical laws that every interatomic potential must obey, as a pytest suite for any potential.

``pytest --pyargs equiscreen.conformance --model MODEL`` tests an ONNX file or published weights, and ``--calculator
MODULE:FACTORY --elements Al,Cu`` any ASE calculator (`plugin`). `laws` holds the laws; a test class that inherits
`laws.PotentialLaws` tests a potential of your own. Only `subject`, which finds a model by its name, imports more than
`pipeline` and `export.runtime`.
"""
