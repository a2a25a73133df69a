"""The process and the machine: several processes, signals, the command line, files."""
