"""Counting work instead of measuring time: how many lines of npgpt a call executes."""

import sys


def lines_executed(call):
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if "npgpt" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines
