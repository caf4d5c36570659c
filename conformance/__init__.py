"""Physical laws that every interatomic potential must obey, as a pytest suite for any potential.

``pytest --pyargs equiscreen.conformance --model MODEL`` tests an ONNX file, published weights or a checkpoint;
``--calculator MODULE:NAME --elements Al,Cu`` tests any ASE calculator (`plugin` defines these options). `laws` holds
the laws; a test class that inherits `laws.PotentialLaws` tests a potential of your own. Only `subject`, which finds a
model by its name, imports more than `pipeline` and `export.runtime`.
"""
