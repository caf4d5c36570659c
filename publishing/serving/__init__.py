"""A web server for one scores dataset: queries, structures, the dataset's own files, and a page to browse them."""
