"""What the user of the command line sees: help pages, accounts of finished runs, and descriptions of files."""
