"""Models by name: a catalogue of published weights, and how a name becomes an ONNX file.

`resolve` finds the file: in the package `equiscreen-models` (`bundled`), in the cache (`cache`), or by exporting the
weights, which come from a package or are downloaded (`downloads`). `catalog` lists the names.
"""
