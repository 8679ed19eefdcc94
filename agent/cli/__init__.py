"""The command line `vouchd`.

`main` has the table of commands; a command's module is imported when the command is used.
`options`, `output` and `text` serve all commands. Nothing imports this room.
"""
