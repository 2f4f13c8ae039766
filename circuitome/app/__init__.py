"""The local app: a server on this machine, a worker that does its jobs, and a table of jobs that outlives both."""
