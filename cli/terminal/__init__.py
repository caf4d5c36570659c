"""Output of the command line: help pages, summaries of runs, descriptions of files, and the response to Ctrl-C."""
