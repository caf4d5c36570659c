"""What the user of the command line sees: help pages, summaries of finished runs, and descriptions of files."""
