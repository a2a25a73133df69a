"""Checks of a run that need no accelerator, to be made before one is paid for.

versions   packages that do not fit together       devices   the number to simulate
pictures   the data, its files, and the views      parts     the components of a run
space      memory of the devices, disk space       diagnosis all of these in turn
findings   the facts and problems they report      other_chips   --for
"""
