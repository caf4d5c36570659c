"""Sources of structures: local files, archives, URLs and OPTIMADE servers.

To add a file format, first let `formats` detect it from the first bytes of a file. For a new kind of server, write a
client like `optimade_client`.
"""
