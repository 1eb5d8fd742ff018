"""Launchers beyond the processes of this machine, one module each."""
