"""What there is to look at: logs of runs, features, data as it is fed, results; all as pictures."""
