"""Many runs of one method from one file: a grid or a search, a process for each run, one file of results."""
