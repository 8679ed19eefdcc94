"""The command line.

`main` has the commands by name; one module for each group of them is imported when it is asked for.
Nothing imports this room.
"""
