"""Tests in two rounds: the first with the packages that the README installs and no others, the second with
all, of what did not pass in the first, where it was skipped; the longest before the others, or at the end one
core would still be with them while the others idle. A plugin of pytest's, for .ci/run alone:

    PYTHONPATH=.ci pytest -p rounds
    PYTHONPATH=.ci pytest -p rounds --second-round
"""

KEY  = "rounds/passed"     # of pytest's cache
LONG = ("tests/kernels/test_cuda_compiles.py", "tests/test_pretended_gpu.py")
passed = []


def pytest_addoption(parser):
    parser.addoption("--second-round", action="store_true", help="leave out what passed in the first round")


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        passed.append(report.nodeid)


def pytest_sessionfinish(session):
    config = session.config
    is_one_of_several = hasattr(config, "workerinput")        # a process that pytest-xdist began
    if not config.getoption("second_round") and not is_one_of_several:
        config.cache.set(KEY, passed)


def pytest_collection_modifyitems(config, items):
    if config.getoption("second_round"):
        before = set(config.cache.get(KEY, []))
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
        items[:] = [item for item in items if item.nodeid not in before]
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
