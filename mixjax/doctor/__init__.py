"""Everything that can be known of a run before an accelerator is paid for.

versions   packages that do not go together        devices   how many to count for
pictures   the data, its files, and the views      parts     what a run is made of
space      bytes on the devices and on the disk    diagnosis all of these in turn
"""
