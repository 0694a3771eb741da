"""The paths: a file for each group, with a blueprint that `create_app` registers. A path checks what came in, asks a room that
knows, and answers; it decides nothing itself.
"""
