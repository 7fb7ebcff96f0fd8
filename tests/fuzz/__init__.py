"""Readers of other people's bytes, each as a function that may do nothing but succeed or refuse in its documented way.

    python -m tests.fuzz image --seconds 300        with coverage guidance (the extra `fuzz`: atheris, libFuzzer)
    python -m tests.fuzz all --seconds 1800         every target, for half an hour of CPU together (`make fuzz`)

`tests/unit/test_fuzz.py` runs all of them for some seconds in the suite.
"""
