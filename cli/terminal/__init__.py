"""What people see of the command line: help pages, accounts of finished runs, and descriptions of files."""
