"""Attacks on interp: bad files and settings, misuses from Python, kills.  By hand: `cd tests && python -m attack`.

Nothing may end in a traceback, nothing wrong may be accepted, nothing may be lost.  `tests/test_attack.py` runs a part.
"""
