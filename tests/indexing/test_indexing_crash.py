"""Builds that are killed, interrupted or out of disk: the old collection opens, or the new one, whole."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

import pytest

from embedserve.errors import EmbedserveError
from indexing import build_collection
from indexing.collections.manifest import read_manifest
from tests.indexing.bag import BagEncoder, contents, make_documents

ROOT = Path(__file__).parents[2]
BEFORE = ["start", "embed-30", "embed-300", "index-300", "before-sync", "after-sync", "before-replace"]
AFTER = ["after-replace", "after-publish"]
REST = 0.01  # seconds at each step of a build that is killed at random; the steps' own work takes as long


def start(directory, stop="nowhere", limit=0, rest=0.0):
    command = [sys.executable, "-m", "tests.indexing.crash_child", str(directory), stop, str(limit), str(rest)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(child, step):
    for line in child.stdout:
        if line.strip() == step:
            return
    raise AssertionError(f"the build ended before {step}: {child.stderr.read()}")


def end(child, number):
    child.send_signal(number)
    child.communicate()
    return child.returncode


def segments(directory):
    return [path.name for path in directory.glob("segments/*")]


def only_segment(directory):
    """What the folder of segments has to hold."""
    return [entry.name for entry in read_manifest(directory).segments]


@pytest.mark.parametrize("step", BEFORE + AFTER)
def test_a_build_killed_at_any_step_leaves_one_whole_collection(directory, step):
    child = start(directory, step)
    wait_for(child, step)
    assert end(child, signal.SIGKILL) == -signal.SIGKILL
    assert contents(directory) == (("old", 40) if step in BEFORE else ("new", 300))
    build_collection(make_documents(10, "third"), BagEncoder(), directory)
    assert contents(directory) == ("third", 10)
    assert segments(directory) == only_segment(directory)
    log = read_manifest(directory).wal
    assert {path.name for path in directory.iterdir()} == {".lock", "manifest.json", "segments", log}


def hear(child, count):
    steps = [line.strip() for line in islice(child.stdout, count)]
    assert len(steps) == count, f"the build ended after {steps}: {child.stderr.read()}"
    return steps


def gaps_between_steps(directory):
    """Build undisturbed, and return the seconds from each step to the next."""
    child = start(directory, rest=REST)
    times = [time.monotonic() for _ in child.stdout]
    child.communicate()
    return [later - earlier for earlier, later in pairwise(times)]


def test_builds_killed_at_random_leave_one_whole_collection(directory):
    """Each kill comes at a random moment after a random step that the build itself tells of.

    So the kills are spread over the whole build, however fast the machine is just now. One that comes after the last
    step is held to the same promise, but another is made in its place.
    """
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    gaps = gaps_between_steps(directory)
    inside = 0
    for _ in range(40):
        build_collection(make_documents(40), BagEncoder(), directory)
        assert len(segments(directory)) == 1, f"seed {seed}"
        child = start(directory, rest=REST)
        place = rng.randrange(len(gaps))
        steps = hear(child, place + 1)
        time.sleep(rng.uniform(0, gaps[place]))
        child.send_signal(signal.SIGKILL)
        steps += child.stdout.read().split()
        child.communicate()
        if "before-replace" not in steps:
            assert contents(directory) == ("old", 40), f"seed {seed}, {steps}"
        elif "after-replace" in steps:
            assert contents(directory) == ("new", 300), f"seed {seed}, {steps}"
        else:
            assert contents(directory) in (("old", 40), ("new", 300)), f"seed {seed}, {steps}"
        inside += "end" not in steps
        if inside == 8:
            break
    assert inside == 8, f"seed {seed}: only {inside} of 40 builds were killed before their end"


@pytest.mark.parametrize("step", ["embed-150", "before-sync", "before-replace"])
def test_ctrl_c_leaves_the_old_collection_and_nothing_else(directory, step):
    before = sorted(directory.rglob("*"))
    child = start(directory, step)
    wait_for(child, step)
    assert end(child, signal.SIGINT) != 0
    assert contents(directory) == ("old", 40)
    assert sorted(directory.rglob("*")) == before


def test_ctrl_c_after_publishing_keeps_the_new_collection(directory):
    child = start(directory, "after-replace")
    wait_for(child, "after-replace")
    end(child, signal.SIGINT)
    assert contents(directory) == ("new", 300)
    assert segments(directory) == only_segment(directory)


def test_another_process_cannot_build_at_the_same_time(directory):
    child = start(directory, "embed-60")
    wait_for(child, "embed-60")
    with pytest.raises(EmbedserveError, match="is being written to by another process"):
        build_collection(make_documents(3), BagEncoder(), directory)
    assert contents(directory) == ("old", 40)
    end(child, signal.SIGKILL)
    build_collection(make_documents(3), BagEncoder(), directory)
    assert contents(directory) == ("old", 3)


@pytest.mark.parametrize("limit", [100, 4096, 20_000, 45_000, 61_000])
def test_a_full_disk_is_named_and_leaves_the_old_collection(directory, limit):
    before = sorted(directory.rglob("*"))
    output, errors = start(directory, limit=limit).communicate()
    assert "cannot write to" in output, errors
    assert "existing data are unchanged" in output
    assert sorted(directory.rglob("*")) == before
    assert contents(directory) == ("old", 40)


def test_a_build_cut_one_byte_short_is_noticed(directory, tmp_path):
    sizes = {check.name: check.bytes for check in whole_build(tmp_path / "whole")}
    largest = max(sizes.values())
    output, errors = start(directory, limit=largest - 1).communicate()
    assert "cannot write to" in output, errors
    assert contents(directory) == ("old", 40)
    output, errors = start(directory, limit=largest).communicate()
    assert output.endswith("end\n"), errors
    assert contents(directory) == ("new", 300)


def whole_build(directory):
    from indexing import verify

    build_collection(make_documents(300, "new"), BagEncoder(), directory, index="hnsw", batch_size=30)
    return verify(directory)
