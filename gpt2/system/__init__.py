"""What everything else stands on: users' mistakes, files, this machine, its devices, and the processes of a run."""
