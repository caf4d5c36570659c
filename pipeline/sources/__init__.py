"""Sources of structures: local files, archives, URLs and OPTIMADE servers."""
