"""Studies: runs that are trained, measured and compared by `maskdit study NAME`; one file for each."""
