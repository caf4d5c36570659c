"""Sources of structures: local files, archives, URLs and OPTIMADE servers.

To add a file format, begin with its first bytes in `formats`; a new kind of server gets a client like
`optimade_client`.
"""
