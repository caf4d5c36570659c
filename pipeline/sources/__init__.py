"""Where the bytes come from: files, archives, URLs and OPTIMADE servers."""
